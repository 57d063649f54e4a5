"""Many runs as one table, a row each: for spreadsheets and pandas."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdslab.files.atomic_write import write_text
from sdslab.report.wording import flat

if TYPE_CHECKING:
    import pandas as pd

FIRST = ("run", "program", "kind", "outcome", "error", "started", "ended", "seeds")


def run_table(runs: list[tuple[Path, dict[str, Any]]]) -> "pd.DataFrame":
    """The records, nested keys joined by dots; what a run lacks is empty.

    Args:
        runs: (folder, record) of each.
    """
    import pandas as pd

    rows = [
        {name: _cell(value) for name, value in {"run": str(folder), **flat(_told(record))}.items()}
        for folder, record in runs
    ]
    names = dict.fromkeys((*FIRST, *(name for row in rows for name in row)))
    return pd.DataFrame(rows, columns=list(names))


def write_csv(runs: list[tuple[Path, dict[str, Any]]], path: Path) -> None:
    """Writes the table.

    Raises:
        UserError: the file cannot be written.
    """
    write_text(path, run_table(runs).to_csv(index=False))


def _told(record: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in record.items() if name != "files"}


def _cell(value: Any) -> Any:
    """Lists on one line; infinities, which JSON holds as text, as numbers again."""
    if isinstance(value, list):
        return "; ".join(map(str, value))
    return float(value) if value in ("inf", "-inf") else value
