"""What the computer has and gives: devices, memory, threads."""

import atexit
import ctypes
import itertools
import os
import platform
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from sdslab.errors import UserError

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


def resolve_device(name: str) -> torch.device:
    """The torch device of a ``--device`` value.

    Raises:
        UserError: not a device, or not one that is here.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise UserError(f"--device must be auto, cpu, cuda or cuda:N, got {name!r}") from error
    if device.type not in ("cpu", "cuda"):
        raise UserError(f"--device must be auto, cpu, cuda or cuda:N, got {name!r}")
    if device.type == "cuda" and (device.index or 0) >= torch.cuda.device_count():
        raise UserError(
            f"--device {name} needs a CUDA GPU and a CUDA build of torch, got "
            f"{torch.cuda.device_count()} GPUs with torch {torch.__version__}; use --device cpu"
        )
    return device


@contextmanager
def full_float32() -> Iterator[None]:
    """Computes float32 convolutions on a GPU in float32 within the block, or the function.

    By default cuDNN rounds their inputs to TF32, ten bits: 2e-3 of a patch posterior's x̂_0.
    """
    before = torch.backends.cudnn.allow_tf32
    torch.backends.cudnn.allow_tf32 = False
    try:
        yield
    finally:
        torch.backends.cudnn.allow_tf32 = before


def let_gpu_segments_grow() -> None:
    """Makes torch enlarge its blocks of GPU memory instead of taking new ones beside them.

    A step has as many rows as pixels are covered, another number each time. Call it before the
    first tensor on a GPU; what the user has set in the environment stays.
    """
    names = "PYTORCH_CUDA_ALLOC_CONF", "PYTORCH_ALLOC_CONF"  # the latter since torch 2.9
    if sys.platform.startswith("linux") and not any(name in os.environ for name in names):
        os.environ[names[0]] = "expandable_segments:True"


def device_name(device: torch.device) -> str:
    """The GPU's name, or the processor's."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return f"{line.partition(':')[2].strip()} (CPU)"
    except OSError:
        pass
    return f"{platform.processor() or platform.machine()} (CPU)"


def peak_memory_mb(device: torch.device) -> dict[str, float]:
    """The most that this process has held so far, in MB: "process", and "gpu" on a GPU."""
    import resource  # which not every system has

    unit = 2**20 if sys.platform == "darwin" else 2**10
    peak = {"process": round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit, 1)}
    if device.type == "cuda":
        peak["gpu"] = round(torch.cuda.max_memory_allocated(device) / 2**20, 1)
    return peak


def out_of_memory_message(error: BaseException, remedy: str) -> str | None:
    """What to do about an error, where it says that memory ran out; None where it does not.

    Args:
        error: from torch, on the GPU or the CPU, or Python's own `MemoryError`.
        remedy: what takes less, such as "give fewer --views".
    """
    text = str(error).strip()
    on_gpu = isinstance(error, torch.OutOfMemoryError)
    on_cpu = isinstance(error, MemoryError) or (
        isinstance(error, RuntimeError) and "DefaultCPUAllocator" in text
    )
    if not (on_gpu or on_cpu):
        return None
    where = "the GPU's" if on_gpu else "the computer's"
    tried = re.search(r"allocate (\d+(?:\.\d+)? ?[KMGT]?i?B|\d+ bytes)", text)
    asked = f" for {tried[1]} more" if tried else ""
    return f"{where} memory is not enough{asked}; {remedy}"


# Parameters of glibc's mallopt (malloc.h).
_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_WANTED = 2**30  # bytes; what no tensor of a step on a CPU exceeds
_LARGEST_EVERYWHERE = 2**25  # older versions of glibc take no larger threshold


def keep_freed_memory() -> bool:
    """Tells the C library to reuse large blocks within the process.

    By default it hands a block of some megabytes back when it is freed, and each page of the next
    one is fetched and cleared again: a tenth of a step of the toy study. The process's peak memory
    stays what it is; it merely keeps it to the end. Call it before the first large tensor.

    Returns:
        Whether it did; not where the C library is another than glibc.
    """
    if not sys.platform.startswith("linux"):
        return False
    # torch asks for huge pages, which are fetched 512 pages at a time, where this is set.
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is None or not hasattr(ctypes.CDLL(None), "gnu_get_libc_version"):
        return False
    kept = mallopt(_MMAP_THRESHOLD, _WANTED) or mallopt(_MMAP_THRESHOLD, _LARGEST_EVERYWHERE)
    return bool(kept and mallopt(_TRIM_THRESHOLD, _WANTED))
