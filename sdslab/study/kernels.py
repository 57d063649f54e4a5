"""The study of the kernels: each op against its equation, eager torch and the machine's limits."""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, final

import matplotlib.pyplot as plt
import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from sdslab.errors import UserError
from sdslab.runs.table import Page, Table
from sdslab.study.experiment import Experiment, Finished, Given, Piece, Result, save_figure
from sdslab.study.kernel_operations import OPERATIONS, KernelCase, Problem, Sizes
from sdslab.study.measuring import (
    Quantiles,
    clock_name,
    gpu_peak_bytes,
    measure_limits,
    process_peak_bytes,
    quantile_columns,
    quantiles_in,
    quantiles_ms,
    refusal,
    spread,
)

POSTERIOR = "patch_posterior"  # which waits for arithmetic, the other ops for memory


@dataclass(frozen=True)
class KernelSettings:
    """What every row shares."""

    cpu_sizes: Sizes
    """[batch, height = width] of every case's rows on a CPU."""
    cuda_sizes: Sizes
    """The same on a GPU."""
    device: str = "auto"
    """"auto" is cuda where there is one."""
    cpu_repeats: int = 10
    """Timed calls of each row on a CPU, after two that are not."""
    cuda_repeats: int = 100
    """The same on a GPU."""
    copy_mb: int = 256
    """Size of the tensor whose copy tells the memory's bandwidth."""
    matmul_size: int = 2048
    """Side of the float32 matrices whose product tells the processor's rate."""
    compile: bool = True
    """Whether torch.compile of the eager code is timed too, at each case's last size."""
    memory: bool = True
    """Whether the peak memory of ops with rivals is measured too."""
    out: str = "figures"
    """Folder for the results."""


@dataclass(frozen=True)
class KernelStudy:
    """A parsed study file with one preset applied."""

    name: str
    title: str
    preset: str
    settings: KernelSettings
    cases: tuple[KernelCase, ...]


@final
class KernelSpeeds(Experiment):
    """Times every op at every size; without times where its result is wrong."""

    study_class = KernelStudy
    packages = ("torch", "triton")
    truth = "ours must equal its equation in float64"
    study: KernelStudy

    def pieces(self) -> list[Piece]:
        settings, on_gpu = self.study.settings, self.device.type == "cuda"
        kind: Literal["cuda_sizes", "cpu_sizes"] = "cuda_sizes" if on_gpu else "cpu_sizes"
        self.limits = measure_limits(
            settings.copy_mb, settings.matmul_size, _repeats(settings, self.device), self.device
        )
        return [
            Piece(
                f"{case.name} at {_shape(case, batch, side)}",
                case.name,
                partial(self._row, case, batch, side, place == len(sizes)),
                case,
                watched=False,
            )
            for case in self.chosen(self.study.cases)
            if (sizes := getattr(case, kind) or getattr(self.study.settings, kind))
            for place, (batch, side) in enumerate(sizes, start=1)
        ]

    def _row(
        self, case: KernelCase, batch: int, side: int, last: bool, _: Given
    ) -> Iterator[Result]:
        # Compiling takes longer than all else: once a case, at the size that tells most.
        settings = replace(self.study.settings, compile=self.study.settings.compile and last)
        row = measure(case, batch, side, settings, self.device)
        limits = self.limits
        if row["accepted"]:
            ours = row["ours_ms_q50"]
            row["gb_per_s"] = row["bytes"] / ours / 1e6
            row["share_of_copy"] = row["bytes"] / ours * 1000 / limits.copy_bytes_per_s
            row["share_of_matmul"] = row["flops"] / ours * 1000 / limits.matmul_flops_per_s
        row["copy_gb_per_s"] = limits.copy_bytes_per_s / 1e9
        row["matmul_gflop_per_s"] = limits.matmul_flops_per_s / 1e9
        row["device"] = self.device_name
        yield Result({}, row)

    def line(self, finished: Finished) -> str:
        row = finished.result.numbers
        if not row["accepted"]:
            return refusal(row)
        return f"{spread(quantiles_in(row, 'ours'))} ms, {row['share_of_copy']:.0%} of a copy"

    def metrics(self, finished: list[Finished]) -> dict[str, Any]:
        return {
            done.piece.title.replace(" at ", ", "): quantile_columns(
                "ours", quantiles_in(done.result.numbers, "ours")
            )
            for done in finished
            if done.result.numbers["accepted"]
        }

    def page(self, finished: list[Finished]) -> Page:
        """A row per op and size, with medians and, in brackets, the 20 % and 80 % quantiles."""
        settings, limits = self.study.settings, self.limits
        body, clock = "the GPU's kernels", "launches hidden, caches cold, by the GPU's own events"
        if self.device.type == "cpu":
            body = "compiled loops but for the SR condition, as on any CPU"
            clock = clock_name(self.device)
        head = (
            f"{self.device_name}, {clock}; preset {self.study.preset}; ours is {body}. "
            f"torch.compile is timed at each operation's last size. In the same run a "
            f"copy of {settings.copy_mb} MB moves {limits.copy_bytes_per_s / 1e9:.1f} GB/s and a "
            f"float32 product of {settings.matmul_size}² does "
            f"{limits.matmul_flops_per_s / 1e9:.0f} GFLOP/s. Bytes are those that must be read and "
            "written once; eager code draws its noise with torch.randn where ours has a key. "
            "Ratios are times over ours."
        )
        rows = [done.result.numbers for done in finished]
        parts: list[str | Table] = [head]
        others = [_cells(row) for row in rows if row["operation"] != POSTERIOR]
        columns = (
            "operation", "size", "MB", "ours, ms", "GB/s", "of a copy", "eager, ms", "ratio",
            "compiled, ms", "ratio",
        )  # fmt: skip
        parts.append(Table(columns, others))
        posteriors = [_posterior_cells(row) for row in rows if row["operation"] == POSTERIOR]
        if posteriors:
            parts.append(
                "The posterior mean over the patches of a photograph, against the ways to write it "
                "in torch: milliseconds, ratio, and the memory that each takes beyond its inputs. "
                "On a CPU ours is that attention, with more terms."
            )
            columns = (
                "operation", "queries", "ours, ms", "of a product", "MB", "chunked products, ms",
                "ratio", "MB", "attention, ms", "ratio", "MB", "cdist, ms", "ratio", "MB",
            )  # fmt: skip
            parts.append(Table(columns, posteriors))
        return Page(self.study.title, parts)

    def draw(self, finished: list[Finished], path: Path) -> None:
        """The roofline, and the bandwidth that each op reaches with the bytes it moves."""
        figure, (roofline, bandwidth) = plt.subplots(
            1, 2, figsize=(10.4, 4.6), layout="constrained"
        )
        rows, limits = [done.result.numbers for done in finished], self.limits
        highest = max(200, *(2 * row["flops"] / row["bytes"] for row in rows))
        intensities = np.geomspace(0.05, highest, 200)
        roof = np.minimum(intensities * limits.copy_bytes_per_s, limits.matmul_flops_per_s)
        roofline.plot(intensities, roof / 1e9, color="black", label="copy and product, same run")
        bandwidth.axhline(limits.copy_bytes_per_s / 1e9, color="black")
        for case in self.study.cases:
            shown = [row for row in rows if row["row"] == case.name and row["accepted"]]
            if not shown:
                continue
            intensity = [row["flops"] / row["bytes"] for row in shown]
            rate = [row["flops"] / row["bytes"] * row["gb_per_s"] for row in shown]
            (dots,) = roofline.plot(intensity, rate, "o", markersize=4, label=case.label)
            if case.operation != POSTERIOR:
                moved = [row["bytes"] / 1e6 for row in shown]
                speeds = [row["gb_per_s"] for row in shown]
                bandwidth.plot(moved, speeds, "o-", markersize=4, color=dots.get_color())
        _decorate(roofline, "FLOP per byte that must be moved", "GFLOP/s", "roofline")
        _decorate(bandwidth, "MB that must be moved", "GB/s", self.device_name)
        handles, labels = roofline.get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside lower center", ncols=3, fontsize=8)
        save_figure(figure, path)


@torch.no_grad()
def measure(
    case: KernelCase, batch: int, side: int, settings: KernelSettings, device: torch.device
) -> dict[str, Any]:
    """Compares an op with its equation in float64, then times it, eager torch and torch.compile.

    Returns:
        A row's columns: ``disagreement`` is the largest error against float64, relative to the
        largest value; ``budget`` twice that of eager torch in the op's own precision, and a few
        roundings; without times where the former exceeds the latter.

    Raises:
        UserError: torch.compile cannot run here.
    """
    problem = OPERATIONS[case.operation](case, batch, side, device)
    disagreement, budget = _errors(problem)
    row: dict[str, Any] = {
        "row": case.name,
        "operation": case.operation,
        "what": case.label,
        "batch": batch,
        "channels": case.channels,
        "side": side,
        "dtype": case.dtype,
        "noise": case.noise,
        "bytes": problem.bytes,
        "flops": problem.flops,
        "disagreement": disagreement,
        "budget": budget,
        "accepted": disagreement <= budget,  # not where it is NaN
    }
    if not row["accepted"]:
        return row
    repeats = _repeats(settings, device)
    times = {name: quantiles_ms(f, repeats, device) for name, f in problem.contenders.items()}
    if not problem.rivals and settings.compile:
        times["compiled"] = _compiled_ms(problem, repeats, device)
    for name, quantiles in times.items():
        row |= quantile_columns(name, quantiles)
        if name != "ours":
            row[f"{name}_ratio"] = quantiles[1] / times["ours"][1]
    if problem.rivals and settings.memory:
        peaks = peaks_mb(case, batch, side, device)
        row |= {f"{name}_peak_mb": peak for name, peak in peaks.items()}
    return row


def _repeats(settings: KernelSettings, device: torch.device) -> int:
    return settings.cuda_repeats if device.type == "cuda" else settings.cpu_repeats


def _errors(problem: Problem) -> tuple[float, float]:
    truth = problem.eager(*(argument.double() for argument in problem.arguments))
    ours = problem.ours()
    own_error = _distance(problem.eager(*problem.arguments), truth)
    roundings = 8 * torch.finfo(torch.float32).eps + torch.finfo(ours[0].dtype).eps
    return _distance(ours, truth), 2 * own_error + roundings


def _distance(results: tuple[Tensor, ...], truth: tuple[Tensor, ...]) -> float:
    """The largest error of any result, each relative to its own largest value; NaN stays NaN."""
    errors = [
        (result.double() - true).abs().max() / true.abs().max().clamp(min=1e-30)
        for result, true in zip(results, truth, strict=True)
        if true.is_floating_point()
    ]
    return torch.stack(errors).max().item()


def _compiled_ms(problem: Problem, repeats: int, device: torch.device) -> Quantiles:
    torch.compiler.reset()  # a size's code is not another's
    compiled = torch.compile(problem.eager, dynamic=False, fullgraph=True)
    try:
        return quantiles_ms(lambda: compiled(*problem.timed_arguments), repeats, device)
    except Exception as error:  # of whichever compiler inductor calls
        raise UserError(
            f"torch.compile must work for the comparison with it, got {type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else ''}; install a C++ compiler, or set "
            f"compile = false in a copy of the study"
        ) from error


def peaks_mb(case: KernelCase, batch: int, side: int, device: torch.device) -> dict[str, float]:
    """Memory of each contender beyond its inputs, in MB of 10^6 bytes, its result included.

    On a GPU it is what torch's allocator gave; on a CPU the resident memory of a fresh process, as
    Linux counts it; empty on other systems.
    """
    if device.type == "cuda":
        return _peaks(case, batch, side, device, torch.get_num_threads())
    if not Path("/proc/self/clear_refs").exists():
        return {}
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
        threads = torch.get_num_threads()
        return pool.submit(_peaks, case, batch, side, device, threads).result()


@torch.no_grad()
def _peaks(
    case: KernelCase, batch: int, side: int, device: torch.device, threads: int
) -> dict[str, float]:
    torch.set_num_threads(threads)
    peak = gpu_peak_bytes if device.type == "cuda" else process_peak_bytes
    make = OPERATIONS[case.operation]
    for call in make(case, 1, 4, device).contenders.values():
        call()  # libraries load and compile before anything is counted
    calls = make(case, batch, side, device).contenders
    return {name: peak(call) / 1e6 for name, call in calls.items()}


def _shape(case: KernelCase, batch: int, side: int) -> str:
    return f"{batch} × {case.channels} × {side}²"


def _cells(row: dict[str, Any]) -> list[str]:
    shape = f"{row['batch']} × {row['channels']} × {row['side']}²"
    cells = [row["what"], shape, f"{row['bytes'] / 1e6:.3g}"]
    if not row["accepted"]:
        return [*cells, refusal(row), *6 * [""]]
    cells += [spread(quantiles_in(row, "ours")), f"{row['gb_per_s']:.3g}"]
    cells.append(f"{row['share_of_copy']:.0%}")
    for name in ("eager", "compiled"):
        if f"{name}_ratio" in row:
            cells += [spread(quantiles_in(row, name)), f"{row[f'{name}_ratio']:.2f}×"]
        else:
            cells += ["", ""]
    return cells


def _posterior_cells(row: dict[str, Any]) -> list[str]:
    cells = [row["what"], f"{row['batch']} × {row['side']}²"]
    if not row["accepted"]:
        return [*cells, refusal(row), *11 * [""]]
    cells += [spread(quantiles_in(row, "ours")), f"{row['share_of_matmul']:.0%}"]
    cells.append(_megabytes(row, "ours"))
    for name in ("eager", "sdpa", "cdist"):
        ratio = f"{row[f'{name}_ratio']:.2f}×"
        cells += [spread(quantiles_in(row, name)), ratio, _megabytes(row, name)]
    return cells


def _megabytes(row: dict[str, Any], name: str) -> str:
    return f"{row[f'{name}_peak_mb']:.0f}" if f"{name}_peak_mb" in row else ""


def _decorate(ax: Axes, x: str, y: str, title: str) -> None:
    ax.set(xscale="log", yscale="log", xlabel=x, ylabel=y, title=title)
    ax.grid(alpha=0.3, which="both")
