"""A study's numbers: one row per (cell, image, seed, read-out), and their table of means."""

import math
from dataclasses import dataclass
from typing import cast

import numpy as np
import pandas as pd

from sdslab.errors import one_line
from sdslab.study.reconstruct import CellResult
from sdslab.study.specification import Cell, Study

COLUMNS = (
    "diffusion", "parameterization", "readout", "image", "seed", "psnr_db", "psnr_clamped_db",
    "latent_mse", "vae_ceiling_db", "paper_psnr_db", "steps", "seconds", "cell", "latent_mse_start",
)  # fmt: skip
NUMBERS = (
    "psnr_db", "psnr_clamped_db", "vae_ceiling_db", "latent_mse", "paper_psnr_db", "steps",
    "seconds",
)  # fmt: skip
GROUP_TITLES = {"pixel": "diffusion in pixel space", "latent": "diffusion in VAE latent space"}
READOUT_LABELS = {"theta": "θ", "decoded": "dec(enc(θ))"}


@dataclass(frozen=True)
class Finished:
    """A cell's result with what it was for."""

    cell: Cell
    image_name: str
    seed: int
    result: CellResult


def rows_of(finished: list[Finished]) -> pd.DataFrame:
    """All numbers, in ``COLUMNS``; what does not apply is NaN."""
    return pd.DataFrame(
        [
            {
                "diffusion": item.cell.diffusion,
                "parameterization": item.cell.parameterization,
                "readout": name,
                "image": item.image_name,
                "seed": item.seed,
                "psnr_db": readout.psnr_db,
                "psnr_clamped_db": readout.psnr_clamped_db,
                "latent_mse": item.result.latent_mse,
                "vae_ceiling_db": item.result.vae_ceiling_db,
                "paper_psnr_db": item.cell.paper_psnr_db.get(name),
                "steps": item.result.steps,
                "seconds": round(item.result.seconds, 3),
                "cell": item.cell.name,
                "latent_mse_start": item.result.latent_mse_start,
            }
            for item in finished
            for name, readout in item.result.readouts.items()
        ],
        columns=list(COLUMNS),
    ).astype({"latent_mse": float, "vae_ceiling_db": float, "paper_psnr_db": float})


def table_of(study: Study, rows: pd.DataFrame) -> pd.DataFrame:
    """Means over images and seeds, formatted: one line per cell and read-out, in study order."""
    cells = {cell.name: cell for cell in study.cells}
    lines = []
    for key, group in rows.groupby(["cell", "readout"], sort=False):
        name, readout = cast(tuple[str, str], key)
        cell = cells[name]
        columns = {column: np.asarray(group[column], dtype=float) for column in NUMBERS}
        means = {column: values.mean() for column, values in columns.items()}
        lines.append(
            {
                "diffusion": cell.diffusion,
                "θ": cell.label,
                "read-out": READOUT_LABELS[readout],
                "PSNR, dB": _mean_and_spread(columns["psnr_db"]),
                "clamped": _mean_and_spread(columns["psnr_clamped_db"]),
                "VAE ceiling": _number(means["vae_ceiling_db"], ".2f"),
                "latent MSE": _number(means["latent_mse"], ".1e"),
                "paper": _number(means["paper_psnr_db"], ".2f"),
                "difference": _number(means["psnr_db"] - means["paper_psnr_db"], "+.2f"),
                "steps": _number(means["steps"], ".0f"),
                "seconds": _number(means["seconds"], ".1f"),
            }
        )
    return pd.DataFrame(lines)


def markdown_of(study: Study, table: pd.DataFrame, notes: list[str]) -> str:
    """The table as a Markdown page."""
    lines = [" | ".join(map(str, row)) for row in [table.columns, ["---"] * len(table.columns)]] + [
        " | ".join(map(str, row)) for row in table.itertuples(index=False)
    ]
    body = "\n".join(f"| {line} |" for line in lines)
    page = f"# {study.title}\n\n{body}\n\n" + "\n".join(f"{note}  " for note in notes) + "\n"
    return page.replace("*", r"\*")  # x* is no emphasis


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


def _mean_and_spread(psnr: np.ndarray) -> str:
    mean = psnr.mean()
    if not math.isfinite(mean):
        return str(mean)
    return f"{mean:.2f} ± {psnr.std(ddof=1):.2f}" if len(psnr) > 1 else f"{mean:.2f}"


def _number(value: float, form: str) -> str:
    return f"{value:{form}}" if math.isfinite(value) else ""
