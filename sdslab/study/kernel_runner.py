"""Runs the kernel study and writes its table, plot and numbers."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib import pyplot as plt
from matplotlib.axes import Axes

from sdslab.errors import UserError
from sdslab.machine import device_name, resolve_device
from sdslab.study.kernel_benchmark import KernelRow, Limits, measure, measure_limits, numbers_of
from sdslab.study.kernel_specification import KernelStudy
from sdslab.study.measured_table import MeasuredTable
from sdslab.study.plots import close_figure, save_figure
from sdslab.study.specification import check_only
from sdslab.study.study_run import study_run
from sdslab.study.timing import quantile_columns, spread


def run_kernel_study(study: KernelStudy, only: tuple[str, ...] = ()) -> None:
    """Runs every case (or those named in ``only``); writes ``NAME.{csv,md,json,png}``.

    The record and the report come into ``NAME/``.

    Raises:
        UserError: something cannot run here, or a result was wrong; such rows are written too, but
            have no times.
    """
    names = [case.name for case in study.cases]
    check_only(only, names)
    device = resolve_device(study.settings.device)
    with study_run(study, "kernels", device, only=only) as record:
        _run_cases(study, only, device, record)


def _run_cases(
    study: KernelStudy,
    only: tuple[str, ...],
    device: torch.device,
    record: dict[str, Any],
) -> None:
    table = MeasuredTable(study.name, Path(study.settings.out), record, ("torch", "triton"))
    limits = measure_limits(study.settings, device)
    rows: list[KernelRow] = []
    for case in study.cases:
        if only and case.name not in only:
            continue
        for batch, side in case.sizes_on(device.type, study.settings):
            row = measure(case, batch, side, study.settings, device)
            rows.append(row)
            if row.ours_ms is not None:
                name = f"{case.name}, {row.shape}"
                record["metrics"][name] = quantile_columns("ours", row.ours_ms)
            table.add(numbers_of(row, limits, device), _line_of(row, limits))
    table.finish(
        _markdown(study, rows, limits, device),
        lambda path: _save_plot(study, rows, limits, device, path),
    )
    wrong = [f"{row.case.name} at {row.shape}" for row in rows if not row.accepted]
    if wrong:
        raise UserError(
            f"ours must equal its equation in float64, got a larger error in {', '.join(wrong)}; "
            f"no speed is reported of a wrong result"
        )


def _line_of(row: KernelRow, limits: Limits) -> str:
    if row.ours_ms is None or row.bytes_per_s is None:
        return f"{row.case.name}, {row.shape}: refused, {_refusal(row)}"
    share = row.bytes_per_s / limits.copy_bytes_per_s
    return f"{row.case.name}, {row.shape}: {spread(row.ours_ms)} ms, {share:.0%} of a copy"


def _refusal(row: KernelRow) -> str:
    return f"error {row.disagreement:.2g} exceeds {row.budget:.2g}"


def _markdown(
    study: KernelStudy, rows: list[KernelRow], limits: Limits, device: torch.device
) -> str:
    """A row per op and size, with medians and, in brackets, the 20 % and 80 % quantiles."""
    body = "the GPU's kernels"
    if device.type == "cpu":
        threads = torch.get_num_threads()
        body = f"compiled loops but for the SR condition, as on any CPU (threads: {threads})"
    lines = [
        f"# {study.title}",
        "",
        f"{device_name(device)}; preset {study.preset}; ours is {body}. In the same run a copy of "
        f"{study.settings.copy_mb} MB moves {limits.copy_bytes_per_s / 1e9:.1f} GB/s and a float32 "
        f"product of {study.settings.matmul_size}² does "
        f"{limits.matmul_flops_per_s / 1e9:.0f} GFLOP/s. Bytes are those that must be read and "
        "written once; eager code draws its noise with torch.randn where ours has a key. Ratios "
        "are times over ours.",
        "",
        "| operation | size | MB | ours, ms | GB/s | of a copy | eager, ms | ratio | compiled, ms "
        "| ratio |",
        "|" + " --- |" * 10,
    ]
    for row in rows:
        if row.case.operation == "patch_posterior":
            continue
        cells = [row.case.label, row.shape, f"{row.bytes / 1e6:.3g}"]
        if row.ours_ms is None or row.bytes_per_s is None:
            cells += [f"refused: {_refusal(row)}", *7 * [""]]
        else:
            cells += [
                spread(row.ours_ms),
                f"{row.bytes_per_s / 1e9:.3g}",
                f"{row.bytes_per_s / limits.copy_bytes_per_s:.0%}",
            ]
            for times in (row.eager_ms, row.compiled_ms):
                if times is None:
                    cells += ["", ""]
                else:
                    cells += [spread(times), f"{times[1] / row.ours_ms[1]:.2f}×"]
        lines.append("| " + " | ".join(cells[:10]) + " |")
    posteriors = [row for row in rows if row.case.operation == "patch_posterior"]
    if posteriors:
        lines += ["", *_posterior_table(posteriors, limits)]
    return "\n".join(lines) + "\n"


def _posterior_table(rows: list[KernelRow], limits: Limits) -> list[str]:
    lines = [
        "The posterior mean over the patches of a photograph, against the ways to write it in "
        "torch: milliseconds, ratio, and the memory that each takes beyond its inputs. On a CPU "
        "ours is that attention, with more terms.",
        "",
        "| operation | queries | ours, ms | of a product | MB | chunked products, ms | ratio | MB "
        "| attention, ms | ratio | MB | cdist, ms | ratio | MB |",
        "|" + " --- |" * 14,
    ]
    for row in rows:
        cells = [row.case.label, f"{row.batch} × {row.side}²"]
        if row.flops_per_s is None:
            cells += [f"refused: {_refusal(row)}", *11 * [""]]
        else:
            ours = row.times["ours"]
            share = row.flops_per_s / limits.matmul_flops_per_s
            cells += [spread(ours), f"{share:.0%}", _megabytes(row, "ours")]
            for name in ("eager", "sdpa", "cdist"):
                times = row.times[name]
                cells += [spread(times), f"{times[1] / ours[1]:.2f}×", _megabytes(row, name)]
        lines.append("| " + " | ".join(cells) + " |")
    return lines


def _megabytes(row: KernelRow, name: str) -> str:
    return f"{row.peaks_mb[name]:.0f}" if name in row.peaks_mb else ""


def _save_plot(
    study: KernelStudy, rows: list[KernelRow], limits: Limits, device: torch.device, path: Path
) -> None:
    """The roofline, and the bandwidth that each op reaches with the bytes it moves."""
    figure, (roofline, bandwidth) = plt.subplots(1, 2, figsize=(10.4, 4.6), layout="constrained")
    highest = max(200, *(2 * row.flops / row.bytes for row in rows))
    intensities = np.geomspace(0.05, highest, 200)
    roof = np.minimum(intensities * limits.copy_bytes_per_s, limits.matmul_flops_per_s)
    roofline.plot(intensities, roof / 1e9, color="black", label="copy and product, same run")
    bandwidth.axhline(limits.copy_bytes_per_s / 1e9, color="black")
    for case in study.cases:
        shown = [(row, row.bytes_per_s) for row in rows if row.case == case]
        points = [(row, speed) for row, speed in shown if speed is not None]
        if not points:
            continue
        moved = [row.bytes / 1e6 for row, _ in points]
        intensity = [row.flops / row.bytes for row, _ in points]
        rate = [row.flops * speed / row.bytes / 1e9 for row, speed in points]
        (dots,) = roofline.plot(intensity, rate, "o", markersize=4, label=case.label)
        if case.operation != "patch_posterior":  # which waits for arithmetic
            speeds = [speed / 1e9 for _, speed in points]
            bandwidth.plot(moved, speeds, "o-", markersize=4, color=dots.get_color())
    _decorate(roofline, "FLOP per byte that must be moved", "GFLOP/s", "roofline")
    _decorate(bandwidth, "MB that must be moved", "GB/s", device_name(device))
    handles, labels = roofline.get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
    save_figure(figure, path)
    close_figure(figure)


def _decorate(ax: Axes, x: str, y: str, title: str) -> None:
    ax.set(xscale="log", yscale="log", xlabel=x, ylabel=y, title=title)
    ax.grid(alpha=0.3, which="both")
