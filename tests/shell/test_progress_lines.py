"""Where there is no terminal, long work is told of in a line now and then."""

import io

import pytest
from rich.console import Console

from sdslab.shell import progress_lines
from sdslab.shell.progress_lines import EVERY, FIRST_AFTER, ProgressLines


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    now = [100.0]
    monkeypatch.setattr(progress_lines.time, "monotonic", lambda: now[0])
    return now


def lines_of(progress: ProgressLines) -> list[str]:
    assert isinstance(progress.console.file, io.StringIO)
    return progress.console.file.getvalue().splitlines()


@pytest.fixture
def progress(clock: list[float]) -> ProgressLines:
    made = ProgressLines(Console(file=io.StringIO(), width=40))
    made.get_time = lambda: clock[0]
    return made


def test_a_stage_tells_its_step_loss_and_time_left(progress: ProgressLines, clock: list[float]):
    task = progress.add_task("stage1-coarse", total=400)
    for step in range(60):
        progress.tell()
        clock[0] += 0.5
        progress.update(task, completed=step + 1, note=f"loss {0.01 * (step + 1):.4g}")
    first, second, *rest = lines_of(progress)
    assert first.startswith(f"stage1-coarse: step {2 * FIRST_AFTER:.0f} of 400, loss 0.04, ")
    assert second == "stage1-coarse: step 24 of 400, loss 0.24, 188 s left"
    assert len(rest) == (30 - FIRST_AFTER) // EVERY - 1
    progress.remove_task(task)
    assert lines_of(progress)[-1] == "stage1-coarse: step 60 of 400, 30 s"


def test_what_has_no_steps_tells_that_it_takes_its_time(progress, clock):
    task = progress.add_task("loading the mesh", total=None)
    progress.tell()
    clock[0] += 3
    progress.tell()
    progress.remove_task(task)
    assert lines_of(progress) == ["loading the mesh: 3 s so far", "loading the mesh: 3 s"]
    task = progress.add_task("unwrapping", total=1)
    progress.tell()
    clock[0] += 3
    progress.update(task, completed=0.4)
    progress.tell()
    assert lines_of(progress)[-1].startswith("unwrapping: 40 %, ")


def test_what_is_done_at_once_is_not_told(progress, clock):
    task = progress.add_task("writing", total=10)
    progress.tell()
    clock[0] += 1
    progress.tell()
    progress.remove_task(task)
    assert lines_of(progress) == []


def test_a_terminal_has_bars_and_no_lines():
    console = Console(file=io.StringIO(), force_terminal=True)
    with ProgressLines(console) as progress:
        progress.add_task("stage", total=3)
        assert progress._teller is None


def test_lines_come_by_themselves(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(progress_lines, "FIRST_AFTER", 0.0)
    console = Console(file=io.StringIO())
    with ProgressLines(console) as progress:
        progress.add_task("loading", total=None)
        assert progress._teller is not None
        progress._teller.join(1.5)
    assert "loading: " in "".join(lines_of(progress))
