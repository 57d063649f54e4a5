"""The command line of ``python -m sdslab.report``."""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import tyro

from sdslab.errors import UserError, exit_on_user_error, one_line
from sdslab.files.atomic_write import check_writable
from sdslab.runs.folder import PAGE, check_own_file, is_own_page
from sdslab.shell.command_line import parse
from sdslab.shell.process import keep_streams


@dataclass(frozen=True)
class Arguments:
    """Makes the report of each run, and of several a page that compares them.

    Examples:
      python -m sdslab.report runs/apple-gravel
      python -m sdslab.report runs/apple-coffee runs/apple-gravel --csv runs.csv
    """

    runs: Annotated[
        tuple[Path, ...],
        tyro.conf.Positional,
        tyro.conf.arg(metavar="RUN [RUN ...]", help_behavior_hint="(required)"),
    ]
    """Folders that hold a run.json: of texture runs (runs/NAME) and studies (figures/NAME), or
    folders of such folders."""
    out: Annotated[
        Path | None,
        tyro.conf.arg(
            metavar="FILE", help_behavior_hint="(default: index.html beside several runs)"
        ),
    ] = None
    """The page that compares the runs."""
    csv: Annotated[
        Path | None, tyro.conf.arg(metavar="FILE", help_behavior_hint="(default: none)")
    ] = None
    """Write all records as one table, a row each."""


def main() -> None:
    """Entry point."""
    keep_streams()
    with exit_on_user_error():
        report(parse(Arguments, "python -m sdslab.report", sys.argv[1:]))


def report(arguments: Arguments) -> None:
    """Makes the pages and says where they are.

    Raises:
        UserError: a run cannot be read, or a page cannot be written.
    """
    from sdslab.runs.schema import read_run

    folders = _folders(arguments.runs)
    # All are read before anything is written.
    runs: list[tuple[Path, dict[str, Any]]] = [(f, read_run(f / "run.json")) for f in folders]

    several = len(runs) > 1 or arguments.out is not None
    common = Path(os.path.commonpath([folder.resolve().parent for folder in folders]))
    index = arguments.out or common / "index.html"
    for folder in folders:
        check_own_file(folder / PAGE, is_own_page, "the report of a run")
    if several:
        check_own_file(index, is_own_page, "--out" if arguments.out else "the page of all runs")
        check_writable(index.parent, "--out")
    if arguments.csv is not None:
        if several and arguments.csv.absolute() == index.absolute():
            raise UserError(f"--out and --csv must be two files, got {str(index)!r} for both")
        check_own_file(arguments.csv, _is_own_table, "--csv")
        check_writable(arguments.csv.parent, "--csv")

    from sdslab.report.comparison import write_csv, write_index
    from sdslab.report.run_page import write_report

    for folder in folders:
        print(one_line(str(write_report(folder, index if several else None))))  # noqa: T201
    if several:
        write_index(runs, index)
        print(one_line(str(index)))  # noqa: T201
    if arguments.csv is not None:
        write_csv(runs, arguments.csv)
        print(one_line(str(arguments.csv)))  # noqa: T201


def _is_own_table(path: Path) -> bool:
    """Whether a CSV is one of runs, which its first columns tell."""
    with path.open("rb") as file:
        return file.readline(1000).startswith(b"run,program,kind,outcome,error,")


def _folders(named: tuple[Path, ...]) -> list[Path]:
    """Those with a run.json; a folder without one stands for its sub-folders that have one."""
    if not named:
        raise UserError("RUN must be the folder of a run, got none; give one, such as runs/NAME")
    found: list[Path] = []
    for folder in named:
        if folder.name == "run.json":
            folder = folder.parent
        inner = sorted(path.parent for path in folder.glob("*/run.json"))
        if not folder.is_dir() or not ((folder / "run.json").is_file() or inner):
            raise UserError(
                f"RUN must be a folder with a run.json, got {one_line(str(folder))!r}; give the "
                f"folder of a texture run (runs/NAME) or of a study (figures/NAME)"
            )
        found += [folder] if (folder / "run.json").is_file() else inner
    return list(dict.fromkeys(found))


if __name__ == "__main__":
    main()
