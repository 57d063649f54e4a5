"""Runs the study of textured meshes: what is not on disk yet, then its table and picture."""

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cache
from pathlib import Path
from typing import Any

import pandas as pd
import torch
import torch.nn.functional as F
from torch import Tensor

from sdslab.errors import UserError, one_line
from sdslab.exemplar_texturing.exemplars import ExemplarSet, load_exemplars
from sdslab.exemplar_texturing.measurement import TextureMeasurement, measure_texture
from sdslab.files.atomic_write import write_text
from sdslab.files.disk_cache import content_hash
from sdslab.machine import device_name, resolve_device
from sdslab.meshes.mesh_io import load_mesh
from sdslab.rendering.cameras import six_views
from sdslab.rendering.preview import Previewer, contact_sheet
from sdslab.rendering.renderer import Renderer, make_backend
from sdslab.rendering.texels import covered_texels, texels_per_unit
from sdslab.runs.record import version_of, write_json
from sdslab.runs.schema import origin_of
from sdslab.shell.named_inputs import stem_of
from sdslab.shell.progress_lines import ProgressLines
from sdslab.study.cell_store import code_of
from sdslab.study.exemplar_mesh_methods import texture_mesh
from sdslab.study.exemplar_mesh_specification import MeshStudy, Method
from sdslab.study.printed_table import print_markdown
from sdslab.study.result_file import ResultFiles
from sdslab.study.specification import check_only
from sdslab.study.study_run import progress_console, study_run, told

NUMERIC_SOURCES = (
    "denoisers", "diffusion_space.py", "distillation", "exemplar_texturing", "kernels",
    "meshes", "optimization", "parameterizations", "pictures", "rendering",
    "study/exemplar_mesh_methods.py",
)  # fmt: skip
SHOWN_SIZE = 256  # of the pictures on the contact sheet
COLUMNS = {
    "sliced_wasserstein": 3, "crop": 3, "contrast": 2, "gradient_energy": 2, "seam_jump": 2,
    "core_seconds": 1,
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Finished:
    """A textured mesh and its numbers; the picture is [3, h, h] in [0, 1]."""

    mesh: str
    photo: str
    method: Method
    seed: int
    measurement: TextureMeasurement
    seconds: float
    core_seconds: float
    picture: Tensor

    def numbers(self) -> dict[str, Any]:
        """A row of the CSV."""
        return {
            "mesh": stem_of(self.mesh),
            "photo": stem_of(self.photo),
            "method": self.method.name,
            "seed": self.seed,
            **asdict(self.measurement),
            "seconds": self.seconds,
            "core_seconds": self.core_seconds,
        }


def run_mesh_study(
    study: MeshStudy,
    only: tuple[str, ...] = (),
    *,
    fresh: bool = False,
    accept_code: bool = False,
) -> None:
    """Runs ``study`` and writes ``NAME.{csv,md,json,png}`` and NAME/.

    Args:
        study: meshes, photographs and methods.
        only: names of the methods to run; all, where it is empty.
        fresh: run again what is saved from before.
        accept_code: take results that other code made.

    Raises:
        UserError: something cannot work, or another process is at it.
        KeyboardInterrupt: what was finished is saved.
    """
    settings = study.settings
    names = [method.name for method in study.methods]
    check_only(only, names)
    methods = [method for method in study.methods if not only or method.name in only]
    seeds = settings.seeds
    if len(set(seeds)) < len(seeds) or min(seeds) < 0 or max(seeds) >= 2**40:
        raise UserError(f"--seeds must be different and within [0, 2^40), got {list(seeds)}")
    device = resolve_device(settings.device)
    photos = {name: load_exemplars([name]) for name in settings.photos}
    out = Path(settings.out)
    with study_run(study, "exemplar_mesh", device, seeds=settings.seeds, only=only) as record:
        code = code_of(NUMERIC_SOURCES, torch=torch.__version__)
        files = ResultFiles(
            out / study.name, code, version_of(record), told, fresh=fresh, accept_code=accept_code
        )
        maker = _Maker(study, photos, device, files)
        finished: list[Finished] = []
        for item in maker.all_of(methods):
            finished.append(item)
            seconds, name = record["seconds"], item.method.name
            seconds[name] = round(seconds.get(name, 0) + item.seconds, 2)
            record["details"]["code_changes"] = list(files.changes)
            # After each one: the rows so far survive an interruption.
            rows = [done.numbers() for done in finished]
            write_json(out / f"{study.name}.json", {"run": origin_of(record), "rows": rows})
        _write(study, photos, finished, out, device_name(device))


class _Maker:
    """Textures meshes, or finds what was made before on disk."""

    def __init__(
        self,
        study: MeshStudy,
        photos: dict[str, ExemplarSet],
        device: torch.device,
        files: ResultFiles,
    ) -> None:
        self.study, self.photos, self.device, self.files = study, photos, device, files
        self.common = {
            "device": device_name(device),
            **{n: getattr(study.settings, n) for n in ("texture_size", "scale", "steps")},
        }
        self.renderer = cache(self._load)  # a mesh is loaded, and unwrapped, once

    def all_of(self, methods: list[Method]) -> Iterator[Finished]:
        """One after the other, with a bar."""
        settings = self.study.settings
        jobs = [
            (mesh, photo, method, seed)
            for mesh in settings.meshes
            for photo in settings.photos
            for method in methods
            for seed in settings.seeds
        ]
        with ProgressLines(progress_console) as progress:
            task = progress.add_task("", total=len(jobs))
            for number, (mesh, photo, method, seed) in enumerate(jobs, start=1):
                title = f"{stem_of(mesh)} {stem_of(photo)} {method.name} seed {seed}"
                progress.update(task, description=title, completed=number - 1)
                item, saved = self._finish(mesh, photo, method, seed)
                how = "saved from before" if saved else f"{item.core_seconds:.1f} core seconds"
                line = (
                    f"{number}/{len(jobs)} {title}: sliced Wasserstein "
                    f"{item.measurement.sliced_wasserstein:.3f}, {how}"
                )
                progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
                yield item

    def _load(self, mesh: str) -> tuple[Renderer, Tensor]:
        size = (self.study.settings.texture_size,) * 2
        loaded = load_mesh(mesh, "auto", lambda _: None, up=self.study.settings.up)
        covered = covered_texels(
            loaded, (size[0], size[1]), make_backend("cpu", torch.device("cpu"))
        )
        return Renderer(loaded, make_backend("auto", self.device), self.device), covered

    def _finish(self, mesh: str, photo: str, method: Method, seed: int) -> tuple[Finished, bool]:
        renderer, covered = self.renderer(mesh)
        exemplars = self.photos[photo]
        own = renderer.mesh
        numeric = {n: v for n, v in asdict(method).items() if n not in ("name", "label")}
        key = content_hash(
            numeric, seed, self.common,
            own.render_positions, own.faces, own.uv, exemplars.exemplars[0].channels,
        )[:16]  # fmt: skip
        stem = re.sub(r"[^A-Za-z0-9_]+", "_", f"{stem_of(mesh)}-{stem_of(photo)}")[:60]
        path = self.files.path(f"{stem}-{method.name}-{seed}", key)
        found = self.files.load(path)
        if found is not None:
            tensors, numbers = found
            measurement = TextureMeasurement(**numbers["measurement"])
            times = (numbers["seconds"], numbers["core_seconds"])
            return Finished(
                mesh, photo, method, seed, measurement, *times, tensors["picture"]
            ), True
        settings = self.study.settings
        made = texture_mesh(method, renderer, covered, exemplars, settings, seed, lambda _: None)
        measurement = measure_texture(
            renderer, made.maps, exemplars, settings.scale, made.pixels_per_unit,
            texels_per_unit(own, covered),
        )  # fmt: skip
        shown = Renderer(own, renderer.backend, self.device, supersampling=2)
        front = six_views(renderer.bounding_radius)[0:1]
        picture = Previewer(shown, None, SHOWN_SIZE).picture(front, made.maps)[0]
        numbers = {
            "measurement": asdict(measurement),
            "seconds": made.seconds,
            "core_seconds": made.core_seconds,
        }
        self.files.save(path, {"picture": picture}, numbers)
        times = (made.seconds, made.core_seconds)
        return Finished(mesh, photo, method, seed, measurement, *times, picture), False


def _square(exemplars: ExemplarSet) -> Tensor:
    """The photograph as large as the other pictures, [3, h, h]."""
    picture = exemplars.exemplars[0].channels[None]
    side = min(picture.shape[-2:])
    size = (SHOWN_SIZE, SHOWN_SIZE)
    return F.interpolate(picture[..., :side, :side], size=size, mode="bilinear", antialias=True)[0]


def _write(
    study: MeshStudy,
    photos: dict[str, ExemplarSet],
    finished: list[Finished],
    out: Path,
    device: str,
) -> None:
    rows = pd.DataFrame([item.numbers() for item in finished])
    write_text(out / f"{study.name}.csv", rows.to_csv(index=False, float_format="%.6g"))
    text = _markdown(study, rows, device)
    write_text(out / f"{study.name}.md", text)
    first = study.settings.seeds[0]
    sheet = [
        [
            (f"{stem_of(photo)}: the photo", _square(photos[photo])),
            *(
                (f"{stem_of(mesh)}, {item.method.label}", item.picture)
                for item in finished
                if (item.mesh, item.photo, item.seed) == (mesh, photo, first)
            ),
        ]
        for mesh in study.settings.meshes
        for photo in study.settings.photos
    ]
    contact_sheet(sheet, None, out / f"{study.name}.png")
    print_markdown(text, f"{out}/{study.name}.md")
    print(one_line(f"written to {out}/{study.name}.*"))  # noqa: T201


def _markdown(study: MeshStudy, rows: pd.DataFrame, device: str) -> str:
    """One line per mesh, photograph and method: mean ± standard deviation over the seeds."""
    settings = study.settings
    labels = {method.name: method.label for method in study.methods}
    lines = [
        f"# {study.title}",
        "",
        f"{device}; preset {study.preset}; {settings.texture_size}² texels; seeds "
        f"{', '.join(map(str, settings.seeds))}: mean ± standard deviation.",
        "",
        "| mesh | photo | method | sliced Wasserstein | a real crop's | contrast | gradient energy "
        "| seam jump | core seconds |",
        "|" + " --- |" * 9,
    ]
    groups: Any = rows.groupby(["mesh", "photo", "method"], sort=False)
    for (mesh, photo, method), group in groups:
        cells = [_spread(group[name], digits) for name, digits in COLUMNS.items()]
        lines.append(f"| {mesh} | {photo} | {labels[method]} | {' | '.join(cells)} |")
    lines += [
        "",
        "Sliced Wasserstein: between 7 × 7 patches of views along the normal and of the "
        "photograph, in pixel values of [0, 1], mean over three scales. Contrast and gradient "
        "energy: over the photograph's; 1 is alike. Seam jump: the difference of colours across "
        "seams of the atlas over that across other edges of the same faces, two texels from them; "
        "a projection, which knows no seams, has 1 to 1.1.",
        "",
    ]
    return "\n".join(lines)


def _spread(values: Any, digits: int) -> str:
    known = values.dropna()
    if not len(known):
        return ""
    if len(known) == 1:
        return f"{known.iloc[0]:.{digits}f}"
    return f"{known.mean():.{digits}f} ± {known.std():.{digits}f}"
