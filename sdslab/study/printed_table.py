"""Tables on standard output, as wide as it is: labels stay, columns go where room is short."""

import itertools
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table

WIDTH_OF_FILES = 130  # columns, where the output is no terminal
_UNBOUNDED = 10_000


@dataclass(frozen=True)
class PrintedTable:
    """A table as text.

    Attributes:
        columns: headings.
        rows: cells of each row; a text alone is a heading above those that follow.
        labels: columns that say what a row is of, which always stay.
        expendable: the other columns, the least needed first.
        title: above it, or "".
    """

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...] | str, ...]
    labels: tuple[str, ...]
    expendable: tuple[str, ...]
    title: str = ""

    def print_on(self, console: Console, where: str) -> None:
        """Prints it, and says which columns had no room.

        Args:
            console: with a width.
            where: all columns are.
        """
        left_out: list[str] = []
        table = self._without(left_out)
        for column in self.expendable[:-1]:
            if _width_of(table) <= console.width:
                break
            left_out.append(column)
            table = self._without(left_out)
        console.print(table)
        if left_out:
            text = f"no room for {', '.join(left_out)}: {where} has all columns"
            console.print(text, markup=False, highlight=False)

    def _without(self, left_out: Sequence[str]) -> Table:
        table = Table(
            title=self.title or None,
            title_justify="left",
            box=box.SIMPLE_HEAD,
            padding=(0, 1, 0, 0),
        )
        kept = [place for place, name in enumerate(self.columns) if name not in left_out]
        for place in kept:
            name = self.columns[place]
            if name in self.labels:
                table.add_column(name, overflow="fold")
            else:
                table.add_column(name, justify="right", no_wrap=True)
        for row in self.rows:
            if isinstance(row, str):
                table.add_section()
                table.add_row(f"[bold]{row}")
            else:
                table.add_row(*(row[place] for place in kept))
        return table


def output_console() -> Console:
    """Standard output: a terminal has its own width, and COLUMNS sets it anywhere."""
    known = sys.stdout.isatty() or "COLUMNS" in os.environ
    return Console(width=None if known else WIDTH_OF_FILES)


def print_markdown(text: str, where: str) -> None:
    """Prints a page as it is, but for its tables that a terminal has no room for.

    Args:
        text: Markdown.
        where: the whole page is.
    """
    console = output_console()
    has_width = sys.stdout.isatty() or "COLUMNS" in os.environ
    for is_table, group in itertools.groupby(text.splitlines(), lambda line: line.startswith("|")):
        lines = list(group)
        if is_table and has_width and max(map(len, lines)) > console.width:
            _table_of(lines).print_on(console, where)
        else:
            print("\n".join(lines))  # noqa: T201


def _table_of(lines: Sequence[str]) -> PrintedTable:
    """A Markdown table; columns whose cells are no numbers are its labels."""
    columns, _, *rows = [
        tuple(cell.strip() for cell in line.strip().strip("|").split("|")) for line in lines
    ]
    labels = tuple(
        name
        for place, name in enumerate(columns)
        if place == 0 or any(row[place][:1].isalpha() for row in rows)
    )
    expendable = tuple(name for name in reversed(columns) if name not in labels)
    return PrintedTable(columns, tuple(rows), labels, expendable)


def _width_of(table: Table) -> int:
    wide = Console(width=_UNBOUNDED)
    return Measurement.get(wide, wide.options, table).maximum
