"""Whose a run's folder is: a new run's, this run's to go on with, or another's."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from sdslab.errors import UserError

# What a run may be continued with: it changes where and how results are written, not which.
FREE = ("output",)

State = Literal["new", "begun", "finished"]


def state_of(out: Path, config: Mapping[str, Any]) -> State:
    """What the folder holds.

    Args:
        out: the run's folder.
        config: of the run to come, JSON-able, in sections.

    Raises:
        UserError: another run's results.
    """
    path = out / "run.json"
    if not path.is_file():
        return "new"
    try:
        before = json.loads(path.read_text(encoding="utf-8"))["config"]
        differences = _differences(before, json.loads(json.dumps(config)))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        differences = ["its run.json cannot be read"]
    if differences:
        shown = "; ".join(differences[:3]) + ("; …" if len(differences) > 3 else "")
        raise UserError(
            f"--out must be empty or hold this same run, got {str(out)!r}, which holds another one "
            f"({shown}); give another --out, or --fresh to replace it"
        )
    try:
        results = json.loads((out / "results.json").read_text(encoding="utf-8"))
        return "begun" if results["interrupted"] else "finished"
    except (OSError, ValueError, KeyError, TypeError):
        return "begun"


def _differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    lines = []
    for section in now.keys() - set(FREE):
        for name, value in now[section].items():
            old = before.get(section, {}).get(name)
            if old != value:
                lines.append(f"{name.replace('_', '-')} {old} there, {value} here")
    return sorted(lines)
