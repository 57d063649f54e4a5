"""Finished cells on disk, each under a key of everything its numbers depend on."""

import dataclasses
import re
from pathlib import Path
from typing import Any

from sdslab.files.disk_cache import content_hash
from sdslab.runs.checkpoint import Checkpoints, OtherCodeError
from sdslab.shell.named_inputs import stem_of
from sdslab.study.reconstruct import CellResult, Readout
from sdslab.study.result_file import ResultFiles
from sdslab.study.specification import Cell

PACKAGE = Path(__file__).parents[1]
# Code whose change makes old cells stale. Plots and tables may change without a new run.
NUMERIC_SOURCES = (
    "denoisers", "diffusion_space.py", "distillation", "kernels",
    "optimization", "parameterizations", "pictures", "study/reconstruct.py",
)  # fmt: skip
# What a cell looks like in a table; its numbers do not depend on it.
PRESENTATION = ("name", "label", "pictured", "paper_psnr_db")


def code_of(sources: tuple[str, ...], **versions: str | None) -> dict[str, dict[str, Any]]:
    """What makes results, for `ResultFiles`: digests of source files, and packages' versions."""
    return {"code": {source: _digest(PACKAGE / source) for source in sources}, "versions": versions}


def _digest(source: Path) -> str:
    files = [source] if source.suffix else sorted(source.rglob("*.py"))
    texts = [[str(file.relative_to(PACKAGE)), file.read_text("utf-8")] for file in files]
    return content_hash(texts)


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
    """One file per finished (cell, image, seed)."""

    files: ResultFiles

    def path(self, cell: Cell, image_name: str, seed: int, key: str) -> Path:
        """Where a cell's result is kept."""
        name = re.sub(r"[^A-Za-z0-9_]+", "_", stem_of(image_name))[:40]
        return self.files.path(f"{cell.name}-{name}-{seed}", key)

    def partial(self, path: Path, key: str) -> Checkpoints:
        """Where a cell that runs keeps how far it is; whatever cannot go on there is removed."""
        files = self.files
        folder = path.with_name(path.stem.rpartition("-")[0])
        partial = Checkpoints(folder, {"cell": key, **files.code}, accept_code=files.accept_code)
        try:
            saved = None if files.fresh else partial.latest()
        except OtherCodeError as error:
            files.note(error.changes)
            saved = None
        if saved is None:
            partial.clear()
        elif saved.code_changes:
            files.note(saved.code_changes)
        return partial

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
        self.files.save(path, images, numbers)

    def load(self, path: Path) -> CellResult | None:
        """Reads a result back; None where there is none, or only a damaged one."""
        found = self.files.load(path)
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
