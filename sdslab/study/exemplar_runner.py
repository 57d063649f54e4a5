"""Runs the exemplar study: what is not on disk yet, then its tables and pictures."""

import dataclasses
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch

from sdslab.errors import UserError, one_line
from sdslab.files.atomic_write import write_text
from sdslab.files.disk_cache import content_hash
from sdslab.machine import device_name, resolve_device
from sdslab.pictures.image_io import load_image
from sdslab.runs.record import version_of, write_json
from sdslab.runs.schema import origin_of
from sdslab.shell.named_inputs import stem_of
from sdslab.shell.progress_lines import ProgressLines
from sdslab.study.cell_store import code_of
from sdslab.study.exemplar_methods import Made, Photo, Problem, make
from sdslab.study.exemplar_results import Finished, markdown_of
from sdslab.study.exemplar_scores import Scores
from sdslab.study.exemplar_specification import FACTOR, ExemplarCase, ExemplarStudy
from sdslab.study.printed_table import print_markdown
from sdslab.study.result_file import ResultFiles
from sdslab.study.specification import check_only
from sdslab.study.study_run import progress_console, study_run, told

# Code whose change makes old pictures and scores stale.
NUMERIC_SOURCES = (
    "denoisers", "diffusion_space.py", "distillation", "kernels", "optimization",
    "parameterizations", "pictures", "study/exemplar_methods.py", "study/exemplar_scores.py",
)  # fmt: skip
PRESENTATION = ("name", "label", "pictured", "enlarges")  # no number depends on them


@dataclass(frozen=True)
class Job:
    """A picture that is to be made."""

    case: ExemplarCase
    photo: str
    seed: int
    sweep: str | None = None
    value: float | None = None

    @property
    def title(self) -> str:
        """For messages."""
        return f"{self.case.name} {stem_of(self.photo)} seed {self.seed}"


def run_exemplar_study(
    study: ExemplarStudy,
    only: tuple[str, ...] = (),
    *,
    fresh: bool = False,
    accept_code: bool = False,
) -> None:
    """Runs ``study`` and writes ``NAME.{csv,md,json,png}``, ``NAME.mode_seeking.png`` and NAME/.

    Pictures that are saved from before under the same configuration are not made again.

    Args:
        study: cases and settings.
        only: names of the cases and sweeps to run; all, where it is empty.
        fresh: make every picture again.
        accept_code: take pictures that other code made.

    Raises:
        UserError: something cannot work, or another process is at it.
        KeyboardInterrupt: what was finished is saved.
    """
    settings = study.settings
    names = [item.name for item in (*study.cases, *study.sweeps)]
    check_only(only, names)
    for name, seeds in (("--seeds", settings.seeds), ("sweep_seeds", settings.sweep_seeds)):
        if len(set(seeds)) < len(seeds) or min(seeds) < 0 or max(seeds) >= 2**64:
            raise UserError(f"{name} must be different and within [0, 2^64), got {list(seeds)}")
    if len(set(settings.photos)) < len(settings.photos):
        raise UserError(f"--image must name different pictures, got {', '.join(settings.photos)}")
    device = resolve_device(settings.device)
    photos = {
        name: Photo(name, load_image(name, settings.exemplar_size * FACTOR).to(device))
        for name in dict.fromkeys((*settings.photos, *settings.sweep_photos))
    }
    out = Path(settings.out)
    with study_run(study, "exemplar", device, seeds=settings.seeds, only=only) as record:
        code = code_of(NUMERIC_SOURCES, torch=torch.__version__)
        folder = out / study.name / "pictures"
        files = ResultFiles(
            folder, code, version_of(record), told, fresh=fresh, accept_code=accept_code
        )
        maker = _Maker(study, photos, device, files)
        finished = []
        for item in _run_jobs(_jobs(study, only), maker):
            finished.append(item)
            record["seconds"] |= maker.seconds()
            record["details"]["code_changes"] = list(files.changes)
            # After each one: the scores so far survive an interruption.
            numbers = [done.numbers() for done in finished]
            write_json(out / f"{study.name}.json", {"run": origin_of(record), "rows": numbers})
        _write_results(study, photos, finished, out, device_name(device))


def _jobs(study: ExemplarStudy, only: tuple[str, ...]) -> list[Job]:
    """Everything of the first seed comes first: an interrupted study has some of all."""
    settings = study.settings
    jobs = [
        Job(case, photo, seed)
        for case in study.cases
        if not only or case.name in only
        for photo in settings.photos
        for seed in settings.seeds
    ]
    jobs += [
        Job(case, photo, seed, sweep.name, value)
        for sweep in study.sweeps
        if not only or sweep.name in only
        for value, case in study.swept(sweep)
        for photo in settings.sweep_photos
        for seed in settings.sweep_seeds
    ]
    order = (*settings.seeds, *settings.sweep_seeds)
    return sorted(jobs, key=lambda job: order.index(job.seed))


def _run_jobs(jobs: list[Job], maker: "_Maker") -> Iterator[Finished]:
    with ProgressLines(progress_console) as progress:
        task = progress.add_task("", total=len(jobs))
        for number, job in enumerate(jobs, start=1):
            progress.update(task, description=job.title, completed=number - 1)
            item, saved = maker.finish(job)
            how = "saved from before" if saved else f"{item.cpu_seconds:.1f} core seconds"
            line = (
                f"{number}/{len(jobs)} {job.title}: sliced Wasserstein "
                f"{item.scores.sliced_wasserstein:.3f}, {how}"
            )
            progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
            yield item


class _Maker:
    """Makes pictures, or finds them on disk."""

    def __init__(
        self,
        study: ExemplarStudy,
        photos: dict[str, Photo],
        device: torch.device,
        files: ResultFiles,
    ) -> None:
        self.study, self.photos, self.files = study, photos, files
        self.digests = {name: content_hash(photo.pixels) for name, photo in photos.items()}
        self.common = {
            "device": device_name(device),
            "size": study.settings.size,
        }
        self._seconds: dict[Path, tuple[str, float]] = {}

    def finish(self, job: Job) -> tuple[Finished, bool]:
        """The job's picture and scores, and whether they were on disk."""
        key = self._key(job.case, job.photo, job.seed)
        stem = re.sub(r"[^A-Za-z0-9_]+", "_", stem_of(job.photo))[:40]
        # Not by the case's name: a sweep passes through cases that are there already.
        path = self.files.path(f"{job.case.method}-{stem}-{job.seed}", key)
        found = self._read(path)
        saved = found is not None
        if found is None:
            found = self._make(job)
            made, scores = found
            numbers = {"cpu_seconds": made.cpu_seconds, "seconds": made.seconds}
            numbers |= {"scores": asdict(scores)}
            self.files.save(path, {"picture": made.picture}, numbers)
        made, scores = found
        self._seconds.setdefault(path, (job.sweep or job.case.name, made.seconds))
        finished = Finished(
            job.case, job.photo, job.seed, made.picture, scores, made.cpu_seconds, made.seconds,
            job.sweep, job.value,
        )  # fmt: skip
        return finished, saved

    def seconds(self) -> dict[str, float]:
        """Of each case and sweep, whenever its pictures were made; a picture counts once."""
        total: dict[str, float] = {}
        for name, seconds in self._seconds.values():
            total[name] = total.get(name, 0.0) + seconds
        return {name: round(value, 2) for name, value in total.items()}

    def _make(self, job: Job) -> tuple[Made, Scores]:
        case, photo = job.case, self.photos[job.photo]
        start = None
        if case.enlarges is not None:
            earlier = Job(self.study.case_named(case.enlarges), job.photo, job.seed)
            start = self.finish(earlier)[0].picture.to(photo.pixels.device)
        others = tuple(self.photos[name] for name in self._others(job.photo))
        try:
            made = make(case, Problem(photo, others, job.seed, self.study.settings.size, start))
        except FloatingPointError as error:
            raise UserError(f"{job.title}: {error}") from error
        picture = made.picture.clamp(0, 1)
        made = dataclasses.replace(made, picture=picture.cpu())
        reference = photo.shrunk(1 if case.is_large else FACTOR)
        return made, Scores.of(picture, reference)

    def _others(self, photo: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.study.settings.sweep_photos, photo)))

    def _key(self, case: ExemplarCase, photo: str, seed: int) -> str:
        """Of everything that the picture and its scores depend on."""
        numeric = {name: value for name, value in asdict(case).items() if name not in PRESENTATION}
        known = self._others(photo) if case.guidance is not None else (photo,)
        if case.enlarges is not None:
            numeric["start"] = self._key(self.study.case_named(case.enlarges), photo, seed)
        digests = [self.digests[name] for name in known]
        return content_hash(numeric, digests, self.digests[photo], seed, self.common)[:16]

    def _read(self, path: Path) -> tuple[Made, Scores] | None:
        found = self.files.load(path)
        if found is None:
            return None
        tensors, numbers = found
        try:
            made = Made(tensors["picture"], numbers["cpu_seconds"], numbers["seconds"])
            return made, Scores(**numbers["scores"])
        except (KeyError, TypeError):
            return None


def _write_results(
    study: ExemplarStudy,
    photos: dict[str, Photo],
    finished: list[Finished],
    out: Path,
    device: str,
) -> None:
    from sdslab.study import exemplar_plots  # matplotlib takes a second to import

    rows: Any = pd.DataFrame([item.numbers() for item in finished])
    write_text(out / f"{study.name}.csv", rows.to_csv(index=False, float_format="%.6g"))
    text = markdown_of(study, rows, device)
    write_text(out / f"{study.name}.md", text)
    exemplar_plots.save_contact_sheet(study, photos, finished, out / f"{study.name}.png")
    exemplar_plots.save_mode_seeking(study, rows, out / f"{study.name}.mode_seeking.png")
    print_markdown(text, f"{out}/{study.name}.md")
    print(one_line(f"written to {out}/{study.name}.*"))  # noqa: T201
