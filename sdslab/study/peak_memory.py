"""How much memory a call takes beyond its inputs, at most."""

import ctypes
import multiprocessing
import re
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch

from sdslab.study.kernel_operations import OPERATIONS
from sdslab.study.kernel_specification import KernelCase


def peaks_mb(case: KernelCase, batch: int, side: int, device: torch.device) -> dict[str, float]:
    """Of each contender, in MB of 10^6 bytes, its result included; empty where it cannot be told.

    On a GPU it is what torch's allocator gave; on a CPU the resident memory of a fresh process, as
    Linux counts it.
    """
    if device.type == "cuda":
        return _peaks(case, batch, side, device, _of_gpu)
    if not Path("/proc/self/clear_refs").exists():
        return {}
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(1, context) as pool:
        return pool.submit(_in_fresh_process, case, batch, side, torch.get_num_threads()).result()


def _in_fresh_process(case: KernelCase, batch: int, side: int, threads: int) -> dict[str, float]:
    torch.set_num_threads(threads)
    return _peaks(case, batch, side, torch.device("cpu"), _of_process)


@torch.no_grad()
def _peaks(
    case: KernelCase,
    batch: int,
    side: int,
    device: torch.device,
    peak: Callable[[Callable[[], object]], int],
) -> dict[str, float]:
    make = OPERATIONS[case.operation]
    for call in make(case, 1, 4, device).contenders.values():
        call()  # libraries load and compile before anything is counted
    calls = make(case, batch, side, device).contenders
    return {name: peak(call) / 1e6 for name, call in calls.items()}


def _of_gpu(call: Callable[[], object]) -> int:
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    call()
    torch.cuda.synchronize()
    return torch.cuda.max_memory_allocated() - before


def _of_process(call: Callable[[], object]) -> int:
    # What earlier calls freed goes back to the system, lest this one take it unseen.
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
