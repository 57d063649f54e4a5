"""Whose files a study's folder holds: ``OUT/NAME.*`` beside other studies', and ``OUT/NAME/``."""

from collections.abc import Mapping
from pathlib import Path

from sdslab.errors import UserError
from sdslab.files.atomic_write import check_writable
from sdslab.runs.folder import (
    check_inputs_apart,
    check_output_folder,
    check_own_file,
    does_not_count,
    is_own_page,
    listed_in,
    own_files,
    record_in,
)

SUFFIXES = (
    "csv", "md", "png", "pdf", "convergence.png", "convergence.pdf", "mode_seeking.png",
)  # fmt: skip


def claim_study_folder(out: Path, name: str, inputs: Mapping[str, str]) -> None:
    """Refuses to write a study's results over anything but its own earlier ones.

    Args:
        out: folder of the tables and pictures.
        name: of the study.
        inputs: files and folders that it reads, by option.

    Raises:
        UserError: a folder cannot be written, or holds what is not ours or an input.
    """
    check_writable(out)
    check_writable(out / name)
    check_output_folder(out, _holds_studies, "--out")
    check_output_folder(out / name, _holds_a_study, "--out")
    check_inputs_apart(out / name, inputs, "--out")
    check_own_file(out / name / "report.html", is_own_page, "the report")
    table = out / f"{name}.json"
    if table.exists():
        record = record_in(table)
        if not record or record["program"] != "study" or record["config"].get("name") != name:
            raise UserError(
                f"{str(table)!r} must be the table of the study {name}, got another file; move it "
                f"away or give another --out"
            )
        listed = listed_in(record)
    else:
        # A study that was stopped may have written the others before its table.
        record = record_in(out / name / "run.json")
        listed = None if record and record.get("outcome") != "finished" else {}
    own_files(out, [f"{name}.{suffix}" for suffix in SUFFIXES], listed, "--out", inputs)
    own_files(out, [f"{name}.json"], None, "--out", inputs)


def _holds_a_study(folder: Path) -> bool:
    return (record_in(folder / "run.json") or {}).get("program") == "study"


def _holds_studies(folder: Path) -> bool:
    """Whether studies were written here, or it holds nothing but folders of them, as quick ones."""
    if any(record_in(path) for path in folder.glob("*.json")):
        return True
    # A study that has just begun holds its lock and no record yet.
    found = [path for path in folder.iterdir() if not does_not_count(path)]
    inside = [path for path in found if path.is_dir()]
    if any(_holds_a_study(path) for path in inside):
        return True
    return len(inside) == len(found) and all(map(_holds_studies, inside))
