"""The exemplar study's finished pictures, and the tables of their scores."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
from torch import Tensor

from sdslab.errors import one_line
from sdslab.study.exemplar_scores import Scores
from sdslab.study.exemplar_specification import FACTOR, ExemplarCase, ExemplarStudy


@dataclass(frozen=True, eq=False)
class Finished:
    """A case's picture of one photograph and seed, [1, 3, h, h] in [0, 1], with its scores."""

    case: ExemplarCase
    photo: str
    seed: int
    picture: Tensor
    scores: Scores
    cpu_seconds: float
    seconds: float
    sweep: str | None = None
    value: float | None = None

    def numbers(self) -> dict[str, Any]:
        """A row of the tables."""
        return {
            "case": self.case.name,
            "photo": self.photo,
            "seed": self.seed,
            "size": self.picture.shape[-1],
            **asdict(self.scores),
            "cpu_seconds": round(self.cpu_seconds, 3),
            "seconds": round(self.seconds, 3),
            "steps": self.case.steps,
            "noise": self.case.noise,
            "timesteps": self.case.timesteps,
            "sweep": self.sweep,
            "value": self.value,
        }


def markdown_of(study: ExemplarStudy, rows: pd.DataFrame, device: str) -> str:
    """Means over photographs and seeds, case by case; then each photograph; then the sweeps."""
    settings = study.settings
    scores = ("sliced_wasserstein", "contrast", "gradient_energy", "fidelity", "completeness")
    cases: Any = rows[rows["sweep"].isna()]
    lines = [
        f"# {study.title}",
        "",
        f"Mean over {', '.join(map(one_line, settings.photos))} and seeds "
        f"{', '.join(map(str, settings.seeds))}; {device}, preset {study.preset}. Sliced "
        f"Wasserstein distance of 7 × 7 patches, fidelity and completeness are in pixel values of "
        f"[0, 1]; contrast and gradient energy are shares of the photograph's own. Pictures of "
        f"{settings.size}² are compared with the photograph at {settings.exemplar_size}², those of "
        f"{settings.size * FACTOR}² with it at {settings.exemplar_size * FACTOR}². Seconds are a "
        f"core's, and for an enlarged picture those of the enlargement alone.",
        "",
        "| picture | size | sliced Wasserstein | contrast | gradient energy | fidelity "
        "| completeness | core seconds |",
        "|" + " --- |" * 8,
    ]
    for case in study.cases:
        group = cases[cases["case"] == case.name]
        if len(group):
            means = [f"{group[name].mean():.3f}" for name in scores]
            size, spent = int(group["size"].iloc[0]), group["cpu_seconds"].mean()
            lines.append(
                f"| {case.label} | {size}² | {' | '.join(means)} | "
                + (f"{spent:.2f} |" if case.method not in ("crop", "bicubic") else "|")
            )
    lines += ["", "Sliced Wasserstein distance by photograph, mean over seeds:", ""]
    names = [one_line(photo).replace("|", "/") for photo in settings.photos]
    lines += [
        f"| picture | {' | '.join(names)} |",
        "|" + " --- |" * (1 + len(settings.photos)),
    ]
    for case in study.cases:
        group = cases[cases["case"] == case.name]
        if len(group):
            by_photo = [group[group["photo"] == photo] for photo in settings.photos]
            means = [f"{own['sliced_wasserstein'].mean():.3f}" for own in by_photo]
            lines.append(f"| {case.label}, {case_size(study, case)}² | {' | '.join(means)} |")
    for sweep in study.sweeps:
        swept: Any = rows[rows["sweep"] == sweep.name]
        if len(swept):
            lines += ["", *_sweep_table(study.case_named(sweep.case).label, sweep.parameter, swept)]
    return "\n".join(lines) + "\n"


def case_size(study: ExemplarStudy, case: ExemplarCase) -> int:
    """Height and width of a case's pictures."""
    return study.settings.size * (FACTOR if case.is_large else 1)


def _sweep_table(label: str, parameter: str, swept: Any) -> list[str]:
    means = swept.groupby("value")[["sliced_wasserstein", "contrast"]].mean()
    columns = " | ".join(f"{value:g}" for value in means.index)
    lines = [f"| {label}: {parameter} | {columns} |", "|" + " --- |" * (1 + len(means))]
    for name, title in (("sliced_wasserstein", "sliced Wasserstein"), ("contrast", "contrast")):
        values = np.asarray(means[name], dtype=float)
        lines.append(f"| {title} | {' | '.join(f'{value:.3f}' for value in values)} |")
    return lines
