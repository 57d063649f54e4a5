"""numba's compiler, which keeps what it compiles wherever that can be written.

Without a folder for its cache numba refuses to compile: in a read-only install, say, with no home.
"""

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Callable, Sequence
from typing import Any

import numba
import numba.core.config
import numpy as np
from torch import Tensor


def njit(**options: Any) -> Callable[[Callable[..., Any]], Any]:
    """``numba.njit`` with the options given; ``cache`` counts only where a cache can be."""
    compiler: Any = numba.njit
    return compiler(**{**options, "cache": options["cache"] and CACHE is not None})


def _nothing() -> None:
    """Does nothing; compiled as a trial."""


def _cache_folder() -> str | None:
    """Folder that numba caches compiled code in; None where it cannot write one."""
    try:
        return numba.njit(cache=True)(_nothing).stats.cache_path
    except (OSError, RuntimeError):
        return None


def _with_fallback() -> tuple[str | None, str]:
    """The cache's folder, made in the temporary folder if need be, and a note of it or ""."""
    folder = _cache_folder()
    if folder is not None:
        return folder, ""
    try:
        temporary = tempfile.mkdtemp(prefix="sdslab-kernels-")
    except OSError:
        return None, "compiled anew by each process, for not even a temporary folder can be written"
    atexit.register(shutil.rmtree, temporary, ignore_errors=True)
    # In the environment for worker processes.
    os.environ["NUMBA_CACHE_DIR"] = temporary
    config: Any = numba.core.config
    config.CACHE_DIR = temporary
    note = (
        "compiled anew by each run, a minute at most, for neither the package nor the home can be "
        "written; set NUMBA_CACHE_DIR to a folder to keep them"
    )
    return _cache_folder(), note


CACHE, NOTE = _with_fallback()
if NOTE:
    print(f"note: the CPU kernels are {NOTE}", file=sys.stderr)  # noqa: T201


# Inlined, or the loops around it would not be vectorised.
@njit(nogil=True, cache=True, inline="always")
def _block(a, b, c, d, low, high):
    """Ten rounds on a block: four counter words and the key's two, all uint64 in [0, 2^32)."""
    mask, half = np.uint64(0xFFFFFFFF), np.uint64(32)
    for _ in range(10):
        p, q = a * np.uint64(0xD2511F53), c * np.uint64(0xCD9E8D57)
        a, b = (q >> half) ^ b ^ low, q & mask
        c, d = (p >> half) ^ d ^ high, p & mask
        low = (low + np.uint64(0x9E3779B9)) & mask
        high = (high + np.uint64(0xBB67AE85)) & mask
    return a, b, c, d


@njit(nogil=True, cache=True)
def _fill_bits(samples, words, lanes):
    """Fills lanes [b, blocks, 4] int64; samples are [b] int64, words [4] uint64."""
    low, high, stream, step = words
    mask = np.uint64(0xFFFFFFFF)
    for row in range(len(lanes)):
        counters, out = np.uint64(samples[row]), lanes[row]
        sample, later = counters & mask, (step + (counters >> np.uint64(32))) & mask
        for i in range(len(out)):
            a, b, c, d = _block(np.uint64(i) & mask, stream, sample, later, low, high)
            out[i, 0], out[i, 1], out[i, 2], out[i, 3] = a, b, c, d


def philox_bits_cpu(sample: Tensor, words: Sequence[int], blocks: int) -> Tensor:
    """Body of `philox_bits` on a CPU: plain torch calls two hundred functions for a timestep.

    Args:
        sample: `NoiseKey.counters`, [b].
        words: `NoiseKey.words`.
        blocks: of each sample.

    Returns:
        [b, 4 blocks] int64.
    """
    lanes = sample.new_empty(len(sample), blocks, 4)
    _fill_bits(sample.numpy(), np.array(words, dtype=np.uint64), lanes.numpy())
    return lanes.flatten(1)
