"""Runs the speed study of Figure 2 and writes its table, picture and numbers."""

from pathlib import Path
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import torch

from sdslab.diffusion_space import SHIPPED_VAE, LatentSpace
from sdslab.errors import UserError
from sdslab.machine import device_name, keep_freed_memory, resolve_device
from sdslab.pictures.image_io import load_image
from sdslab.study.figure2_speed_benchmark import (
    BURST,
    SHARES,
    SpeedRow,
    measure_cell,
    numbers_of,
)
from sdslab.study.figure2_speed_specification import Figure2SpeedStudy
from sdslab.study.measured_table import MeasuredTable
from sdslab.study.plots import close_figure, save_figure
from sdslab.study.reconstruct import Problem, check_cell
from sdslab.study.specification import check_only
from sdslab.study.study_run import study_run
from sdslab.study.timing import clock_name, quantile_columns, spread


def run_figure2_speed_study(study: Figure2SpeedStudy, only: tuple[str, ...] = ()) -> None:
    """Runs every row (or those named in ``only``) and writes ``NAME.{csv,md,json,png}``.

    Raises:
        UserError: something cannot run here, or a gradient was wrong; such rows are written too,
            but have no times.
    """
    names = [cell.name for cell in study.cells]
    check_only(only, names)
    device = resolve_device(study.settings.device)
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32, also in convolutions
    keep_freed_memory()
    source = SHIPPED_VAE if study.vae == "shipped" else study.vae
    vae = LatentSpace.load(source, device)
    for timed in study.cells:
        check_cell(timed.cell, timed.size, vae)
    with study_run(study, "figure2_speed", device, only=only) as record:
        _run_cells(study, only, vae, device, record)


def _run_cells(
    study: Figure2SpeedStudy,
    only: tuple[str, ...],
    vae: LatentSpace,
    device: torch.device,
    record: dict[str, Any],
) -> None:
    table = MeasuredTable(study.name, Path(study.settings.out), record, ("torch", "diffusers"))
    rows: list[SpeedRow] = []
    for timed in study.cells:
        if only and timed.name not in only:
            continue
        image = load_image(study.image, timed.size).to(device)
        row = measure_cell(timed, Problem.of(study.image, image, vae), study.settings)
        rows.append(row)
        if row.ours_ms is not None:
            record["metrics"][timed.name] = quantile_columns("ours", row.ours_ms)
        table.add(numbers_of(row, device), _line_of(row))
    table.finish(_markdown(study, rows, device), lambda path: _save_plot(rows, device, path))
    wrong = [row.timed.name for row in rows if not row.accepted]
    if wrong:
        raise UserError(
            f"θ's gradient must equal the straightforward step's, got a larger difference in "
            f"{', '.join(wrong)}; no speed is reported of a wrong result"
        )


def _line_of(row: SpeedRow) -> str:
    if row.ours_ms is None:
        return f"{row.timed.name}: refused, {_refusal(row)}"
    return f"{row.timed.name}: {spread(row.ours_ms)} ms, {row.ratio:.2f}× the straightforward speed"


def _refusal(row: SpeedRow) -> str:
    return f"difference {row.disagreement:.2g} exceeds {row.budget:.2g}"


def _markdown(study: Figure2SpeedStudy, rows: list[SpeedRow], device: torch.device) -> str:
    """A row per cell, with medians and, in brackets, the 20 % and 80 % quantiles."""
    lines = [
        f"# {study.title}",
        "",
        f"{device_name(device)}, {clock_name(device)}; torch {torch.__version__}; "
        f"preset {study.preset}; {study.image}. Milliseconds: median (20–80 % quantile) over "
        f"{study.settings.repeats} steps (of a recorded cell, over as many times {BURST}), ours, "
        f"straightforward and a float32 product of {study.settings.matmul_size}² in turn; the "
        "ratio is the median of the pairs'. Shares are of the operators' own time in torch's "
        "profile; a convolution's rate is its FLOP over its share of the step. Recorded: nothing "
        "of a step waits for its result, and on a GPU it is one CUDA graph.",
        "",
        "| diffusion | θ | size | ours, ms | straightforward, ms | ratio | "
        + " | ".join(SHARES)
        + " | GFLOP | convolution, GFLOP/s | matmul, GFLOP/s | of matmul |",
        "|" + " --- |" * (10 + len(SHARES)),
    ]
    for row in rows:
        head = [row.timed.cell.diffusion, _label(row), f"{row.timed.size}²"]
        if row.ours_ms is None or row.straightforward_ms is None or row.shares is None:
            cells = [*head, f"refused: {_refusal(row)}", *[""] * (len(SHARES) + 6)]
            lines.append("| " + " | ".join(cells) + " |")
            continue
        cells = [*head, spread(row.ours_ms), spread(row.straightforward_ms), f"{row.ratio:.2f}×"]
        cells += [f"{row.shares[kind]:.0%}" for kind in SHARES]
        rate, matmul = row.convolution_gflop_per_s, row.matmul_gflop_per_s
        cells.append(f"{row.gflop:.3g}")
        cells.append("" if rate is None else f"{rate:.0f}")
        cells.append(f"{matmul:.0f}")
        cells.append("" if rate is None or matmul is None else f"{rate / matmul:.0%}")
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def _label(row: SpeedRow) -> str:
    return row.timed.cell.label + (", recorded" if row.timed.recorded else "")


def _save_plot(rows: list[SpeedRow], device: torch.device, path: Path) -> None:
    """The steps side by side, and what ours spend their time on."""
    shown = [(row, row.ours_ms, row.straightforward_ms, row.shares) for row in rows]
    figure, (times_ax, shares_ax) = plt.subplots(
        1, 2, figsize=(10.4, 1.6 + 0.45 * len(rows)), sharey=True, layout="constrained"
    )
    colors = mpl.colormaps["tab10"].colors  # type: ignore[attr-defined]
    for place, (_, ours, theirs, shares) in enumerate(shown):
        if ours is None or theirs is None or shares is None:
            continue
        labelled = place == 0
        for offset, times, label, color in (
            (-0.2, theirs, "straightforward", "silver"),
            (0.2, ours, "ours", "black"),
        ):
            times_ax.barh(
                place + offset, times[1], 0.36, color=color, label=label if labelled else None
            )
        left = 0.0
        for kind, color in zip(SHARES, colors, strict=False):
            shares_ax.barh(
                place, shares[kind], 0.7, left=left, color=color, label=kind if labelled else None
            )
            left += shares[kind]
    names = [f"{row.timed.cell.diffusion}, {_label(row)}, {row.timed.size}²" for row in rows]
    times_ax.set_yticks(range(len(rows)), names, fontsize=8)
    times_ax.invert_yaxis()
    times_ax.set(xscale="log", xlabel="ms a step (medians)", title=device_name(device))
    shares_ax.set(xlim=(0, 1), xlabel="share of our step")
    for ax in (times_ax, shares_ax):
        ax.grid(alpha=0.3, axis="x")
    if any(ours is not None for _, ours, _, _ in shown):
        figure.legend(loc="outside lower center", ncols=6, fontsize=8)
    save_figure(figure, path)
    close_figure(figure)
