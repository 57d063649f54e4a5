"""Finished cells on disk, each under a key of everything its numbers depend on."""

import dataclasses
import re
from pathlib import Path
from typing import Any

from sdslab.disk_cache import content_hash
from sdslab.study.reconstruct import CellResult, Readout
from sdslab.study.result_file import read_result, write_result
from sdslab.study.specification import Cell

PACKAGE = Path(__file__).parents[1]
# Code whose change makes old cells stale. Plots and tables may change without a new run.
NUMERIC_SOURCES = (
    "denoisers", "diffusion_space.py", "distillation", "image_io.py", "kernels", "metrics.py",
    "optimization", "parameterizations", "study/reconstruct.py",
)  # fmt: skip
# What a cell looks like in a table; its numbers do not depend on it.
PRESENTATION = ("name", "label", "pictured", "paper_psnr_db")


def code_digest(sources: tuple[str, ...] = NUMERIC_SOURCES) -> str:
    """SHA-256 of the package's numeric source files."""
    files = [
        file
        for source in sources
        for file in sorted(
            (PACKAGE / source).rglob("*.py") if "." not in source else [PACKAGE / source]
        )
    ]
    return content_hash(
        [[str(file.relative_to(PACKAGE)), file.read_text("utf-8")] for file in files]
    )


def cell_key(cell: Cell, **inputs: Any) -> str:
    """The key of a cell: its numeric settings and ``inputs`` (digests, seed, device, code)."""
    settings = dataclasses.asdict(cell)
    for name in PRESENTATION:
        del settings[name]
    settings["optimization"] = {  # JSON has no infinity
        name: str(value) for name, value in settings["optimization"].items()
    }
    return content_hash(settings, inputs)[:16]


@dataclasses.dataclass(frozen=True)
class CellStore:
    """A folder with one safetensors file per finished (cell, image, seed)."""

    folder: Path

    def path(self, cell: Cell, image_name: str, seed: int, key: str) -> Path:
        """Where a cell's result is kept."""
        name = re.sub(r"[^A-Za-z0-9_]+", "_", Path(image_name).stem)[:40]
        return self.folder / f"{cell.name}-{name}-{seed}-{key}.safetensors"

    def save(self, path: Path, result: CellResult) -> None:
        """Writes ``result``, whole or not at all."""
        numbers = {
            "latent_mse": result.latent_mse,
            "latent_mse_start": result.latent_mse_start,
            "vae_ceiling_db": result.vae_ceiling_db,
            "steps": result.steps,
            "seconds": result.seconds,
            "curve": result.curve,
            "psnr": {
                name: [readout.psnr_db, readout.psnr_clamped_db]
                for name, readout in result.readouts.items()
            },
        }
        images = {name: readout.image for name, readout in result.readouts.items()}
        write_result(path, images, numbers)

    def load(self, path: Path) -> CellResult | None:
        """Reads a result back; None where there is none, or only a damaged one."""
        found = read_result(path)
        if found is None:
            return None
        images, numbers = found
        try:
            psnr = numbers.pop("psnr")
            readouts = {name: Readout(images[name], *values) for name, values in psnr.items()}
            numbers["curve"] = [tuple(point) for point in numbers["curve"]]
            return CellResult(readouts=readouts, **numbers)
        except (KeyError, TypeError, ValueError):
            return None
