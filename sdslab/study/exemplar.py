"""The study of the exemplar denoiser in two dimensions: what SDS does with an exact score."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, final

import numpy as np
import torch

from sdslab.errors import UserError, one_line
from sdslab.files.disk_cache import content_hash
from sdslab.pictures.image_io import load_image
from sdslab.runs.from_toml import Different, Seeds
from sdslab.runs.table import Page, Table, plain
from sdslab.shell.named_inputs import stem_of
from sdslab.study import exemplar_methods
from sdslab.study.exemplar_figures import PictureOf, contact_sheet, mode_seeking_figure
from sdslab.study.exemplar_methods import FACTOR, ExemplarCase, Photo, Problem, Scores
from sdslab.study.experiment import (
    Experiment,
    Finished,
    Given,
    Piece,
    Result,
    file_stem,
    save_figure,
)

PRESENTATION = ("name", "label", "pictured", "enlarges")  # no number depends on them
SCORES = {
    "sliced_wasserstein": "sliced Wasserstein", "contrast": "contrast",
    "gradient_energy": "gradient energy", "fidelity": "fidelity", "completeness": "completeness",
}  # fmt: skip


@dataclass(frozen=True)
class ExemplarSettings:
    """What every case shares."""

    photos: Annotated[tuple[str, ...], Different("pictures")]
    """Files, or names of the photographs that scikit-image ships."""
    seeds: Annotated[tuple[int, ...], Seeds(64)]
    """Seeds of the noise; real crops are taken from another corner for each."""
    sweep_photos: tuple[str, ...]
    """Photographs of the sweeps; together they are what a tag is told from."""
    sweep_seeds: Annotated[tuple[int, ...], Seeds(64)]
    """Seeds of the sweeps."""
    size: int = 64
    """Height and width of the small pictures; the enlarged ones have four times as much."""
    exemplar_size: int = 96
    """Height and width of the photograph beside small pictures."""
    device: str = "cpu"
    """"auto" is cuda where there is one."""
    out: str = "figures"
    """Folder for the results."""


@dataclass(frozen=True)
class Sweep:
    """One setting varied, for the plot of collapse."""

    name: str
    case: str
    """The case that is varied."""
    parameter: Literal["temperature", "guidance"]
    values: tuple[float, ...]


@dataclass(frozen=True)
class ExemplarStudy:
    """A parsed study file with one preset applied."""

    name: str
    title: str
    preset: str
    settings: ExemplarSettings
    cases: tuple[ExemplarCase, ...]
    sweeps: tuple[Sweep, ...] = ()

    def case_named(self, name: str) -> ExemplarCase:
        """The case of that name, which must be there."""
        return next(case for case in self.cases if case.name == name)

    def swept(self, sweep: Sweep) -> list[tuple[float, ExemplarCase]]:
        """The sweep's values, each with its case."""
        base = self.case_named(sweep.case)
        return [
            (value, replace(base, **{"name": f"{sweep.name}_{value:g}", sweep.parameter: value}))
            for value in sweep.values
        ]


@dataclass(frozen=True)
class Job:
    """A picture that is to be made, perhaps for a value of a sweep."""

    case: ExemplarCase
    photo: str
    seed: int
    sweep: str | None = None
    value: float | None = None


@final
class ExemplarPictures(Experiment):
    """Makes every case's picture of every photograph, from every seed, and scores it."""

    study_class = ExemplarStudy
    options = ("image", "seeds")
    sources = (
        "denoisers", "diffusion_space.py", "distillation", "kernels", "optimization",
        "parameterizations", "pictures", "study/exemplar_methods.py",
    )  # fmt: skip
    store = "pictures"
    study: ExemplarStudy

    def __init__(self, study: ExemplarStudy, only: tuple[str, ...], device: torch.device) -> None:
        super().__init__(study, only, device)
        settings = study.settings
        self.photos = {
            name: Photo(name, load_image(name, settings.exemplar_size * FACTOR).to(device))
            for name in dict.fromkeys((*settings.photos, *settings.sweep_photos))
        }

    @staticmethod
    def finish_study(study: ExemplarStudy, where: str, load: Callable[[str], Any]) -> ExemplarStudy:
        """Refuses settings, cases and sweeps that make no sense."""
        del load
        settings = study.settings
        if settings.size % 4 or not 32 <= settings.size <= settings.exemplar_size:
            raise UserError(
                f"{where}: settings.size must be a multiple of 4 from 32 to exemplar_size, "
                f"{settings.exemplar_size}, got {settings.size}"
            )
        if settings.exemplar_size % 4:
            raise UserError(
                f"{where}: settings.exemplar_size must be a multiple of 4, got "
                f"{settings.exemplar_size}"
            )
        small = [case.name for case in study.cases if not case.is_large]
        for case in study.cases:
            place = f"{where}: cases.{case.name}"
            if not case.temperature > 0:
                raise UserError(f"{place}: temperature must be positive, got {case.temperature:g}")
            if (case.method in ("bicubic", "sr_sds")) != (case.enlarges is not None):
                raise UserError(
                    f"{place}: enlarges must be given for bicubic and sr_sds, and only so"
                )
            if case.enlarges is not None and case.enlarges not in small:
                raise UserError(
                    f"{place}: enlarges must be one of {', '.join(small)}, got {case.enlarges!r}"
                )
        for sweep in study.sweeps:
            place = f"{where}: sweeps.{sweep.name}"
            valid = [case.name for case in study.cases if case.method == "sds"]
            if sweep.case not in valid:
                raise UserError(
                    f"{place}: case must be one of {', '.join(valid) or 'none'}, got {sweep.case!r}"
                )
            if sweep.parameter == "temperature" and min(sweep.values) <= 0:
                raise UserError(
                    f"{place}: temperatures must be positive, got {min(sweep.values):g}"
                )
        return study

    def pieces(self) -> list[Piece]:
        """Everything of the first seed comes first: an interrupted study has some of all."""
        settings, study = self.study.settings, self.study
        self.digests = {name: content_hash(photo.pixels) for name, photo in self.photos.items()}
        jobs = [
            Job(case, photo, seed)
            for case in self.chosen(study.cases)
            for photo in settings.photos
            for seed in settings.seeds
        ]
        jobs += [
            Job(case, photo, seed, sweep.name, value)
            for sweep in self.chosen(study.sweeps)
            for value, case in study.swept(sweep)
            for photo in settings.sweep_photos
            for seed in settings.sweep_seeds
        ]
        order = (*settings.seeds, *settings.sweep_seeds)
        return [self._piece(job) for job in sorted(jobs, key=lambda job: order.index(job.seed))]

    def _piece(self, job: Job) -> Piece:
        case, needs = job.case, None
        if case.enlarges is not None:
            needs = self._piece(Job(self.study.case_named(case.enlarges), job.photo, job.seed))
        return Piece(
            f"{case.name} {stem_of(job.photo)} seed {job.seed}",
            job.sweep or case.name,
            partial(self._make, job),
            job,
            # Not by the case's name: a sweep passes through cases that are there already.
            stem=f"{case.method}-{file_stem(job.photo)}-{job.seed}",
            key=self._key(case, job.photo, job.seed),
            needs=needs,
        )

    def _make(self, job: Job, given: Given) -> Iterator[Result]:
        photo, start = self.photos[job.photo], None
        if given.needed is not None:
            start = given.needed.tensors["picture"].to(photo.pixels.device)
        others = tuple(self.photos[name] for name in self._others(job.photo))
        problem = Problem(photo, others, job.seed, self.study.settings.size, start)
        made = exemplar_methods.make(job.case, problem)
        picture = made.picture.clamp(0, 1)
        scores = Scores.of(picture, photo.shrunk(1 if job.case.is_large else FACTOR))
        numbers = {"cpu_seconds": made.cpu_seconds, "seconds": made.seconds}
        yield Result({"picture": picture.cpu()}, numbers | {"scores": asdict(scores)})

    def _others(self, photo: str) -> tuple[str, ...]:
        return tuple(dict.fromkeys((*self.study.settings.sweep_photos, photo)))

    def _key(self, case: ExemplarCase, photo: str, seed: int) -> str:
        """The key of everything that the picture and its scores depend on."""
        numeric = {name: value for name, value in asdict(case).items() if name not in PRESENTATION}
        known = self._others(photo) if case.guidance is not None else (photo,)
        if case.enlarges is not None:
            numeric["start"] = self._key(self.study.case_named(case.enlarges), photo, seed)
        digests = [self.digests[name] for name in known]
        common = {"device": self.device_name, "size": self.study.settings.size}
        return content_hash(numeric, digests, self.digests[photo], seed, common)[:16]

    def rows(self, piece: Piece, result: Result) -> list[dict[str, Any]]:
        job, numbers = piece.about, result.numbers
        return [
            {
                "case": job.case.name,
                "photo": job.photo,
                "seed": job.seed,
                "size": result.tensors["picture"].shape[-1],
                **asdict(Scores(**numbers["scores"])),
                "cpu_seconds": round(numbers["cpu_seconds"], 3),
                "seconds": round(numbers["seconds"], 3),
                "steps": job.case.steps,
                "noise": job.case.noise,
                "timesteps": job.case.timesteps,
                "sweep": job.sweep,
                "value": job.value,
            }
        ]

    def line(self, finished: Finished) -> str:
        (row,) = finished.rows
        score, spent = row["sliced_wasserstein"], finished.result.numbers["cpu_seconds"]
        return f"sliced Wasserstein {score:.3f}, {spent:.1f} core seconds"

    def page(self, finished: list[Finished]) -> Page:
        return page_of(self.study, [done.rows[0] for done in finished], self.device_name)

    def draw(self, finished: list[Finished], path: Path) -> None:
        study, rows = self.study, [done.rows[0] for done in finished]
        first = study.settings.seeds[0]
        shown: dict[tuple[str, str], PictureOf] = {
            (job.case.name, job.photo): (job.case, done.result.tensors["picture"], row)
            for done, row in zip(finished, rows, strict=True)
            if (job := done.piece.about).sweep is None and job.case.pictured and job.seed == first
        }
        contact_sheet({name: self.photos[name] for name in study.settings.photos}, shown, path)
        sweeps = {
            sweep.name: (sweep.parameter, study.case_named(sweep.case)) for sweep in study.sweeps
        }
        figure = mode_seeking_figure(study.cases, sweeps, rows)
        if figure is not None:
            save_figure(figure, Path(f"{path.with_suffix('')}.mode_seeking.png"))


def page_of(study: ExemplarStudy, rows: Sequence[dict[str, Any]], device: str) -> Page:
    """Means over photographs and seeds, case by case; then each photograph; then the sweeps."""
    settings = study.settings
    small, large = settings.size, settings.size * FACTOR
    head = (
        f"Mean over {', '.join(map(one_line, settings.photos))} and seeds "
        f"{', '.join(map(str, settings.seeds))}; {device}, preset {study.preset}. Sliced "
        f"Wasserstein distance of 7 × 7 patches, fidelity and completeness are in pixel values of "
        f"[0, 1]; contrast and gradient energy are shares of the photograph's own. Pictures of "
        f"{small}² are compared with the photograph at {settings.exemplar_size}², those of "
        f"{large}² with it at {settings.exemplar_size * FACTOR}². Seconds are a core's, and for an "
        f"enlarged picture those of the enlargement alone."
    )
    of_cases, of_photos = [], []
    for case in study.cases:
        group = [row for row in rows if row["sweep"] is None and row["case"] == case.name]
        if not group:
            continue
        size = f"{large if case.is_large else small}²"
        spent = "" if case.method in ("crop", "bicubic") else f"{_mean(group, 'cpu_seconds'):.2f}"
        means = [f"{_mean(group, name):.3f}" for name in SCORES]
        of_cases.append([case.label, size, *means, spent])
        by_photo = [[row for row in group if row["photo"] == name] for name in settings.photos]
        means = [f"{_mean(own, 'sliced_wasserstein'):.3f}" for own in by_photo]
        of_photos.append([f"{case.label}, {size}", *means])
    columns = ("picture", "size", *SCORES.values(), "core seconds")
    parts: list[str | Table] = [
        head,
        Table(columns, of_cases),
        "Sliced Wasserstein distance by photograph, mean over seeds:",
        Table(["picture", *map(plain, settings.photos)], of_photos),
    ]
    for sweep in study.sweeps:
        swept = [row for row in rows if row["sweep"] == sweep.name]
        if swept:
            values = sorted({row["value"] for row in swept})
            title = f"{study.case_named(sweep.case).label}: {sweep.parameter}"
            groups = [[row for row in swept if row["value"] == value] for value in values]
            lines = [
                [SCORES[name], *(f"{_mean(group, name):.3f}" for group in groups)]
                for name in ("sliced_wasserstein", "contrast")
            ]
            parts.append(Table([title, *(f"{value:g}" for value in values)], lines))
    return Page(study.title, parts)


def _mean(rows: Sequence[dict[str, Any]], name: str) -> float:
    return float(np.mean([row[name] for row in rows]))
