"""Progress of long work: bars in a terminal, a line now and then where there is none."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    Task,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

FIRST_AFTER = 2.0  # seconds that a task takes before a line tells of it
EVERY = 10.0  # seconds between lines of a task
STDERR = Console(stderr=True)


def tell(line: str, console: Console = STDERR) -> None:
    """Prints a line for people, above the bars if there are any; only a terminal breaks it."""
    console.print(line, markup=False, highlight=False, soft_wrap=True)


@dataclass
class _Told:
    begun: float
    last: float | None = None


class ProgressLines(Progress):
    """`rich.progress.Progress` that is not silent in a log file.

    Tasks have a field ``note``, a few words of how it goes. A task that takes more than
    ``FIRST_AFTER`` seconds has a line then, every ``EVERY`` seconds, and when it is removed.

    Args:
        console: where bars, which go when they end, and lines appear.
    """

    def __init__(self, console: Console = STDERR) -> None:
        super().__init__(
            TextColumn("{task.description}", markup=False),
            BarColumn(bar_width=20),
            MofNCompleteColumn(),
            TextColumn("{task.fields[note]}", markup=False),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=console,
            transient=True,
        )
        self._told: dict[TaskID, _Told] = {}
        self._ended = threading.Event()
        self._teller: threading.Thread | None = None

    def add_task(
        self,
        description: str,
        start: bool = True,
        total: float | None = 100.0,
        completed: int = 0,
        visible: bool = True,
        **fields: Any,
    ) -> TaskID:
        fields.setdefault("note", "")
        return super().add_task(description, start, total, completed, visible, **fields)

    @contextmanager
    def busy(self, description: str) -> Iterator[None]:
        """Shows a task of unknown length while the block runs."""
        task = self.add_task(description, total=None)
        yield
        self.remove_task(task)

    def start(self) -> None:
        super().start()
        if not self.console.is_terminal and self._teller is None:
            self._ended.clear()
            self._teller = threading.Thread(target=self._tell_until_ended, daemon=True)
            self._teller.start()

    def stop(self) -> None:
        if self._teller is not None:
            self._ended.set()
            self._teller.join()
            self._teller = None
        super().stop()

    def remove_task(self, task_id: TaskID) -> None:
        told = self._told.pop(task_id, None)
        if told is not None and told.last is not None:
            task = next(task for task in self.tasks if task.id == task_id)
            seconds = time.monotonic() - told.begun
            tell(f"{task.description}: {_reached(task)}{seconds:,.0f} s", self.console)
        super().remove_task(task_id)

    def _tell_until_ended(self) -> None:
        while not self._ended.wait(0.5):
            self.tell()

    def tell(self) -> None:
        """Prints a line of each task whose time for one has come."""
        now = time.monotonic()
        for task in self.tasks:
            told = self._told.setdefault(task.id, _Told(now))
            since = now - (told.begun if told.last is None else told.last)
            if since >= (FIRST_AFTER if told.last is None else EVERY):
                told.last = now
                tell(line_of(task, now - told.begun), self.console)


def line_of(task: Task, seconds: float) -> str:
    """How far a task is: "stage1: step 120 of 400, loss 0.0123, 35 s left".

    Args:
        task: with a field ``note``.
        seconds: since it began.
    """
    note = task.fields.get("note") or ""
    parts = [_reached(task).removesuffix(", "), note]
    left = task.time_remaining
    if left is not None and task.completed:
        parts.append(f"{left:,.0f} s left")
    else:
        parts.append(f"{seconds:,.0f} s so far")
    return f"{task.description}: {', '.join(part for part in parts if part)}"


def _reached(task: Task) -> str:
    if task.total is None:
        return ""
    if task.total <= 1:
        return f"{task.percentage:.0f} %, "
    return f"step {task.completed:,.0f} of {task.total:,.0f}, "
