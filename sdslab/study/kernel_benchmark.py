"""What the kernel study measures: the machine's own limits, and each op against them."""

from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from sdslab.errors import UserError
from sdslab.machine import device_name
from sdslab.study.kernel_operations import OPERATIONS
from sdslab.study.kernel_problem import Problem
from sdslab.study.kernel_specification import KernelCase, KernelSettings
from sdslab.study.peak_memory import peaks_mb
from sdslab.study.timing import Quantiles, quantile_columns, quantiles_ms


@dataclass(frozen=True)
class Limits:
    """What the machine does at best, measured in the same run."""

    copy_bytes_per_s: float
    """Of a large tensor, read and written bytes both counted."""
    matmul_flops_per_s: float
    """Of float32 matrices."""


@dataclass(frozen=True)
class KernelRow:
    """An op at one size; without times where its result is wrong."""

    case: KernelCase
    batch: int
    side: int
    bytes: int
    flops: int
    disagreement: float
    """Largest error against float64, relative to the largest value."""
    budget: float
    """Twice that of eager torch in the op's own precision, and a few roundings."""
    ours_ms: Quantiles | None = None
    eager_ms: Quantiles | None = None
    compiled_ms: Quantiles | None = None
    rivals_ms: dict[str, Quantiles] = field(default_factory=dict)
    peaks_mb: dict[str, float] = field(default_factory=dict)
    """Memory taken beyond the inputs, of ours, eager and the rivals."""

    @property
    def accepted(self) -> bool:
        """Whether the result is right: no speed is reported of a wrong one."""
        return self.disagreement <= self.budget

    @property
    def bytes_per_s(self) -> float | None:
        """Of the bytes that must be moved, at the median."""
        return None if self.ours_ms is None else self.bytes / self.ours_ms[1] * 1000

    @property
    def flops_per_s(self) -> float | None:
        """Of the equation's arithmetic, at the median."""
        return None if self.ours_ms is None else self.flops / self.ours_ms[1] * 1000

    @property
    def times(self) -> dict[str, Quantiles]:
        """All that was timed, by name."""
        named = {"ours": self.ours_ms, "eager": self.eager_ms, "compiled": self.compiled_ms}
        return {name: times for name, times in named.items() if times is not None} | self.rivals_ms

    @property
    def shape(self) -> str:
        """Batch, channels and sides, for people."""
        return f"{self.batch} × {self.case.channels} × {self.side}²"


def measure_limits(settings: KernelSettings, device: torch.device) -> Limits:
    """Times a copy and a product."""
    source = torch.rand(settings.copy_mb * 2**20 // 4, device=device)
    target = torch.empty_like(source)
    copy_ms = quantiles_ms(lambda: target.copy_(source), settings.repeats_on(device.type), device)[
        1
    ]
    n = settings.matmul_size
    matrix, product = torch.rand(n, n, device=device), torch.empty(n, n, device=device)
    matmul_ms = quantiles_ms(
        lambda: torch.matmul(matrix, matrix, out=product), settings.repeats_on(device.type), device
    )[1]
    return Limits(2 * 4 * source.numel() / copy_ms * 1000, 2 * n**3 / matmul_ms * 1000)


@torch.no_grad()
def measure(
    case: KernelCase, batch: int, side: int, settings: KernelSettings, device: torch.device
) -> KernelRow:
    """Compares an op with its equation in float64, then times it, eager torch and torch.compile.

    Raises:
        UserError: torch.compile cannot run here.
    """
    problem = OPERATIONS[case.operation](case, batch, side, device)
    disagreement, budget = _errors(problem)
    row = KernelRow(case, batch, side, problem.bytes, problem.flops, disagreement, budget)
    if not row.accepted:
        return row
    repeats = settings.repeats_on(device.type)
    times = {name: quantiles_ms(f, repeats, device) for name, f in problem.contenders.items()}
    row = replace(
        row,
        ours_ms=times.pop("ours"),
        eager_ms=times.pop("eager"),
        rivals_ms=times,
    )
    if not problem.rivals:
        compiled = _compiled_ms(problem, settings, device) if settings.compile else None
        return replace(row, compiled_ms=compiled)
    return replace(row, peaks_mb=peaks_mb(case, batch, side, device) if settings.memory else {})


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


def _compiled_ms(problem: Problem, settings: KernelSettings, device: torch.device) -> Quantiles:
    torch.compiler.reset()  # a size's code is not another's
    compiled = torch.compile(problem.eager, dynamic=False, fullgraph=True)
    try:
        return quantiles_ms(
            lambda: compiled(*problem.timed_arguments), settings.repeats_on(device.type), device
        )
    except Exception as error:  # of whichever compiler inductor calls
        raise UserError(
            f"torch.compile must work for the comparison with it, got {type(error).__name__}: "
            f"{str(error).splitlines()[0] if str(error) else ''}; install a C++ compiler, or set "
            f"compile = false in a copy of the study"
        ) from error


def numbers_of(row: KernelRow, limits: Limits, device: torch.device) -> dict[str, Any]:
    """A row as columns of a table."""
    case = row.case
    numbers: dict[str, Any] = {
        "row": case.name,
        "operation": case.operation,
        "what": case.label,
        "batch": row.batch,
        "channels": case.channels,
        "side": row.side,
        "dtype": case.dtype,
        "noise": case.noise,
        "bytes": row.bytes,
        "flops": row.flops,
        "disagreement": row.disagreement,
        "budget": row.budget,
        "accepted": row.accepted,
    }
    for name, times in row.times.items():
        numbers |= quantile_columns(name, times)
        if name != "ours":
            numbers[f"{name}_ratio"] = times[1] / row.times["ours"][1]
    numbers |= {f"{name}_peak_mb": peak for name, peak in row.peaks_mb.items()}
    if row.bytes_per_s is not None:
        numbers["gb_per_s"] = row.bytes_per_s / 1e9
        numbers["share_of_copy"] = row.bytes_per_s / limits.copy_bytes_per_s
    if row.flops_per_s is not None:
        numbers["share_of_matmul"] = row.flops_per_s / limits.matmul_flops_per_s
    numbers["copy_gb_per_s"] = limits.copy_bytes_per_s / 1e9
    numbers["matmul_gflop_per_s"] = limits.matmul_flops_per_s / 1e9
    numbers["device"] = device_name(device)
    return numbers
