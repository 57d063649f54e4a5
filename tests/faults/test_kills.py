"""Whenever a run is killed, the next one goes on, and ends as if nothing had happened."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

REPOSITORY = Path(__file__).parents[2]


def kill_runs(folder: Path, *jobs: str) -> dict[str, Any]:
    process = subprocess.run(
        [sys.executable, "-m", "tests.faults.kill_runs", str(folder), *jobs],
        cwd=REPOSITORY,
        env=os.environ | {"OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        text=True,
        timeout=900,
    )
    assert process.returncode == 0
    return json.loads(process.stdout)


@pytest.fixture(scope="module")
def found(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    folder = tmp_path_factory.mktemp("kills")
    return kill_runs(folder, "SIGKILL=30", "SIGTERM=6", "SIGINT=6", "checkpoint=20")


def check_random_kills(found: dict[str, Any], kills: int) -> None:
    assert found["codes"].keys() <= {"0", "-9"}
    assert found["codes"]["-9"] == kills
    assert found["finished"] >= 2
    assert found["different"] == 0
    assert found["went_back"] == 0
    assert 0 < found["lost_most"] <= found["every"]


def test_killed_at_random_moments_it_ends_bit_for_bit_the_same(found: dict[str, Any]):
    check_random_kills(found["SIGKILL"], 30)


@pytest.mark.slow
def test_killed_a_thousand_times_it_ends_bit_for_bit_the_same(tmp_path: Path):
    check_random_kills(kill_runs(tmp_path, "SIGKILL=1000")["SIGKILL"], 1000)


@pytest.mark.slow
@pytest.mark.parametrize("what", ["exemplar", "prompt"])
def test_the_whole_program_killed_anywhere_ends_bit_for_bit_the_same(what: str, tmp_path: Path):
    """Two stages with their optimisers and guides, from loading to the last output."""
    found = kill_runs(tmp_path, f"{what}=50")[what]
    assert found["codes"].keys() <= {"0", "-9"}
    assert found["codes"]["-9"] == 50
    assert found["finished"] >= 1
    assert found["different"] == 0
    assert sum(found["reached"].values()) > found["reached"].get("nothing saved", 0) + 5


@pytest.mark.parametrize(("name", "code"), [("SIGTERM", "143"), ("SIGINT", "130")])
def test_a_run_that_is_asked_to_stop_saves_first(name: str, code: str, found: dict[str, Any]):
    stopped = found[name]
    assert stopped["codes"].keys() <= {"0", code, "-15"}  # -15: before its loop began
    assert stopped["codes"][code] == 6
    assert stopped["different"] == 0
    assert stopped["went_back"] == 0
    assert stopped["lost_most"] == 0


def test_killed_at_every_call_and_length_of_a_write_a_checkpoint_is_whole(found: dict[str, Any]):
    assert found["checkpoint"]["bad"] == []
    calls, indices = zip(*found["checkpoint"]["calls"], strict=True)
    assert {"open", "fsync", "os.chmod", "os.rename", "os.remove"} <= set(calls)
    # The rename is what makes the new one count.
    assert sorted(indices) == list(indices)
    assert indices[calls.index("os.rename")] == 2
    assert indices[calls.index("os.rename") + 1] == 3
    # What is replaced goes last, once the rename is on the disk.
    after = calls[calls.index("os.rename") :]
    assert after == ("os.rename", "os.remove", "fsync", "os.remove")
