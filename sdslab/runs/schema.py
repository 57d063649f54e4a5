"""What every ``run.json`` holds, of studies and of textures; see docs/run_record.md."""

import json
from pathlib import Path
from typing import Any

from sdslab.errors import UserError, one_line

SCHEMA = 1
LARGEST_FILE = 64 * 2**20  # bytes; a real one has a few kilobytes
DEEPEST = 32  # tables within tables

OUTCOMES = ("running", "finished", "interrupted", "failed")
_TEXT, _TABLE, _COUNT, _NONE = (str,), (dict,), (int,), (type(None),)
# Every key and the types of its value. Other keys are ignored.
FIELDS: dict[str, tuple[type, ...]] = {
    "schema": _COUNT,
    "program": _TEXT,
    "kind": _TEXT,
    "command": _TEXT,
    "started": _TEXT,
    "ended": _TEXT + _NONE,
    "outcome": _TEXT,
    "error": _TEXT + _NONE,
    "config": _TABLE,
    "seeds": (list,),
    "sdslab": _TEXT,
    "commit": _TEXT + _NONE,
    "dirty": (bool, *_NONE),
    "python": _TEXT,
    "packages": _TABLE,
    "device": _TEXT,
    "threads": _COUNT,
    "system": _TEXT,
    "metrics": _TABLE,
    "seconds": _TABLE,
    "peak_memory_mb": _TABLE,
    "details": _TABLE,
}
# Keys that a record may lack: of a run that has not ended, or of an older version.
OPTIONAL_FIELDS: dict[str, tuple[type, ...]] = {"files": _TABLE}
_JSON_NAMES = {
    str: "text",
    int: "a whole number",
    dict: "a table",
    list: "a list",
    bool: "true or false",
    type(None): "null",
}
# What changes while a run goes on, and what is known of one machine only.
_LEFT_OUT = (
    "ended", "outcome", "error", "metrics", "seconds", "peak_memory_mb", "details", "files",
)  # fmt: skip


def read_run(path: Path) -> dict[str, Any]:
    """Reads a ``run.json`` and checks it.

    Raises:
        UserError: it cannot be read, is of another schema, or lacks something.
    """
    where = repr(one_line(str(path)))
    try:
        size = path.stat().st_size
        if size > LARGEST_FILE:
            raise ValueError(f"it has {size:,} bytes")
        content = json.loads(path.read_text(encoding="utf-8"))
        # Halves of characters are no text; those that stand for bytes are a file's name.
        json.dumps(content, ensure_ascii=False).encode("utf-8", "surrogateescape")
    except FileNotFoundError as error:
        raise UserError(
            f"a run must have a run.json, got none at {where}; give the folder of a texture run or "
            f"of a study"
        ) from error
    except (OSError, ValueError, RecursionError) as error:
        reason = one_line(str(error))[:200] or type(error).__name__
        raise UserError(
            f"{where} must be a readable JSON file: {reason}; run the program again with --fresh"
        ) from error
    check_run(content, where)
    return content


def check_run(content: Any, where: str) -> None:
    """Refuses what is no record of schema 1.

    Args:
        content: of a JSON file.
        where: for the message.

    Raises:
        UserError: says which key is wrong.
    """
    if not isinstance(content, dict) or not isinstance(content.get("schema"), int):
        raise UserError(
            f'{where} must be a table with "schema": {SCHEMA}, got none; it is of an older version '
            f"or no run's: run the program again with --fresh"
        )
    if content["schema"] != SCHEMA or content["schema"] is True:
        raise UserError(
            f"{where} must be of schema {SCHEMA}, got {content['schema']}; read it with the "
            f"version of sdslab that wrote it"
        )
    for name, types in {**FIELDS, **OPTIONAL_FIELDS}.items():
        if name not in content and name in OPTIONAL_FIELDS:
            continue
        if name not in content:
            raise UserError(f"{where} must have {name!r}, got none; run the program again")
        value = content[name]
        # A bool is an int to Python, but not in JSON.
        if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
            expected = " or ".join(_JSON_NAMES[kind] for kind in types)
            raise UserError(
                f"{where}: {name!r} must be {expected}, got {one_line(json.dumps(value))[:60]}; "
                f"run the program again"
            )
    if _deeper_than(content, DEEPEST):
        raise UserError(f"{where} must be nested {DEEPEST} deep at most; run the program again")
    if content["outcome"] not in OUTCOMES:
        raise UserError(
            f"{where}: 'outcome' must be one of {', '.join(OUTCOMES)}, got "
            f"{one_line(content['outcome'])[:60]!r}; run the program again"
        )


def _deeper_than(value: Any, depth: int) -> bool:
    if not isinstance(value, dict | list):
        return False
    inner = value.values() if isinstance(value, dict) else value
    return depth == 0 or any(_deeper_than(item, depth - 1) for item in inner)


def origin_of(record: dict[str, Any]) -> dict[str, Any]:
    """The part of a record that is known from the start, for tables written before the end."""
    return {name: value for name, value in record.items() if name not in _LEFT_OUT}
