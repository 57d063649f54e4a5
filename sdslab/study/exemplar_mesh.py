"""The study of exemplar guidance on meshes: how like the photograph, how sharp, how seamless."""

import itertools
import time
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import cache, partial
from pathlib import Path
from typing import Annotated, Any, Literal, final

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sdslab.exemplar_texturing.exemplars import ExemplarSet, load_exemplars
from sdslab.exemplar_texturing.measurement import TextureMeasurement, measure_texture
from sdslab.exemplar_texturing.mode_stage import mode_texture
from sdslab.exemplar_texturing.pyramid import (
    LEVELS,
    PLAIN_SDS,
    STAGE_ONE,
    ExemplarConfig,
    ExemplarPyramid,
    Reached,
)
from sdslab.exemplar_texturing.triplanar import triplanar
from sdslab.files.disk_cache import content_hash
from sdslab.meshes.material import dilate_seams
from sdslab.meshes.mesh_io import load_mesh
from sdslab.optimization.material_optimization import optimize_material
from sdslab.rendering.backends import make_backend
from sdslab.rendering.cameras import six_views
from sdslab.rendering.preview import Previewer, contact_sheet
from sdslab.rendering.renderer import Renderer
from sdslab.rendering.texels import covered_texels, texels_per_unit
from sdslab.runs.from_toml import Between, PowerOfTwo, Seeds
from sdslab.runs.table import Page, Table
from sdslab.shell.named_inputs import stem_of
from sdslab.study.experiment import Experiment, Finished, Given, Piece, Result, Step, file_stem

SHOWN_SIZE = 256  # of the pictures on the contact sheet
LEVELS_OF = {
    "mode": STAGE_ONE, "two_stages": LEVELS, "stage_one": STAGE_ONE, "plain_sds": PLAIN_SDS,
    "triplanar": LEVELS,
}  # fmt: skip
COLUMNS = {  # with their headings and digits
    "sliced_wasserstein": ("sliced Wasserstein", 3), "crop": ("a real crop's", 3),
    "gabor": ("Gabor", 3), "gabor_crop": ("a real crop's Gabor", 3),
    "contrast": ("contrast", 2), "gradient_energy": ("gradient energy", 2),
    "seam_jump": ("seam jump", 2), "core_seconds": ("core seconds", 1),
}  # fmt: skip
NOTE = (
    "Sliced Wasserstein: between 7 × 7 patches of views along the normal and of the photograph, in "
    "pixel values of [0, 1], mean over three scales. Contrast and gradient energy: over the "
    "photograph's; 1 is alike. Seam jump: the difference of colours across seams of the atlas over "
    "that across other edges of the same faces, two texels from them; a projection, which knows no "
    "seams, has 1 to 1.1."
)


@dataclass(frozen=True)
class MeshSettings:
    """What every row shares."""

    meshes: tuple[str, ...]
    """Files, or built-in meshes."""
    photos: tuple[str, ...]
    """Files, or names of the photographs that scikit-image ships."""
    seeds: Annotated[tuple[int, ...], Seeds(40)]
    """Seeds of views and noise."""
    texture_size: Annotated[int, PowerOfTwo(32, 8192)] = 1024
    """Height and width of the maps."""
    scale: Annotated[float, Between(0.01, 100)] = 1.5
    """World size of a photo's height; an object's largest extent is 2."""
    steps: int | None = None
    """Steps of each level, in place of its own."""
    device: str = "cpu"
    """"auto" is cuda where there is one."""
    up: Literal["x", "-x", "y", "-y", "z", "-z"] | None = None
    """Which axis of the mesh files points up; None is y."""
    out: str = "figures"
    """Folder for the results."""


@dataclass(frozen=True)
class Method:
    """One way of texturing a mesh like a photograph."""

    name: str
    label: str
    method: Literal["mode", "two_stages", "stage_one", "triplanar", "plain_sds"]
    """Stage II as the mode, by SR-SDS, or none; projected; one scale, fresh noise, random t."""
    orient: Literal["up", "free", "flow"] = "up"
    """Where the photo's up points."""


@dataclass(frozen=True)
class MeshStudy:
    """A parsed study file with one preset applied."""

    name: str
    title: str
    preset: str
    settings: MeshSettings
    methods: tuple[Method, ...]


@final
class ExemplarMeshes(Experiment):
    """Textures every mesh like every photograph by every method, from every seed."""

    study_class = MeshStudy
    options = ("image", "mesh", "seeds")
    sources = (
        "denoisers", "diffusion_space.py", "distillation", "exemplar_texturing", "kernels",
        "meshes", "optimization", "parameterizations", "pictures", "rendering",
        "study/exemplar_mesh.py",
    )  # fmt: skip
    study: MeshStudy

    def __init__(self, study: MeshStudy, only: tuple[str, ...], device: torch.device) -> None:
        super().__init__(study, only, device)
        self.photos = {name: load_exemplars([name]) for name in study.settings.photos}
        self.renderer = cache(self._load)  # a mesh is loaded, and unwrapped, once

    def pieces(self) -> list[Piece]:
        settings, methods = self.study.settings, self.chosen(self.study.methods)
        jobs = itertools.product(settings.meshes, settings.photos, methods, settings.seeds)
        return [self._piece(*job) for job in jobs]

    def _piece(self, mesh: str, photo: str, method: Method, seed: int) -> Piece:
        settings, loaded = self.study.settings, self.renderer(mesh)[0].mesh
        numeric = {n: v for n, v in asdict(method).items() if n not in ("name", "label")}
        common = {n: getattr(settings, n) for n in ("texture_size", "scale", "steps")}
        key = content_hash(
            numeric, seed, {"device": self.device_name, **common},
            loaded.render_positions, loaded.faces, loaded.uv,
            self.photos[photo].exemplars[0].channels,
        )[:16]  # fmt: skip
        return Piece(
            f"{stem_of(mesh)} {stem_of(photo)} {method.name} seed {seed}",
            method.name,
            partial(self._texture, mesh, photo, method, seed),
            (mesh, photo, method, seed),
            stem=f"{file_stem(f'{stem_of(mesh)}-{stem_of(photo)}')}-{method.name}-{seed}",
            key=key,
        )

    def _load(self, mesh: str) -> tuple[Renderer, Tensor]:
        """The mesh's renderer, and the texels that a face covers, [size, size] bool."""
        size = self.study.settings.texture_size
        loaded = load_mesh(mesh, "auto", lambda _: None, up=self.study.settings.up)
        on_cpu = make_backend("cpu", torch.device("cpu"))
        covered = covered_texels(loaded, (size, size), on_cpu)
        return Renderer(loaded, make_backend("auto", self.device), self.device), covered

    def _texture(
        self, mesh: str, photo: str, method: Method, seed: int, _: Given
    ) -> Iterator[Step | Result]:
        """Textures a mesh; the seconds do not count loading it."""
        renderer, covered = self.renderer(mesh)
        exemplars, settings = self.photos[photo], self.study.settings
        density = texels_per_unit(renderer.mesh, covered)
        wall, cores = time.perf_counter(), time.process_time()
        size = settings.texture_size
        config = ExemplarConfig(
            scale=settings.scale,
            orient=method.orient,
            texture_size=size,
            steps=settings.steps,
            seed=seed,
        )
        levels = LEVELS_OF[method.method]
        pyramid = ExemplarPyramid.of(renderer, covered, exemplars, config, levels)
        maps = pyramid.grey()
        if method.method == "triplanar":
            maps = triplanar(renderer.mesh, maps, exemplars, settings.scale, density)
        else:
            reached = Reached(0, maps, maps)
            while reached.level < len(pyramid.levels):
                yield Step(reached.level, pyramid.levels[reached.level].name)
                problem = pyramid.problem(reached)
                for _step in optimize_material(problem):
                    pass
                reached = pyramid.finish(reached, problem)
            maps = reached.maps
            if method.method == "mode":
                maps = mode_texture(pyramid, dilate_seams(maps, covered.to(torch.bool)))
        maps = dilate_seams(maps, covered.to(torch.bool))
        seconds = {
            "seconds": time.perf_counter() - wall,
            "core_seconds": time.process_time() - cores,
        }
        # All methods are measured at the finest pictures that two stages are guided by.
        measurement = measure_texture(
            renderer, maps, exemplars, settings.scale, pyramid.pixels_per_unit, density
        )
        shown = Renderer(renderer.mesh, renderer.backend, self.device, supersampling=2)
        front = six_views(renderer.bounding_radius)[0:1]
        picture = Previewer(shown, None, SHOWN_SIZE).picture(front, maps)[0]
        yield Result({"picture": picture}, {"measurement": asdict(measurement), **seconds})

    def rows(self, piece: Piece, result: Result) -> list[dict[str, Any]]:
        (mesh, photo, method, seed), numbers = piece.about, result.numbers
        return [
            {
                "mesh": stem_of(mesh),
                "photo": stem_of(photo),
                "method": method.name,
                "seed": seed,
                **asdict(TextureMeasurement(**numbers["measurement"])),
                "seconds": numbers["seconds"],
                "core_seconds": numbers["core_seconds"],
            }
        ]

    def line(self, finished: Finished) -> str:
        (row,) = finished.rows
        score, spent = row["sliced_wasserstein"], row["core_seconds"]
        return f"sliced Wasserstein {score:.3f}, {spent:.1f} core seconds"

    def page(self, finished: list[Finished]) -> Page:
        """One line per mesh, photograph and method: mean ± standard deviation over the seeds."""
        study, settings = self.study, self.study.settings
        labels = {method.name: method.label for method in study.methods}
        groups: dict[tuple[str, str, str], list[dict[str, Any]]] = {}
        for done in finished:
            row = done.rows[0]
            groups.setdefault((row["mesh"], row["photo"], row["method"]), []).append(row)
        lines = [
            [mesh, photo, labels[method]]
            + [
                _spread([row[name] for row in group], digits)
                for name, (_, digits) in COLUMNS.items()
            ]
            for (mesh, photo, method), group in groups.items()
        ]
        head = (
            f"{self.device_name}; preset {study.preset}; {settings.texture_size}² texels; seeds "
            f"{', '.join(map(str, settings.seeds))}: mean ± standard deviation."
        )
        headings = [heading for heading, _ in COLUMNS.values()]
        return Page(study.title, [head, Table(["mesh", "photo", "method", *headings], lines), NOTE])

    def draw(self, finished: list[Finished], path: Path) -> None:
        settings = self.study.settings
        sheet = []
        for mesh, photo in itertools.product(settings.meshes, settings.photos):
            row = [(f"{stem_of(photo)}: the photo", _square(self.photos[photo]))]
            for done in finished:
                own_mesh, own_photo, method, seed = done.piece.about
                if (own_mesh, own_photo, seed) == (mesh, photo, settings.seeds[0]):
                    label = f"{stem_of(mesh)}, {method.label}"
                    row.append((label, done.result.tensors["picture"]))
            sheet.append(row)
        contact_sheet(sheet, None, path)


def _square(exemplars: ExemplarSet) -> Tensor:
    """The photograph as large as the other pictures, [3, h, h]."""
    picture = exemplars.exemplars[0].channels[None]
    side = min(picture.shape[-2:])
    size = (SHOWN_SIZE, SHOWN_SIZE)
    return F.interpolate(picture[..., :side, :side], size=size, mode="bilinear", antialias=True)[0]


def _spread(values: Sequence[float | None], digits: int) -> str:
    known = [value for value in values if value is not None and not np.isnan(value)]
    if len(known) < 2:
        return f"{known[0]:.{digits}f}" if known else ""
    return f"{np.mean(known):.{digits}f} ± {np.std(known, ddof=1):.{digits}f}"
