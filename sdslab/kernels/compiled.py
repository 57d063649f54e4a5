"""numba's compiler, which keeps what it compiles wherever that can be written.

Without a folder for its cache numba refuses to compile: in a read-only install, say, with no home.
"""

import atexit
import os
import shutil
import sys
import tempfile
from collections.abc import Callable
from typing import Any

import numba
import numba.core.config


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
