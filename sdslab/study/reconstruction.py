"""The study of Figure 2: what SDS recovers of an image, by diffusion space and parameterization."""

import dataclasses
import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal, final

import numpy as np
import torch

from sdslab.diffusion_space import LatentSpace
from sdslab.errors import UserError, one_line
from sdslab.files.disk_cache import content_hash
from sdslab.pictures.image_io import load_image
from sdslab.runs.from_toml import Between, Different, Seeds, check_keys
from sdslab.runs.table import Page, Table
from sdslab.shell.named_inputs import stem_of
from sdslab.study import reconstruct
from sdslab.study.experiment import (
    Experiment,
    Finished,
    Given,
    Piece,
    Result,
    Step,
    file_stem,
    save_figure,
)
from sdslab.study.own_objects import sources_of
from sdslab.study.reconstruct import Cell, CellProgress, Problem
from sdslab.study.reconstruction_figures import (
    READOUT_LABELS,
    convergence_figure,
    reconstruction_figure,
)

# What a cell looks like in a table; its numbers do not depend on it.
PRESENTATION = ("name", "label", "pictured", "paper_psnr_db")
COLUMNS = (
    "diffusion", "θ", "read-out", "PSNR, dB", "clamped", "VAE ceiling", "latent MSE", "paper",
    "difference", "steps", "seconds", "--only",
)  # fmt: skip
# Where a terminal is narrow, the first goes first.
EXPENDABLE = (
    "--only", "seconds", "steps", "latent MSE", "clamped", "difference", "VAE ceiling", "paper",
    "PSNR, dB",
)  # fmt: skip


@dataclass(frozen=True)
class Settings:
    """What a study runs on; presets and command-line options replace single fields."""

    images: Annotated[tuple[str, ...], Different("pictures")]
    """Files, or names of the photographs that scikit-image ships."""
    seeds: Annotated[tuple[int, ...], Seeds(64)]
    """Seeds of the initial θ and of the noise."""
    size: Annotated[int, Between(1, 8192)]
    """Height and width of the image, in pixels."""
    vae: str = "shipped"
    """"shipped", "sd", "taesd", a local folder or a hub id."""
    dtype: Literal["float32", "float64"] = "float32"
    """Precision of θ, the VAE and the gradient."""
    device: str = "cpu"
    """"auto" is cuda where there is one."""
    out: str = "figures"
    """Folder for the results."""


@dataclass(frozen=True)
class Study:
    """A parsed study file with one preset applied."""

    name: str
    title: str
    preset: str
    settings: Settings
    cells: tuple[Cell, ...]


@final
class Reconstruction(Experiment):
    """Recovers every image by every cell, from every seed."""

    study_class = Study
    options = ("image", "size", "vae", "steps", "seeds", "dtype")
    sources = (
        "denoisers", "diffusion_space.py", "distillation", "kernels",
        "optimization", "parameterizations", "pictures", "study/reconstruct.py",
    )  # fmt: skip
    packages = ("torch", "diffusers")
    store = "cells"
    study: Study

    def __init__(self, study: Study, only: tuple[str, ...], device: torch.device) -> None:
        super().__init__(study, only, device)
        self.study = study = dataclasses.replace(study, cells=tuple(self.chosen(study.cells)))
        settings = study.settings
        dtype = getattr(torch, settings.dtype)
        self.images = {
            name: load_image(name, settings.size).to(device, dtype) for name in settings.images
        }
        self.vae = None
        if any(cell.diffusion == "latent" for cell in study.cells):
            self.vae = LatentSpace.load(settings.vae, device, dtype)
        for cell in study.cells:
            reconstruct.check_cell(cell, settings.size, self.vae)

    @staticmethod
    def finish_study(study: Study, where: str, load: Callable[[str], Any]) -> Study:
        """Refuses cells that make no sense."""
        del load
        for cell in study.cells:
            place = f"{where}: cells.{cell.name}"
            if cell.parameterization == "latent" and cell.diffusion == "pixel":
                raise UserError(f"{place}: a latent parameterization needs diffusion = 'latent'")
            ours = cell.parameterization in ("pixel", "latent")
            if ours == (cell.initialization == "network"):
                raise UserError(
                    f"{place}: initialization must be 'grey', 'noise' or 'image' for pixel and "
                    f"latent and 'network' otherwise, got {cell.initialization!r}"
                )
            if cell.named[1:] != ("exact", "sds") and cell.noise == "cancelled":
                raise UserError(
                    f"{place}: noise must be 'sampled' where the denoiser or the objective is "
                    f"one's own, got 'cancelled', which is for Eq. 3 under Eq. 1"
                )
            check_keys(cell.paper_psnr_db, READOUT_LABELS, f"{place}.paper_psnr_db")
        return study

    @staticmethod
    def with_steps(study: Study, steps: int) -> Study:
        """The study whose every cell takes so many steps."""
        return dataclasses.replace(
            study, cells=tuple(reconstruct.with_steps(cell, steps) for cell in study.cells)
        )

    def pieces(self) -> list[Piece]:
        vae = self.vae
        self.problems = [Problem.of(name, image, vae) for name, image in self.images.items()]
        digest = content_hash(*vae.vae.state_dict().values(), vae.scale, vae.shift) if vae else None
        return [
            Piece(
                f"{cell.name} {stem_of(problem.image_name)} seed {seed}",
                cell.name,
                partial(self._run, cell, problem, seed),
                (cell, problem.image_name, seed),
                cell.optimization.steps,
                stem=f"{cell.name}-{file_stem(problem.image_name)}-{seed}",
                key=cell_key(
                    cell,
                    image=content_hash(problem.image),
                    seed=seed,
                    device=self.device_name,
                    vae=digest if cell.diffusion == "latent" else None,
                ),
            )
            for cell, problem, seed in itertools.product(
                self.study.cells, self.problems, self.study.settings.seeds
            )
        ]

    def _run(
        self, cell: Cell, problem: Problem, seed: int, given: Given
    ) -> Iterator[Step | Result]:
        saved = given.saved
        progress = CellProgress(saved.tensors, saved.state) if saved else CellProgress()
        return reconstruct.run_cell(cell, problem, seed, progress)

    def rows(self, piece: Piece, result: Result) -> list[dict[str, Any]]:
        cell, image_name, seed = piece.about
        return rows_of_cell(cell, image_name, seed, result)

    def line(self, finished: Finished) -> str:
        numbers = finished.result.numbers
        psnr, steps = numbers["psnr"]["theta"][0], numbers["steps"]
        return f"{psnr:.2f} dB after {steps} steps, {numbers['seconds']:.1f} s"

    def metrics(self, finished: list[Finished]) -> dict[str, Any]:
        """The mean PSNR of each cell's read-outs over images and seeds."""
        rows = [row for done in finished for row in done.rows]
        return {
            cell: {
                f"{name}_psnr_db": sum(row["psnr_db"] for row in group) / len(group)
                for (_, name), group in _grouped(rows).items()
                if group[0]["cell"] == cell
            }
            for cell in dict.fromkeys(row["cell"] for row in rows)
        }

    def details(self, finished: list[Finished]) -> dict[str, Any]:
        curves = []
        for done in finished:
            cell, image, seed = done.piece.about
            curve = done.result.numbers["curve"]
            curves.append({"cell": cell.name, "image": image, "seed": seed, "curve": curve})
        return {"curves": curves}

    def page(self, finished: list[Finished]) -> Page:
        table = table_of(self.study, [row for done in finished for row in done.rows])
        notes = notes_of(self.study, self.device_name)
        return Page(self.study.title, [table, "\n".join(f"{note}  " for note in notes)])

    def draw(self, finished: list[Finished], path: Path) -> None:
        figure = reconstruction_figure(self.study.cells, self.problems, finished)
        save_figure(figure, path, path.with_suffix(".pdf"))
        figure = convergence_figure(self.study.cells, finished)
        stem = path.with_suffix(".convergence")
        save_figure(figure, Path(f"{stem}.png"), Path(f"{stem}.pdf"))


def cell_key(cell: Cell, **inputs: Any) -> str:
    """The key of a cell: its numeric settings and ``inputs`` (digests, seed, device)."""
    settings = dataclasses.asdict(cell)
    for name in PRESENTATION:
        del settings[name]
    for name, default in (("denoiser", "exact"), ("objective", "sds")):
        if settings[name] == default:
            del settings[name]  # keys are as they were when there was no other
    if sources := sources_of(cell.named):
        inputs["own"] = sources
    settings["optimization"] = {  # JSON has no infinity
        name: str(value) for name, value in settings["optimization"].items()
    }
    return content_hash(settings, inputs)[:16]


def rows_of_cell(cell: Cell, image_name: str, seed: int, result: Result) -> list[dict[str, Any]]:
    """A row for each read-out; what does not apply is NaN."""
    numbers = result.numbers
    known = {name: _or_nan(numbers[name]) for name in ("latent_mse", "vae_ceiling_db")}
    return [
        {
            "diffusion": cell.diffusion,
            "parameterization": cell.parameterization,
            "readout": name,
            "image": image_name,
            "seed": seed,
            "psnr_db": psnr,
            "psnr_clamped_db": clamped,
            **known,
            "paper_psnr_db": cell.paper_psnr_db.get(name, math.nan),
            "steps": numbers["steps"],
            "seconds": round(numbers["seconds"], 3),
            "cell": cell.name,
            "latent_mse_start": _or_nan(numbers["latent_mse_start"]),
        }
        for name, (psnr, clamped) in numbers["psnr"].items()
    ]


def table_of(study: Study, rows: Sequence[dict[str, Any]]) -> Table:
    """Means over images and seeds: one line per cell and read-out, in study order."""
    cells = {cell.name: cell for cell in study.cells}
    lines = []
    for (name, readout), group in _grouped(rows).items():
        cell = cells[name]

        def mean(column: str, group: list[dict[str, Any]] = group) -> float:
            return float(np.mean([row[column] for row in group]))

        lines.append(
            (
                cell.diffusion,
                cell.label,
                READOUT_LABELS[readout],
                _mean_and_spread(np.array([row["psnr_db"] for row in group])),
                _mean_and_spread(np.array([row["psnr_clamped_db"] for row in group])),
                _number(mean("vae_ceiling_db"), ".2f"),
                _number(mean("latent_mse"), ".1e"),
                _number(mean("paper_psnr_db"), ".2f"),
                _number(mean("psnr_db") - mean("paper_psnr_db"), "+.2f"),
                _number(mean("steps"), ".0f"),
                _number(mean("seconds"), ".1f"),
                name,
            )
        )
    return Table(COLUMNS, lines, ("θ", "read-out", "--only"), EXPENDABLE, grouped=True)


def notes_of(study: Study, device: str) -> list[str]:
    """What one must know to read the table."""
    settings = study.settings
    images = ", ".join(map(one_line, settings.images))
    notes = [
        f"Mean ± standard deviation over {images} at {settings.size}² and seed "
        f"{', '.join(map(str, settings.seeds))}; VAE {settings.vae}, {settings.dtype}, preset "
        f"{study.preset}, on {device}.",
        "PSNR of the picture as it is; clamped: after clamping it to [0, 1]. VAE ceiling: PSNR of "
        "dec(enc(x*)). Latent MSE: of z against enc(x*), in scaled latents.",
    ]
    if settings.dtype == "float32" and any(
        cell.diffusion == cell.parameterization == "pixel" for cell in study.cells
    ):
        notes.append(
            "RGB pixels in pixel space, given enough steps, end at float32's floor: near x* the "
            "learning rate times the gradient is less than half of θ's last binary place, so that "
            "θ − that rounds to θ. "
            "--dtype float64 moves the floor past 300 dB."
        )
    return notes


def _grouped(rows: Sequence[dict[str, Any]]) -> dict[tuple[str, str], list[dict[str, Any]]]:
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["cell"], row["readout"]), []).append(row)
    return groups


def _or_nan(value: float | None) -> float:
    return math.nan if value is None else value


def _mean_and_spread(psnr: np.ndarray) -> str:
    mean = psnr.mean()
    if not math.isfinite(mean):
        return str(mean)
    return f"{mean:.2f} ± {psnr.std(ddof=1):.2f}" if len(psnr) > 1 else f"{mean:.2f}"


def _number(value: float, form: str) -> str:
    return f"{value:{form}}" if math.isfinite(value) else ""
