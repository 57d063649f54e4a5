"""What a call costs in time and memory, and how a step's time is split into phases."""

import ctypes
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

Quantiles = tuple[float, float, float]
"""20 %, 50 % and 80 % quantiles."""

# Written over between calls on a GPU: more than any cache, so that each call finds none of its own.
_CACHE_BYTES = 256 * 2**20
# Under a millisecond or so, in which a call's kernels are launched: none waits for the host.
_SLEEP_CYCLES = 1_500_000
# An idle GPU takes so long to raise its clocks.
_WARM_SECONDS = 0.25


def quantiles_ms(
    call: Callable[[], object], repeats: int, device: torch.device, *, warm_up: int = 2
) -> Quantiles:
    """The quantiles of a call's milliseconds.

    On a GPU they are the device's own, between events, at warm clocks and with a cold cache:
    launching is hidden behind the cache being overwritten and a sleep, both before the first event.

    Args:
        call: what is timed.
        repeats: timed calls.
        device: where it computes.
        warm_up: calls before, which compile and allocate.
    """
    for _ in range(warm_up):
        call()
    if device.type != "cuda":
        return quantiles_of([milliseconds(call, device, 1) for _ in range(repeats)])
    _warm_clocks(call, device)
    return quantiles_of(_gpu_ms(call, repeats, device))


def quantiles_of(values: Sequence[float]) -> Quantiles:
    """The 20 %, 50 % and 80 % quantiles of some values."""
    low, middle, high = np.quantile(values, (0.2, 0.5, 0.8))
    return float(low), float(middle), float(high)


def seconds_now() -> float:
    """A clock for what computes on a CPU; only differences mean something.

    With one thread (``--threads 1``) it is the process's own CPU time, which other processes on a
    busy machine do not stretch; with more it is the wall's.
    """
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def clock_name(device: torch.device) -> str:
    """What times on ``device`` are of, for a table's head."""
    if device.type != "cpu":
        return "times are between the GPU's own events, its waiting for the host among them"
    threads = torch.get_num_threads()
    return "times are CPU time of one thread" if threads == 1 else f"wall times, {threads} threads"


def _warm_clocks(call: Callable[[], object], device: torch.device) -> None:
    end = time.perf_counter() + _WARM_SECONDS
    while time.perf_counter() < end:
        call()
        torch.cuda.synchronize(device)


def _gpu_ms(call: Callable[[], object], repeats: int, device: torch.device) -> list[float]:
    with torch.cuda.device(device):
        cache = torch.empty(_CACHE_BYTES, dtype=torch.uint8, device=device)
        events = [
            (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            for _ in range(repeats)
        ]
        for start, end in events:
            cache.zero_()
            torch.cuda._sleep(_SLEEP_CYCLES)
            start.record()
            call()
            end.record()
        torch.cuda.synchronize()
        return [start.elapsed_time(end) for start, end in events]


def milliseconds(call: Callable[[], object], device: torch.device, times: int) -> float:
    """Time of one of as many calls, by the clock that `clock_name` names."""
    clock = PhaseClock(device)
    clock.mark("calls")
    for _ in range(times):
        call()
    clock.mark(None)
    return clock.milliseconds()["calls"] / times


@dataclass(frozen=True)
class Limits:
    """What the machine does at best, measured in the same run: bytes of a copy, float32 FLOP."""

    copy_bytes_per_s: float
    matmul_flops_per_s: float


def measure_limits(copy_mb: int, n: int, repeats: int, device: torch.device) -> Limits:
    """Times a copy of so many MB, and a product of n × n matrices."""
    source = torch.rand(copy_mb * 2**20 // 4, device=device)
    target = torch.empty_like(source)
    copy_ms = quantiles_ms(lambda: target.copy_(source), repeats, device)[1]
    matrix, product = torch.rand(n, n, device=device), torch.empty(n, n, device=device)
    matmul_ms = quantiles_ms(lambda: torch.matmul(matrix, matrix, out=product), repeats, device)[1]
    return Limits(2 * 4 * source.numel() / copy_ms * 1000, 2 * n**3 / matmul_ms * 1000)


def quantile_columns(name: str, values: Quantiles) -> dict[str, float]:
    """Columns of a table for one timing."""
    return {f"{name}_ms_{q}": value for q, value in zip(("q20", "q50", "q80"), values, strict=True)}


def quantiles_in(row: Mapping[str, Any], name: str) -> Quantiles:
    """The quantiles that a row has in `quantile_columns`."""
    return row[f"{name}_ms_q20"], row[f"{name}_ms_q50"], row[f"{name}_ms_q80"]


def median_ratio(theirs: Sequence[float], ours: Sequence[float]) -> float:
    """The median of the pairs' ratios, of times that were taken in turn."""
    return float(np.median(np.array(theirs) / np.array(ours)))


def refusal(row: Mapping[str, Any]) -> str:
    """Why a row has no times."""
    return f"refused: difference {row['disagreement']:.2g} exceeds {row['budget']:.2g}"


def spread(values: Quantiles) -> str:
    """The median and, in brackets, the outer quantiles, to three digits."""
    digits = max(0, 2 - int(np.floor(np.log10(max(values[1], 1e-9)))))
    low, middle, high = (f"{value:.{digits}f}" for value in values)
    return f"{middle} ({low}–{high})"


PHASES: tuple[str, ...] = ("render", "condition", "unet", "gradient", "optimizer")
"""What a texture step does: views, pictures and their shading; resizing, noising and the condition
of stage II; the UNet; guidance, x̂_0, the gradient and its way back to θ; Adam and projection."""
WHOLE = "step"
"""All of them at once, where they are one recording."""


class PhaseClock:
    """Collects marks between phases; on a GPU they are events, which wait for nothing.

    Args:
        device: where the phases compute.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks: list[tuple[str | None, float | torch.cuda.Event]] = []

    def mark(self, phase: str | None) -> None:
        """From here on the time is ``phase``'s; None ends the last one."""
        if not self._on_gpu:
            self._marks.append((phase, seconds_now()))
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append((phase, event))

    def milliseconds(self) -> dict[str, float]:
        """The phases' times since the last call; a phase may have had several turns."""
        if self._on_gpu:
            torch.cuda.synchronize()
        total = dict.fromkeys(PHASES, 0.0)
        for (phase, start), (_, end) in zip(self._marks, self._marks[1:], strict=False):
            if phase is not None:
                total[phase] = total.get(phase, 0.0) + _between(start, end)
        self._marks.clear()
        return total


def _between(start: float | torch.cuda.Event, end: float | torch.cuda.Event) -> float:
    if isinstance(start, torch.cuda.Event):
        assert isinstance(end, torch.cuda.Event)
        return start.elapsed_time(end)
    assert isinstance(end, float)
    return (end - start) * 1000


def gpu_peak_bytes(call: Callable[[], object]) -> int:
    """What torch's allocator gave a call at most, beyond what it had given before."""
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def process_peak_bytes(call: Callable[[], object]) -> int:
    """Resident memory that a call took at most, as Linux counts it."""
    # What earlier calls freed goes back to the system: this one would take it unseen.
    getattr(ctypes.CDLL(None), "malloc_trim", lambda _: None)(0)
    Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts from now
    before = _resident("VmRSS")
    call()
    return _resident("VmHWM") - before


def _resident(field: str) -> int:
    matched = re.search(
        rf"^{field}:\s+(\d+) kB", Path("/proc/self/status").read_text("ascii"), re.M
    )
    assert matched
    return int(matched[1]) * 1024
