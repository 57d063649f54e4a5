"""The exemplar study's pictures: a contact sheet, and how far SDS collapses."""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from PIL import Image
from torch import Tensor

from sdslab.files.atomic_write import atomic_write
from sdslab.shell.named_inputs import stem_of
from sdslab.study.exemplar_methods import FACTOR, ExemplarCase, Photo

CELL = 144  # pixels of the sheet
CAPTION, TITLE = 16, 44  # pixels of height
DPI = 160
POLICY_LABELS = {
    ("fresh", "random"): "fresh ε,\nrandom t",
    ("fresh", "annealed"): "fresh ε,\nannealed t",
    ("fixed", "random"): "fixed ε,\nrandom t",
    ("fixed", "annealed"): "fixed ε,\nannealed t",
}
MEASURES = (
    ("sliced_wasserstein", "sliced Wasserstein distance"),
    ("contrast", "contrast / photograph's"),
)
PictureOf = tuple[ExemplarCase, Tensor, Mapping[str, Any]]
"""A case, its picture [1, 3, h, h] and its row."""
Sweeps = Mapping[str, tuple[str, ExemplarCase]]
"""The parameter and the case that a sweep varies, by name."""


def contact_sheet(
    photos: Mapping[str, Photo], shown: Mapping[tuple[str, str], PictureOf], path: Path
) -> None:
    """A row per photograph, a column per case; nothing if there is none.

    All show the middle at one scale: a small picture's pixel is as large as 4 × 4 of an enlarged
    one's. Below each is its sliced Wasserstein distance.

    Args:
        photos: by name.
        shown: pictures by case and photograph.
        path: to write.
    """
    cases = list({case.name: case for case, *_ in shown.values()}.values())
    if not cases:
        return
    width, height = CELL * (1 + len(cases)), TITLE + (CELL + CAPTION) * len(photos)
    figure = plt.figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    for number, (name, photo) in enumerate(photos.items()):
        pictures = [(_cell(photo.shrunk(FACTOR), FACTOR), textwrap.shorten(stem_of(name), 20))]
        for case in cases:
            _, picture, row = shown[case.name, name]
            pixels = _cell(picture, 1 if case.is_large else FACTOR)
            pictures.append((pixels, f"{row['sliced_wasserstein']:.3f}"))
        for column, (pixels, caption) in enumerate(pictures):
            bottom = height - TITLE - (CELL + CAPTION) * number - CELL
            place = (column * CELL / width, bottom / height, CELL / width, CELL / height)
            ax = figure.add_axes(place)
            ax.set_axis_off()
            ax.imshow(pixels, interpolation="nearest")
            middle = ((column + 0.5) * CELL / width, (bottom - 2) / height)
            figure.text(*middle, caption, ha="center", va="top", fontsize=5, parse_math=False)
    titles = ["photograph", *(textwrap.fill(case.label, 18) for case in cases)]
    for column, title in enumerate(titles):
        middle = ((column + 0.5) * CELL / width, 1 - (TITLE - 4) / height)
        figure.text(*middle, title, ha="center", va="bottom", fontsize=5, parse_math=False)
    figure.canvas.draw()
    sheet = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy())  # pyright: ignore[reportAttributeAccessIssue]
    plt.close(figure)
    with atomic_write(path) as temporary:
        sheet.quantize(256).save(temporary, optimize=True)  # a palette: a third of the size


def _cell(picture: Tensor, times: int) -> np.ndarray:
    """The middle of a picture [1, 3, h, h] that fills a cell when enlarged so many times."""
    side = picture.shape[-1]
    kept = min(side, CELL // times)
    first = (side - kept) // 2
    middle = picture[0, :, first : first + kept, first : first + kept]
    return middle.movedim(0, -1).clamp(0, 1).cpu().numpy()


def mode_seeking_figure(
    cases: Sequence[ExemplarCase], sweeps: Sweeps, given: Sequence[Mapping[str, Any]]
) -> Figure | None:
    """Collapse against the noise policy and each sweep's parameter; None if none was run."""
    rows: Any = pd.DataFrame(given)
    own = rows[rows["sweep"].isna()]
    policies = [case for case in cases if case.method == "sds" and (own["case"] == case.name).any()]
    run = {name: sweep for name, sweep in sweeps.items() if (rows["sweep"] == name).any()}
    known = {parameter for parameter, _ in run.values()}
    parameters = [parameter for parameter in ("guidance", "temperature") if parameter in known]
    columns = [*(["policy"] if policies else []), *parameters]
    if not columns:
        return None
    figure, axes = plt.subplots(
        2, len(columns), figsize=(3.4 * len(columns), 4.6), squeeze=False, layout="constrained",
        sharey="row",
    )  # fmt: skip
    for ax_row, (measure, label) in zip(axes, MEASURES, strict=True):
        ax_row[0].set_ylabel(label)
        for ax, column in zip(ax_row, columns, strict=True):
            if column == "policy":
                _bars(ax, policies, own, measure)
            else:
                _curves(ax, run, column, rows, measure)
            if measure == "contrast":
                ax.axhline(1, color="grey", ls=":")
            ax.grid(alpha=0.3)
    crops = own[own["case"] == "crop"]["sliced_wasserstein"]
    if len(crops):
        for ax in axes[0]:
            ax.axhline(crops.mean(), color="grey", ls=":", label="a real crop")
    if axes[0][-1].get_legend_handles_labels()[0]:
        axes[0][-1].legend(fontsize=8)
    return figure


def _bars(ax: Axes, policies: list[ExemplarCase], cases: Any, measure: str) -> None:
    """The mean over photographs and seeds of each policy, with a dot for each photograph."""
    for place, case in enumerate(policies):
        own = cases[cases["case"] == case.name]
        ax.bar(place, own[measure].mean(), color="C0" if case.noise == "fresh" else "C1", alpha=0.7)
        dots = own.groupby("photo")[measure].mean()
        ax.plot([place] * len(dots), dots, "k.", markersize=3)
    labels = [POLICY_LABELS[case.noise, case.timesteps] for case in policies]
    ax.set_xticks(range(len(policies)), labels, fontsize=7)


def _curves(ax: Axes, sweeps: Sweeps, parameter: str, rows: Any, measure: str) -> None:
    """The mean over photographs and seeds against the parameter, with the range of photographs."""
    for name, (varied, case) in sweeps.items():
        own = rows[rows["sweep"] == name]
        if varied != parameter:
            continue
        table = own.groupby(["value", "photo"])[measure].mean().unstack()
        color = "C0" if case.noise == "fresh" else "C1"
        label = POLICY_LABELS[case.noise, case.timesteps].replace("\n", " ")
        ax.plot(table.index, table.mean(axis=1), "o-", color=color, label=label, markersize=3)
        ax.fill_between(table.index, table.min(axis=1), table.max(axis=1), color=color, alpha=0.15)
    if parameter == "temperature":
        ax.set_xscale("log")
        ax.set_xlabel("temperature T of the posterior")
    else:
        ax.set_xscale("symlog", linthresh=1)
        ax.set_xlabel("guidance weight w, by tag")
