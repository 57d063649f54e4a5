"""The exemplar study's pictures: a contact sheet, and how far SDS collapses."""

import textwrap
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from PIL import Image
from torch import Tensor

from sdslab.files.atomic_write import atomic_write
from sdslab.shell.named_inputs import stem_of
from sdslab.study.exemplar_methods import Photo
from sdslab.study.exemplar_results import Finished
from sdslab.study.exemplar_specification import FACTOR, ExemplarCase, ExemplarStudy
from sdslab.study.plots import close_figure, save_figure

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


def save_contact_sheet(
    study: ExemplarStudy, photos: dict[str, Photo], finished: list[Finished], path: Path
) -> None:
    """A row per photograph, a column per pictured case of the first seed; nothing if there is none.

    All show the middle at one scale: a small picture's pixel is as large as 4 × 4 of an enlarged
    one's. Below each is its sliced Wasserstein distance.
    """
    shown = {
        (item.case.name, item.photo): item
        for item in finished
        if item.sweep is None and item.case.pictured and item.seed == study.settings.seeds[0]
    }
    cases = [case for case in study.cases if any(name == case.name for name, _ in shown)]
    if not cases:
        return
    names = study.settings.photos
    width, height = CELL * (1 + len(cases)), TITLE + (CELL + CAPTION) * len(names)
    figure = plt.figure(figsize=(width / DPI, height / DPI), dpi=DPI)
    for row, name in enumerate(names):
        small = photos[name].shrunk(FACTOR)
        pictures = [(_cell(small, FACTOR), textwrap.shorten(stem_of(name), 20))]
        for case in cases:
            item = shown[case.name, name]
            pixels = _cell(item.picture, 1 if case.is_large else FACTOR)
            pictures.append((pixels, f"{item.scores.sliced_wasserstein:.3f}"))
        for column, (pixels, caption) in enumerate(pictures):
            bottom = height - TITLE - (CELL + CAPTION) * row - CELL
            place = (column * CELL / width, bottom / height, CELL / width, CELL / height)
            ax = figure.add_axes(place)
            ax.set_axis_off()
            ax.imshow(pixels, interpolation="nearest")
            middle = ((column + 0.5) * CELL / width, (bottom - 2) / height)
            figure.text(*middle, caption, ha="center", va="top", fontsize=5, parse_math=False)
    for column, title in enumerate(["photograph", *(_title(case) for case in cases)]):
        middle = ((column + 0.5) * CELL / width, 1 - (TITLE - 4) / height)
        figure.text(*middle, title, ha="center", va="bottom", fontsize=5, parse_math=False)
    figure.canvas.draw()
    sheet = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())[..., :3].copy())  # pyright: ignore[reportAttributeAccessIssue]
    close_figure(figure)
    with atomic_write(path) as temporary:
        sheet.quantize(256).save(temporary, optimize=True)  # a palette: a third of the size


def _title(case: ExemplarCase) -> str:
    return textwrap.fill(case.label, 18)


def _cell(picture: Tensor, times: int) -> np.ndarray:
    """The middle of a picture [1, 3, h, h] that fills a cell when enlarged so many times."""
    side = picture.shape[-1]
    kept = min(side, CELL // times)
    first = (side - kept) // 2
    middle = picture[0, :, first : first + kept, first : first + kept]
    return middle.movedim(0, -1).clamp(0, 1).cpu().numpy()


def save_mode_seeking(study: ExemplarStudy, rows: Any, path: Path) -> None:
    """Collapse against the noise policy and each sweep's parameter; nothing if none was run."""
    cases = rows[rows["sweep"].isna()]
    policies = [
        case for case in study.cases if case.method == "sds" and (cases["case"] == case.name).any()
    ]
    parameters = [
        parameter
        for parameter in ("guidance", "temperature")
        if any(s.parameter == parameter and (rows["sweep"] == s.name).any() for s in study.sweeps)
    ]
    columns = [*(["policy"] if policies else []), *parameters]
    if not columns:
        return
    figure, axes = plt.subplots(
        2, len(columns), figsize=(3.4 * len(columns), 4.6), squeeze=False, layout="constrained",
        sharey="row",
    )  # fmt: skip
    for ax_row, (measure, label) in zip(axes, MEASURES, strict=True):
        ax_row[0].set_ylabel(label)
        for ax, column in zip(ax_row, columns, strict=True):
            if column == "policy":
                _bars(ax, policies, cases, measure)
            else:
                _curves(ax, study, column, rows, measure)
            if measure == "contrast":
                ax.axhline(1, color="grey", ls=":")
            ax.grid(alpha=0.3)
    crops = cases[(cases["case"] == "crop")]["sliced_wasserstein"]
    if len(crops):
        for ax in axes[0]:
            ax.axhline(crops.mean(), color="grey", ls=":", label="a real crop")
    if axes[0][-1].get_legend_handles_labels()[0]:
        axes[0][-1].legend(fontsize=8)
    save_figure(figure, path)
    close_figure(figure)


def _bars(ax: Axes, policies: list[ExemplarCase], cases: Any, measure: str) -> None:
    """The mean over photographs and seeds of each policy, with a dot for each photograph."""
    for place, case in enumerate(policies):
        own = cases[cases["case"] == case.name]
        ax.bar(place, own[measure].mean(), color="C0" if case.noise == "fresh" else "C1", alpha=0.7)
        dots = own.groupby("photo")[measure].mean()
        ax.plot([place] * len(dots), dots, "k.", markersize=3)
    labels = [POLICY_LABELS[case.noise, case.timesteps] for case in policies]
    ax.set_xticks(range(len(policies)), labels, fontsize=7)


def _curves(ax: Axes, study: ExemplarStudy, parameter: str, rows: Any, measure: str) -> None:
    """The mean over photographs and seeds against the parameter, with the range of photographs."""
    for sweep in study.sweeps:
        own = rows[rows["sweep"] == sweep.name]
        if sweep.parameter != parameter or not len(own):
            continue
        case = study.case_named(sweep.case)
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
