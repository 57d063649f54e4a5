"""A page of text and tables: as Markdown, for JSON, and in a terminal of any width."""

import itertools
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd
from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table as RichTable

from sdslab.errors import one_line

_UNBOUNDED = 10_000


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        columns: headings.
        rows: cells of each row.
        labels: columns that say what a row is of, which stay where a terminal is narrow; None: the
            first, and those whose cells begin with a letter.
        expendable: the other columns, the least needed first; None: from the right.
        grouped: whether a narrow terminal has the first column as headings between the rows.
    """

    columns: Sequence[str]
    rows: Sequence[Sequence[str]]
    labels: Sequence[str] | None = None
    expendable: Sequence[str] | None = None
    grouped: bool = False

    def markdown(self) -> str:
        """A pipe table."""
        lines = [self.columns, ["---"] * len(self.columns), *self.rows]
        return "\n".join(f"| {' | '.join(line)} |" for line in lines)

    def print_on(self, console: Console, where: str) -> None:
        """Prints it as wide as the console is, and says which columns had no room.

        Args:
            console: with a width.
            where: the whole table is.
        """
        labels = self.labels or [
            name
            for place, name in enumerate(self.columns)
            if place == 0 or any(row[place][:1].isalpha() for row in self.rows)
        ]
        expendable = self.expendable or [n for n in reversed(self.columns) if n not in labels]
        left_out: list[str] = []
        table = self._without(left_out, labels)
        for column in expendable[:-1]:
            if _width_of(table) <= console.width:
                break
            left_out.append(column)
            table = self._without(left_out, labels)
        console.print(table)
        if left_out:
            text = f"no room for {', '.join(left_out)}: {where} has all columns"
            console.print(text, markup=False, highlight=False)

    def _without(self, left_out: Sequence[str], labels: Sequence[str]) -> RichTable:
        table = RichTable(box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
        names = list(enumerate(self.columns))[int(self.grouped) :]
        kept = [place for place, name in names if name not in left_out]
        for place in kept:
            name = self.columns[place]
            if name in labels:
                table.add_column(name, overflow="fold")
            else:
                table.add_column(name, justify="right", no_wrap=True)
        for key, group in itertools.groupby(self.rows, lambda row: self.grouped and row[0]):
            if key:
                table.add_section()
                table.add_row(f"[bold]{key}")
            for row in group:
                table.add_row(*(row[place] for place in kept))
        return table


@dataclass(frozen=True)
class Page:
    """A title, paragraphs and tables."""

    title: str
    parts: Sequence[str | Table]

    def markdown(self) -> str:
        """The whole page; asterisks, as of x*, are no emphasis."""
        return self._text().replace("*", r"\*")

    def content(self) -> list[str | dict[str, Any]]:
        """The parts for JSON: texts, and tables as their columns and rows."""
        return [
            part if isinstance(part, str) else {"columns": part.columns, "rows": part.rows}
            for part in self.parts
        ]

    def print(self, where: str) -> None:
        """Prints the page as it is, but for tables that a terminal has no room for.

        Args:
            where: the whole page is.
        """
        console = Console()
        narrow = sys.stdout.isatty() or "COLUMNS" in os.environ
        for part in (f"# {self.title}", *self.parts):
            text = part.markdown() if isinstance(part, Table) else part
            if narrow and isinstance(part, Table) and _longest(text) > console.width:
                part.print_on(console, where)
            else:
                print(text)  # noqa: T201
            if part is not self.parts[-1]:
                print()  # noqa: T201

    def _text(self) -> str:
        parts = [part.markdown() if isinstance(part, Table) else part for part in self.parts]
        return "\n\n".join([f"# {self.title}", *parts]) + "\n"


def csv_of(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows as CSV with a column for each key of any row, numbers to six digits."""
    return pd.DataFrame(rows).to_csv(index=False, float_format="%.6g")


def plain(text: str) -> str:
    """Text for a cell: one line, without the character that ends cells."""
    return one_line(text).replace("|", "/")


def _longest(text: str) -> int:
    return max(map(len, text.splitlines()))


def _width_of(table: RichTable) -> int:
    wide = Console(width=_UNBOUNDED)
    return Measurement.get(wide, wide.options, table).maximum
