"""``metrics.csv``: one line a step, and TensorBoard's log of the same where it is installed."""

import csv
from pathlib import Path
from typing import Any

from sdslab.files.atomic_write import atomic_write
from sdslab.optimization.optimize import Step

COLUMNS = ("stage", "step", "loss", "gradient_norm", "nonfinite", "seconds")


class MetricsLog:
    """Writes each step of a stage as it ends.

    Args:
        out: the run's folder.
        stage: its name, the first column.
        first: the step that comes first: lines of this stage from there on are dropped, for a
            continued run takes those steps again.
    """

    def __init__(self, out: Path, stage: str, first: int = 0) -> None:
        self.stage = stage
        path = out / "metrics.csv"
        kept = [COLUMNS, *(line for line in _lines(path) if not self._comes_again(line, first))]
        with (
            atomic_write(path) as temporary,
            temporary.open("w", newline="", encoding="utf-8") as file,
        ):
            csv.writer(file).writerows(kept)
        self._file = path.open("a", newline="", encoding="utf-8")
        self._writer = csv.writer(self._file)
        self._board = _tensorboard(out)
        self._before = 0.0

    def _comes_again(self, line: list[str], first: int) -> bool:
        return line[0] == self.stage and int(line[1]) >= first

    def add(self, step: Step) -> None:
        """Writes one step; its seconds are those since the step before."""
        seconds, self._before = step.seconds - self._before, step.seconds
        self._writer.writerow(
            (
                self.stage,
                step.index,
                f"{step.loss:.6g}",
                f"{step.gradient_norm:.6g}",
                step.nonfinite,
                f"{seconds:.4f}",
            )
        )
        if self._board is not None:
            self._board.add_scalar(f"{self.stage}/loss", step.loss, step.index)
            self._board.add_scalar(f"{self.stage}/gradient_norm", step.gradient_norm, step.index)

    def add_picture(self, path: Path, index: int) -> None:
        """Shows a preview in TensorBoard, too."""
        if self._board is not None:
            import numpy as np
            from PIL import Image

            with Image.open(path) as picture:
                self._board.add_image(self.stage, np.asarray(picture), index, dataformats="HWC")

    def flush(self) -> None:
        """Hands what was written to the disk."""
        self._file.flush()

    def __enter__(self) -> "MetricsLog":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()
        if self._board is not None:
            self._board.close()


def stage_seconds(out: Path) -> dict[str, float]:
    """How long the steps of each stage took, of all processes that ran it."""
    seconds: dict[str, float] = {}
    for line in _lines(out / "metrics.csv"):
        seconds[line[0]] = seconds.get(line[0], 0.0) + float(line[-1])
    return {stage: round(value, 2) for stage, value in seconds.items()}


def _lines(path: Path) -> list[list[str]]:
    """The whole lines of an earlier log; the last one of a killed run may be torn."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        lines = list(csv.reader(file))[1:]
    return [line for line in lines if len(line) == len(COLUMNS) and line[1].isdigit()]


def _tensorboard(out: Path) -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError:  # it is no dependency
        return None
    return SummaryWriter(str(out / "tensorboard"))
