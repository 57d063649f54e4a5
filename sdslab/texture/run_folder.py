"""Whose a run's folder is: a new run's, this run's to go on with, or another's."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from sdslab.errors import UserError, one_line
from sdslab.run_schema import read_run

# What a run may be continued with: it changes where and how the result is made, not which.
FREE_SECTION = "output"
FREE_OPTIONS = ("low_memory", "offload")

State = Literal["new", "begun", "finished"]


def state_of(out: Path, config: Mapping[str, Any], inputs: Mapping[str, str]) -> State:
    """What the folder holds.

    Args:
        out: the run's folder.
        config: of the run to come, in sections.
        inputs: digests of the files that it will read, by name.

    Raises:
        UserError: another run's results.
    """
    if not (out / "run.json").is_file():
        return "new"
    try:
        before = read_run(out / "run.json")
        unlike = differences(before["config"], config)
        known = before["details"]["inputs"]
        unlike += [
            f"{one_line(name)} has changed since"
            for name, digest in inputs.items()
            if known.get(name) != digest
        ]
    except (UserError, KeyError, TypeError, AttributeError):
        before, unlike = {}, ["its run.json cannot be read"]
    if unlike:
        shown = "; ".join(unlike[:3]) + ("; …" if len(unlike) > 3 else "")
        raise UserError(
            f"--out must be empty or hold this same run, got {str(out)!r}, which holds another one "
            f"({shown}); give another --out, or --fresh to replace it"
        )
    return "finished" if before["outcome"] == "finished" else "begun"


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Settings that decide a run's result and are not alike, a phrase each.

    Args:
        before: a config in sections, JSON-able.
        now: another one.
    """
    before, now = (decisive(json.loads(json.dumps(config))) for config in (before, now))
    lines = []
    for section, values in now.items():
        for name, value in values.items():
            old = before.get(section, {}).get(name)
            if old != value:
                lines.append(f"{name.replace('_', '-')} {_shown(old)} there, {_shown(value)} here")
    return sorted(lines)


def decisive(config: Mapping[str, Any]) -> dict[str, Any]:
    """A config without what a run may be continued with."""
    return {
        section: {name: value for name, value in values.items() if name not in FREE_OPTIONS}
        for section, values in config.items()
        if section != FREE_SECTION
    }


def _shown(value: Any) -> str:
    text = one_line(str(value))
    return text if len(text) <= 60 else f"{text[:57]}..."
