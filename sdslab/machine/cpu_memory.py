"""Memory that one step frees is kept for the next, instead of going back to the system."""

import ctypes
import os
import sys

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
