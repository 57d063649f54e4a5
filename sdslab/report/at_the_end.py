"""The page that a program leaves when it ends."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sdslab.errors import UserError, one_line


@contextmanager
def reported(folder: Path) -> Iterator[None]:
    """Writes ``report.html`` when the block ends, in whatever way, and says where it is.

    A page that cannot be made is told of in a line, and hides nothing that happened before.

    Args:
        folder: with the ``run.json``, complete by then.
    """
    try:
        yield
    finally:
        from sdslab.report.run_page import write_report

        try:
            print(one_line(f"report: {write_report(folder)}"), flush=True)  # noqa: T201
        except UserError as error:
            print(one_line(f"no report.html: {error}"), file=sys.stderr)  # noqa: T201
