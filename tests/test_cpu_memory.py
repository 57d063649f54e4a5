"""Freed memory is reused, seen from the page faults that it saves."""

import os
import subprocess
import sys

import pytest

# In a process of its own: the setting outlives a test.
SCRIPT = """
import resource, sys
from sdslab.machine import keep_freed_memory
kept = keep_freed_memory() if sys.argv[1] == "keep" else True
import torch
def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        torch.ones(2**24)  # glibc's own threshold never exceeds half of it
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before
faults()
print(int(kept), faults())
"""


def faults(mode: str) -> tuple[bool, int]:
    # Without what an earlier test may have set: huge pages are fetched 512 pages at a time.
    environment = {k: v for k, v in os.environ.items() if k != "THP_MEM_ALLOC_ENABLE"}
    command = [sys.executable, "-c", SCRIPT, mode]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    kept, count = run.stdout.split()
    return bool(int(kept)), int(count)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="glibc is what it is about")
def test_a_freed_tensor_s_pages_are_not_fetched_again():
    kept, count = faults("keep")
    if not kept:
        pytest.skip("the C library is not glibc")
    assert count < faults("give back")[1] / 10
