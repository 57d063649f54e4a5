"""Several runs beside one another: as a page, and as a table for spreadsheets and pandas."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdslab.files.atomic_write import write_text
from sdslab.report import wording
from sdslab.report.html_page import render_page
from sdslab.report.result_files import data_uri
from sdslab.report.run_page import (
    KINDS,
    PAGE_NAME,
    input_pictures,
    relative_link,
    still_of,
    study_figures,
    title_of,
)
from sdslab.report.wording import flat, key_numbers

THUMBNAIL_SIZES = {"texture": 384, "study": 1200}  # pixels of the larger side
MOST_NUMBERS = 4  # of a card
SECTIONS = ("preset", "settings", "subject", "exemplar", "model", "optimization", "rendering")


def write_index(runs: list[tuple[Path, dict[str, Any]]], path: Path) -> None:
    """Writes the page; it links to each run's own, which must lie where it is now.

    Args:
        runs: (folder, record) of each.
        path: of the page.

    Raises:
        UserError: a picture cannot be read, or the page cannot be written.
    """
    page = render_page(
        "index.html",
        title="1 run" if len(runs) == 1 else f"{len(runs)} runs",
        cards=[_card(folder, record, path.parent) for folder, record in runs],
        groups=[
            group
            for program, heading in (("texture", "Textures"), ("study", "Studies"))
            if (group := _compared(heading, [run for run in runs if run[1]["program"] == program]))
        ],
    )
    write_text(path, page)


def _card(folder: Path, record: dict[str, Any], beside: Path) -> dict[str, Any]:
    is_texture = record["program"] == "texture"
    picture, words = still_of(folder)
    if not is_texture:
        picture, words = next((figure for _, figure, _ in study_figures(folder)), None), ""
    total = record["seconds"].get("total")  # where the run has ended
    return {
        "link": relative_link(folder / PAGE_NAME, beside),
        "name": folder.resolve().name,
        "title": title_of(record),
        "program": record["program"],
        "kind": KINDS.get(record["kind"], record["kind"].replace("_", " ")),
        "outcome": record["outcome"],
        "time": wording.seconds_text(total) if isinstance(total, int | float) else "",
        "picture": picture and data_uri(picture, THUMBNAIL_SIZES[record["program"]], 85),
        "words": words,
        "inputs": input_pictures(folder, record)[:1] if is_texture else [],
        "numbers": key_numbers(record)[:MOST_NUMBERS] if is_texture else [],
    }


def _compared(heading: str, runs: list[tuple[Path, dict[str, Any]]]) -> dict[str, Any] | None:
    """The tables of one program's runs; None where there is nothing to compare."""
    if len(runs) < 2:
        return None
    return {
        "heading": heading,
        "names": [folder.resolve().name for folder, _ in runs],
        "numbers": _rows([{n.label: n.value for n in key_numbers(record)} for _, record in runs]),
        "settings": _rows([_settings(record) for _, record in runs], differing=True),
    }


def _settings(record: dict[str, Any]) -> dict[str, str]:
    """What can be compared: a study's list of cells, and where a run was written, cannot."""
    origin = {name: record[name] for name in ("kind", "seeds", "sdslab", "commit", "device")}
    tables = {name: value for name, value in record["config"].items() if name in SECTIONS}
    leaves = wording.flat({**origin, **tables})
    return {
        name.replace("_", " ").replace(".", ": "): wording.shown(value)
        for name, value in leaves.items()
    }


def _rows(tables: list[dict[str, str]], differing: bool = False) -> list[tuple[str, list[str]]]:
    """A row for each name, a cell for each run; or only those rows whose cells differ."""
    names = dict.fromkeys(name for table in tables for name in table)
    rows = [(name, [table.get(name, "") for table in tables]) for name in names]
    return [row for row in rows if not differing or len(set(row[1])) > 1]


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
