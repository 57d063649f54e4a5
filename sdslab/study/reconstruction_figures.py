"""Reconstructions laid out like the paper's figure, and how they converge."""

import textwrap
from collections.abc import Sequence

import matplotlib.pyplot as plt
import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from torch import Tensor

from sdslab.shell.named_inputs import stem_of
from sdslab.study.experiment import Finished
from sdslab.study.reconstruct import Cell, Problem

GROUP_TITLES = {"pixel": "diffusion in pixel space", "latent": "diffusion in VAE latent space"}
READOUT_LABELS = {"theta": "θ", "decoded": "dec(enc(θ))"}


def reconstruction_figure(
    cells: Sequence[Cell], problems: Sequence[Problem], finished: Sequence[Finished]
) -> Figure:
    """A row per image: the original, then each pictured cell's read-outs with PSNR below.

    Of several seeds the first is shown.
    """
    columns = [
        (cell, readout) for cell in cells if cell.pictured for readout in _readouts(cell, finished)
    ]
    figure, axes = plt.subplots(
        len(problems),
        1 + len(columns),
        figsize=(1.55 * (1 + len(columns)), 1.75 * len(problems) + 0.45),
        squeeze=False,
        layout="constrained",
    )
    for row, problem in zip(axes, problems, strict=True):
        _show(row[0], problem.image, textwrap.shorten(stem_of(problem.image_name), 24))
        for ax, (cell, readout) in zip(row[1:], columns, strict=True):
            result = next(
                done.result
                for done in finished
                if done.piece.about[:2] == (cell, problem.image_name)
            )
            psnr = result.numbers["psnr"][readout][0]
            _show(ax, result.tensors[readout], f"{psnr:.2f} dB")
    axes[0][0].set_title("original x*\n")
    for ax, (cell, readout) in zip(axes[0][1:], columns, strict=True):
        label = textwrap.fill(cell.label, 20)
        ax.set_title(f"{label}\n{READOUT_LABELS[readout]}", parse_math=False)
    figure.canvas.draw()  # places the axes, which the group titles are centred over
    _group_titles(figure, axes[0][1:], [cell.diffusion for cell, _ in columns])
    return figure


def convergence_figure(cells: Sequence[Cell], finished: Sequence[Finished]) -> Figure:
    """PSNR of θ against the step for every cell, mean over images and seeds.

    The paper's numbers are ticks on the right.
    """
    groups = [name for name in GROUP_TITLES if any(c.diffusion == name for c in cells)]
    figure, axes = plt.subplots(
        1, len(groups), figsize=(5.2 * len(groups), 4.4), squeeze=False, layout="constrained"
    )
    for ax, group in zip(axes[0], groups, strict=True):
        for cell in cells:
            curves = [
                done.result.numbers["curve"] for done in finished if done.piece.about[0] == cell
            ]
            if cell.diffusion == group and curves:
                steps, psnrs = _mean_curve(curves)
                ax.plot(steps + 1, psnrs, label=cell.label, marker="o", markersize=2)
        ceilings = [
            done.result.numbers["vae_ceiling_db"]
            for done in finished
            if done.piece.about[0].diffusion == group == "latent"
        ]
        if ceilings:
            ax.axhline(float(np.mean(ceilings)), color="grey", ls=":", label="dec(enc(x*))")
        paper = {
            cell.paper_psnr_db["theta"]: f"paper, {cell.label}"
            for cell in reversed(cells)
            if cell.diffusion == group and "theta" in cell.paper_psnr_db
        }
        right = ax.secondary_yaxis("right")
        right.set_yticks(list(paper), list(paper.values()), fontsize=7, parse_math=False)
        ax.set(xscale="log", xlabel="step", ylabel="PSNR of θ, dB", title=GROUP_TITLES[group])
        ax.grid(alpha=0.3)
        ax.legend(fontsize=8, loc="upper center", bbox_to_anchor=(0.5, -0.15), ncols=2)
    return figure


def _readouts(cell: Cell, finished: Sequence[Finished]) -> list[str]:
    """θ, and for an image parameterization its decoding; a latent's θ is a decoding already."""
    names = next(list(done.result.tensors) for done in finished if done.piece.about[0] == cell)
    return names[:1] if cell.parameterization == "latent" else names


def _show(ax: Axes, image: Tensor, caption: str) -> None:
    pixels = image[0].movedim(0, -1).float().clamp(0, 1).cpu().numpy()
    ax.imshow(pixels, interpolation="nearest")
    ax.set_xlabel(caption, parse_math=False)
    ax.set_xticks([])
    ax.set_yticks([])


def _group_titles(figure: Figure, axes: np.ndarray, groups: list[str]) -> None:
    top = max((ax.get_tightbbox().y1 for ax in axes), default=0) / figure.bbox.height
    for group in dict.fromkeys(groups):
        boxes = [ax.get_position() for ax, name in zip(axes, groups, strict=True) if name == group]
        left, right = boxes[0].x0, boxes[-1].x1
        figure.text((left + right) / 2, top + 0.04, GROUP_TITLES[group], ha="center", va="bottom")
        line = Line2D([left, right], [top + 0.03] * 2, color="black", lw=0.8)
        figure.add_artist(line)


def _mean_curve(curves: list[list[tuple[int, float]]]) -> tuple[np.ndarray, np.ndarray]:
    """Mean PSNR at the steps that every curve has; runs that converge early end early."""
    common = sorted(set.intersection(*({step for step, _ in curve} for curve in curves)))
    by_step = [dict(curve) for curve in curves]
    means = [float(np.mean([values[step] for values in by_step])) for step in common]
    return np.array(common), np.array(means)
