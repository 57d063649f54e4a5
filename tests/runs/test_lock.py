import fcntl
import json
import os
import platform
import subprocess
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sdslab.errors import UserError
from sdslab.runs import lock as locking
from sdslab.runs.lock import LOCK_NAME, RunLock

HOLD = """
import sys
from pathlib import Path
from sdslab.runs.lock import RunLock
with RunLock(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


def holder(folder: Path) -> subprocess.Popen:
    process = subprocess.Popen(
        [sys.executable, "-c", HOLD, str(folder)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "held\n"
    return process


def owner(**changes: Any) -> dict[str, Any]:
    started = datetime.now(UTC) - timedelta(minutes=12)
    return {
        "pid": 999_999,
        "host": platform.node(),
        "boot": locking._boot_id(),
        "started": started.isoformat(),
        "command": "python -m sdslab.texture cow.obj",
    } | changes


def test_it_leaves_nothing_behind(tmp_path: Path):
    with RunLock(tmp_path / "run") as lock:
        assert lock.note is None
        written = json.loads((tmp_path / "run" / LOCK_NAME).read_text())
        assert written["pid"] == os.getpid()
        assert written.keys() == owner().keys()
    assert list((tmp_path / "run").iterdir()) == []
    with RunLock(tmp_path / "run") as lock:
        assert lock.note is None


def test_it_lets_go_on_an_error(tmp_path: Path):
    with pytest.raises(ZeroDivisionError), RunLock(tmp_path):
        _ = 1 / 0
    with RunLock(tmp_path):
        pass


def test_a_second_process_refuses_and_a_killed_one_is_taken_over(tmp_path: Path):
    process = holder(tmp_path)
    try:
        for _ in range(2):
            with pytest.raises(UserError) as caught, RunLock(tmp_path):
                pass
            message = str(caught.value)
            assert f"process {process.pid} on {platform.node()} since " in message
            assert " seconds (-c " in message
            assert "\n" not in message
    finally:
        process.kill()
        process.communicate()
    with RunLock(tmp_path) as lock:
        assert lock.note is not None
        assert f"took over from process {process.pid} on" in lock.note
        assert json.loads((tmp_path / LOCK_NAME).read_text())["pid"] == os.getpid()


def test_the_same_process_cannot_hold_it_twice(tmp_path: Path):
    with RunLock(tmp_path), pytest.raises(UserError, match="at work in it"), RunLock(tmp_path):
        pass


@pytest.mark.parametrize(
    "changes",
    [{}, {"boot": "before-the-restart"}, {"host": "container-of-before"}],
    ids=["dead", "rebooted", "same kernel, other name"],
)
def test_a_lock_that_a_dead_process_left_is_taken_over(changes: dict, tmp_path: Path):
    (tmp_path / LOCK_NAME).write_text(json.dumps(owner(**changes)))
    with RunLock(tmp_path) as lock:
        assert lock.note is not None
        assert "took over from process 999999 on" in lock.note
        assert "since 12 minutes (python -m sdslab.texture cow.obj)" in lock.note


def test_what_the_file_holds_cannot_break_the_message(tmp_path: Path):
    (tmp_path / LOCK_NAME).write_text(json.dumps(owner(command="a\x1b[2J\nb\u2028c")))
    with RunLock(tmp_path) as lock:
        assert lock.note is not None
        assert "(a?[2J?b?c)" in lock.note


def test_a_lock_that_its_owner_removes_meanwhile_is_not_taken_for_held(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    """Between opening the file and locking it, its owner unlinks it: the locked file is nobody's,
    and a third process could lock a new one."""
    path, opened = tmp_path / LOCK_NAME, []
    original = fcntl.flock

    def removed_before_locking(handle: int, how: int) -> None:
        opened.append(handle)
        if len(opened) == 1:
            path.unlink()
        original(handle, how)

    monkeypatch.setattr(fcntl, "flock", removed_before_locking)
    with RunLock(tmp_path):
        assert len(opened) == 2
        assert json.loads(path.read_text())["pid"] == os.getpid()
        with pytest.raises(UserError, match="at work in it"), RunLock(tmp_path):
            pass


def test_a_lock_of_another_machine_is_respected(tmp_path: Path):
    path = tmp_path / LOCK_NAME
    path.write_text(json.dumps(owner(host="node7", boot="other")))
    for _ in range(2):
        with (
            pytest.raises(UserError, match=r"on node7 since 12 minutes .*delete '"),
            RunLock(tmp_path),
        ):
            pass
    path.unlink()
    with RunLock(tmp_path):
        pass


@pytest.mark.parametrize("content", ["x", "[]", "{", "[" * 30_000, "3", '{"pid": {}}'])
def test_a_lock_that_makes_no_sense_is_taken_over(content: str, tmp_path: Path):
    (tmp_path / LOCK_NAME).write_text(content)
    with RunLock(tmp_path) as lock:
        assert lock.note is not None
        assert "took over from an unknown process" in lock.note


@settings(max_examples=100, deadline=None)
@given(
    content=st.binary(max_size=80)
    | st.dictionaries(
        st.sampled_from(list(owner())), st.none() | st.integers() | st.text() | st.lists(st.text())
    ).map(lambda table: json.dumps(table).encode())
)
def test_whatever_the_file_holds_it_is_taken_or_refused_in_one_line(
    content: bytes, tmp_path_factory: pytest.TempPathFactory
):
    folder = tmp_path_factory.mktemp("run")
    (folder / LOCK_NAME).write_bytes(content)
    said = ""
    try:
        with RunLock(folder) as lock:
            said = lock.note or ""
    except UserError as error:
        said = str(error)
    assert len(said.splitlines()) <= 1


@pytest.mark.parametrize(
    ("age", "text"),
    [(30, "30 seconds"), (300, "5 minutes"), (3 * 3600, "3 hours"), (9 * 86400, "9 days")],
)
def test_ages_are_told_in_fitting_units(age: int, text: str):
    assert locking._age((datetime.now(UTC) - timedelta(seconds=age)).isoformat()) == text


def test_a_file_in_place_of_the_folder_is_refused(tmp_path: Path):
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="can be written and locked"), RunLock(tmp_path / "file"):
        pass
