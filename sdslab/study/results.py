"""A study's numbers: one row per (cell, image, seed, read-out), and their table of means."""

import math
from dataclasses import dataclass

import pandas as pd

from sdslab.study.reconstruct import CellResult
from sdslab.study.specification import Cell, Study

COLUMNS = (
    "diffusion", "parameterization", "readout", "image", "seed", "psnr_db", "psnr_clamped_db",
    "latent_mse", "vae_ceiling_db", "paper_psnr_db", "steps", "seconds", "cell", "latent_mse_start",
)  # fmt: skip
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
    lines = []
    for cell in study.cells:
        of_cell = rows[rows["cell"] == cell.name]
        for readout in of_cell["readout"].unique():
            group = of_cell[of_cell["readout"] == readout]
            paper = cell.paper_psnr_db.get(readout)
            mean = group["psnr_db"].mean()
            lines.append(
                {
                    "diffusion": cell.diffusion,
                    "θ": cell.label,
                    "read-out": READOUT_LABELS[readout],
                    "PSNR, dB": _mean_and_spread(group["psnr_db"]),
                    "clamped": _mean_and_spread(group["psnr_clamped_db"]),
                    "VAE ceiling": _number(group["vae_ceiling_db"].mean(), ".2f"),
                    "latent MSE": _number(group["latent_mse"].mean(), ".1e"),
                    "paper": _number(paper, ".2f"),
                    "difference": _number(mean - paper if paper else None, "+.2f"),
                    "steps": _number(group["steps"].mean(), ".0f"),
                    "seconds": _number(group["seconds"].mean(), ".1f"),
                }
            )
    return pd.DataFrame(lines)


def markdown_of(study: Study, table: pd.DataFrame, notes: list[str]) -> str:
    """The table as a Markdown page."""
    lines = [
        " | ".join(map(str, row)) for row in [table.columns, ["---"] * len(table.columns)]
    ] + [" | ".join(map(str, row)) for row in table.itertuples(index=False)]
    body = "\n".join(f"| {line} |" for line in lines)
    return f"# {study.title}\n\n{body}\n\n" + "\n".join(f"{note}  " for note in notes) + "\n"


def notes_of(study: Study, device: str) -> list[str]:
    """What one must know to read the table."""
    settings = study.settings
    return [
        f"Mean ± standard deviation over {', '.join(settings.images)} at {settings.size}² and "
        f"seed {', '.join(map(str, settings.seeds))}; VAE {settings.vae}, {settings.dtype}, preset "
        f"{study.preset}, on {device}.",
        "PSNR of the picture as it is; “clamped” after clamping it to [0, 1]. VAE ceiling: PSNR of "
        "dec(enc(x*)). Latent MSE: of z against enc(x*), in scaled latents.",
        "RGB pixels under pixel diffusion end at float32's floor: z = 2θ − 1 rounds, so a whole "
        "interval of θ around x* has the optimal z, and the gradient there is exactly zero. "
        "--dtype float64 moves the floor past 300 dB.",
    ]


def _mean_and_spread(values: pd.Series) -> str:
    mean = values.mean()
    if not math.isfinite(mean):
        return str(mean)
    return f"{mean:.2f} ± {values.std():.2f}" if len(values) > 1 else f"{mean:.2f}"


def _number(value: float | None, form: str) -> str:
    return "" if value is None or math.isnan(value) else f"{value:{form}}"
