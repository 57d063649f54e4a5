"""One pool of threads for the CPU kernels, which release the GIL."""

import atexit
import itertools
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import torch

_pools: dict[int, ThreadPoolExecutor] = {}


def worker_count() -> int:
    """Number of threads, the one that torch computes with: ``torch.set_num_threads`` sets both."""
    return torch.get_num_threads()


def run_all(kernel: Callable[..., Any], calls: Sequence[tuple[Any, ...]]) -> None:
    """Calls ``kernel`` once per tuple of arguments, in parallel, and waits; also in this thread.

    The calls must write to memory of their own: nothing here orders them.
    """
    count = min(worker_count(), len(calls))
    if count <= 1:
        for arguments in calls:
            kernel(*arguments)
        return
    if count not in _pools:
        _pools[count] = ThreadPoolExecutor(count, thread_name_prefix="sdslab")
        atexit.register(_pools[count].shutdown)
    futures = [_pools[count].submit(kernel, *arguments) for arguments in calls[1:]]
    kernel(*calls[0])
    for future in futures:
        future.result()


def split(total: int, parts: int) -> list[range]:
    """Splits ``range(total)`` into at most ``parts`` ranges of nearly equal length."""
    parts = max(1, min(parts, total))
    bounds = [total * part // parts for part in range(parts + 1)]
    return [range(a, b) for a, b in itertools.pairwise(bounds)]
