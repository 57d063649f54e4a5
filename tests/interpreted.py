"""Tests whose kernels Triton interprets run in a process of their own.

Triton reads its switch once, when something imports it, so tests cannot set it themselves.
"""

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"
# The environment of a process that does not interpret kernels.
PLAIN = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
PLAIN["PYTHONPATH"] = os.pathsep.join(sys.path)


@contextmanager
def interpreted_process(folder: Path) -> Iterator[subprocess.Popen[str]]:
    """Starts the folder's tests that have "interpreted" in their names."""
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "pytest", str(folder)),
            *("-k", "interpreted and not test_interpreted_bodies"),
            *("--confcutdir", str(folder), "-p", "no:cacheprovider"),
        ],
        env=PLAIN | {"TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    with process:
        yield process
        process.kill()


def assert_it_passes(process: subprocess.Popen[str]) -> None:
    """Waits for such a process."""
    pytest.importorskip("triton", reason="triton is not installed")
    printed, _ = process.communicate()
    assert process.returncode == 0, printed
