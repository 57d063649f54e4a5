"""How studies time a call and print what they timed."""

import time
from collections.abc import Callable, Sequence

import numpy as np
import torch

Quantiles = tuple[float, float, float]
"""20 %, 50 % and 80 % quantiles."""

# Written over between calls on a GPU: more than any cache, so that each call finds none of its own.
_CACHE_BYTES = 256 * 2**20


def quantiles_ms(
    call: Callable[[], object], repeats: int, device: torch.device, *, warm_up: int = 2
) -> Quantiles:
    """The quantiles of a call's milliseconds.

    On a GPU they are the device's own, between events: launching is hidden behind the cache being
    overwritten.

    Args:
        call: what is timed.
        repeats: timed calls.
        device: where it computes.
        warm_up: calls before, which compile and allocate.
    """
    for _ in range(warm_up):
        call()
    times = _gpu_ms(call, repeats, device) if device.type == "cuda" else _cpu_ms(call, repeats)
    return quantiles_of(times)


def quantiles_of(values: Sequence[float]) -> Quantiles:
    """The 20 %, 50 % and 80 % quantiles of some values."""
    low, middle, high = np.quantile(values, (0.2, 0.5, 0.8))
    return float(low), float(middle), float(high)


def seconds_now() -> float:
    """A clock for steps on a CPU; only differences mean something.

    With one thread (``--threads 1``) it is the process's own CPU time, which other processes on a
    busy machine do not stretch; with more it is the wall's.
    """
    return time.process_time() if torch.get_num_threads() == 1 else time.perf_counter()


def clock_name(device: torch.device) -> str:
    """What times on ``device`` are of, for a table's head."""
    if device.type != "cpu":
        return "times are the GPU's own"
    threads = torch.get_num_threads()
    return "times are CPU time of one thread" if threads == 1 else f"{threads} threads"


def _cpu_ms(call: Callable[[], object], repeats: int) -> list[float]:
    times = []
    for _ in range(repeats):
        start = time.perf_counter()
        call()
        times.append((time.perf_counter() - start) * 1000)
    return times


def _gpu_ms(call: Callable[[], object], repeats: int, device: torch.device) -> list[float]:
    with torch.cuda.device(device):
        cache = torch.empty(_CACHE_BYTES, dtype=torch.uint8, device=device)
        events = [
            (torch.cuda.Event(enable_timing=True), torch.cuda.Event(enable_timing=True))
            for _ in range(repeats)
        ]
        for start, end in events:
            cache.zero_()
            start.record()
            call()
            end.record()
        torch.cuda.synchronize()
        return [start.elapsed_time(end) for start, end in events]


def quantile_columns(name: str, values: Quantiles) -> dict[str, float]:
    """Columns of a table for one timing."""
    return {f"{name}_ms_{q}": value for q, value in zip(("q20", "q50", "q80"), values, strict=True)}


def spread(values: Quantiles) -> str:
    """The median and, in brackets, the outer quantiles, to three digits."""
    digits = max(0, 2 - int(np.floor(np.log10(max(values[1], 1e-9)))))
    low, middle, high = (f"{value:.{digits}f}" for value in values)
    return f"{middle} ({low}–{high})"
