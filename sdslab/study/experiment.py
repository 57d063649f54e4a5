"""What a kind of study is made of: its pieces of work, and what is shown of their results."""

import abc
import dataclasses
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import matplotlib as mpl
import matplotlib.pyplot as plt
import torch
from matplotlib.figure import Figure
from torch import Tensor

from sdslab.errors import UserError
from sdslab.files.atomic_write import atomic_write
from sdslab.machine import device_name
from sdslab.runs.checkpoint import Checkpoint
from sdslab.runs.table import Page
from sdslab.shell.named_inputs import stem_of

mpl.use("Agg")
mpl.rcParams.update({"font.size": 9, "pdf.fonttype": 42, "savefig.bbox": "tight"})


@dataclass(frozen=True, eq=False)
class Result:
    """What a piece gave: tensors and JSON-able numbers."""

    tensors: dict[str, Tensor]
    numbers: dict[str, Any]


@dataclass(frozen=True)
class Step:
    """Where a running piece is.

    Attributes:
        number: of steps taken.
        note: how it goes, a few words.
        snapshot: tensors and JSON-able numbers that it can go on from; None where it cannot.
    """

    number: int
    note: str = ""
    snapshot: Callable[[], tuple[dict[str, Tensor], dict[str, Any]]] | None = None


@dataclass(frozen=True)
class Given:
    """What a piece starts from: a checkpoint of its own, and the result of the piece it needs."""

    saved: Checkpoint | None
    needed: Result | None


@dataclass(frozen=True, eq=False)
class Piece:
    """A unit of a study's work.

    Attributes:
        title: for messages.
        group: name of the row that its seconds count for.
        work: steps of it and, last, its result.
        about: what the study knows it by.
        steps: how many it takes; None where nobody knows.
        watched: whether a bar shows how it goes; a clock is disturbed by one.
        stem: of the file that keeps its result.
        key: of everything that its result depends on, the code apart.
        needs: what must be finished before.
    """

    title: str
    group: str
    work: Callable[[Given], Iterator[Step | Result]]
    about: Any = None
    steps: int | None = None
    watched: bool = True
    stem: str = ""
    key: str = ""
    needs: "Piece | None" = None


@dataclass(frozen=True, eq=False)
class Finished:
    """A piece with its result, and its rows of the CSV."""

    piece: Piece
    result: Result
    rows: list[dict[str, Any]]


class Experiment(abc.ABC):
    """A kind of study; an instance is one that is about to run.

    Nothing is written before it is made: it loads its inputs and refuses what cannot work.

    Class attributes:
        study_class: the study as data: ``name``, ``title``, ``preset``, ``settings``, and a field
            for each section of rows.
        options: of the command line that replace settings, beside ``--device`` and ``--out``.
        sources: code whose change makes finished pieces stale; of a kind without, none are kept.
        packages: whose versions finished pieces depend on, or that each row tells.
        store: folder of the finished pieces in the study's own.
        truth: what must hold of rows whose ``accepted`` is false.

    Args:
        study: of ``study_class``.
        only: names of the rows to run; all, where it is empty.
        device: where it computes.

    Raises:
        UserError: something cannot work.
    """

    study_class: ClassVar[type[Any]]
    options: ClassVar[tuple[str, ...]] = ()
    sources: ClassVar[tuple[str, ...]] = ()
    packages: ClassVar[tuple[str, ...]] = ("torch",)
    store: ClassVar[str] = ""
    truth: ClassVar[str] = ""
    study: Any

    def __init__(self, study: Any, only: tuple[str, ...], device: torch.device) -> None:
        self.study, self.only, self.device = study, only, device
        self.device_name = device_name(device)
        check_only(only, [row.name for row in rows_of(study)])

    @staticmethod
    def finish_study(study: Any, where: str, load: Callable[[str], Any]) -> Any:
        """The study that was read, checked beyond types and bounds, and completed.

        Args:
            study: as its file says.
            where: for messages.
            load: reads another study, by its name.
        """
        del where, load
        return study

    @staticmethod
    def with_steps(study: Any, steps: int) -> Any:
        """The study whose every piece takes so many steps."""
        raise NotImplementedError

    def chosen(self, rows: Sequence[Any]) -> list[Any]:
        """The rows that are asked for."""
        return [row for row in rows if not self.only or row.name in self.only]

    @abc.abstractmethod
    def pieces(self) -> list[Piece]:
        """Everything to do, in order."""

    def rows(self, piece: Piece, result: Result) -> list[dict[str, Any]]:
        """Rows of the CSV."""
        del piece
        return [result.numbers]

    @abc.abstractmethod
    def line(self, finished: Finished) -> str:
        """What is said of a finished piece."""

    def metrics(self, finished: list[Finished]) -> dict[str, Any]:
        """For ``run.json``."""
        del finished
        return {}

    def details(self, finished: list[Finished]) -> dict[str, Any]:
        """What the JSON holds beside the rows."""
        del finished
        return {}

    @abc.abstractmethod
    def page(self, finished: list[Finished]) -> Page:
        """The tables, and what one must know to read them."""

    @abc.abstractmethod
    def draw(self, finished: list[Finished], path: Path) -> None:
        """Writes the pictures: ``path`` and files beside it."""


def file_stem(given: str) -> str:
    """The name of a picture or mesh as a part of a file's name."""
    return re.sub(r"[^A-Za-z0-9_]+", "_", stem_of(given))[:40]


def rows_of(study: Any) -> list[Any]:
    """The rows of all sections."""
    fields = [getattr(study, field.name) for field in dataclasses.fields(study)]
    return [row for section in fields if isinstance(section, tuple) for row in section]


def check_only(only: tuple[str, ...], names: list[str], where: str = "") -> None:
    """Refuses names of rows that a study does not have."""
    for name in only:
        if name not in names:
            raise UserError(f"--only must name one of {', '.join(names)}{where}, got {name!r}")


def save_figure(figure: Figure, *paths: Path) -> None:
    """Writes the figure in the format of each path's suffix, without a date, and frees it."""
    for path in paths:
        metadata = {"CreationDate": None} if path.suffix == ".pdf" else None
        with atomic_write(path) as temporary:
            figure.savefig(temporary, dpi=160, metadata=metadata)
    plt.close(figure)
