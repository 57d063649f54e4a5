"""``--resume RUN`` of a study: its own settings, read back from its ``run.json``."""

import dataclasses
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdslab.errors import UserError, one_line
from sdslab.runs.from_toml import build
from sdslab.runs.resumed import ResumedRun
from sdslab.study.kinds import SAVED_KINDS, study_file

_NUMBERS = {"inf": math.inf, "-inf": -math.inf}  # which JSON lacks


@dataclass(frozen=True)
class ResumedStudy:
    """A study to go on with.

    Attributes:
        kind: one of ``SAVED_KINDS``.
        study: of that kind's dataclass; it writes where it wrote before.
        only: the rows that were asked for; all, where it is empty.
        folder: where it was started: paths in its settings begin there.
    """

    kind: str
    study: Any
    only: tuple[str, ...]
    folder: Path


def resumed_study(option: str) -> ResumedStudy:
    """The study whose folder, ``OUT/NAME``, ``--resume`` names.

    Raises:
        UserError: there is none, or none that goes on.
    """
    run = ResumedRun.of(option)
    program, kind = run.record["program"], run.record["kind"]
    if program != "study":
        raise UserError(
            f"--resume must be a study's folder, got {option!r}, which is of a {program} run; "
            f"give it to python -m sdslab.{program} instead"
        )
    if kind not in SAVED_KINDS:
        raise UserError(
            f"--resume is for studies whose finished rows are kept, got {option!r}, a study of "
            f"speeds, which are compared within one run; run its command again"
        )
    where = f"{one_line(option)}/run.json: config"
    file = study_file(kind)
    study = build(file.study, _with_infinities(run.record["config"]), where)
    assert file.check is not None
    file.check(study, where)
    if study.name != run.out.name:
        raise UserError(
            f"{where}: the study must have its folder's name, {run.out.name!r}, got "
            f"{study.name!r}; run its command again instead"
        )
    settings = dataclasses.replace(study.settings, out=str(run.out.parent))
    only = run.record["details"].get("only", [])
    if not isinstance(only, list) or not all(isinstance(name, str) for name in only):
        raise UserError(
            f"{one_line(option)}/run.json: details.only must be a list of names, got {only!r}; run "
            f"its command again instead"
        )
    study = dataclasses.replace(study, settings=settings)
    return ResumedStudy(kind, study, tuple(only), run.started_in)


def _with_infinities(value: Any) -> Any:
    """``value`` with the numbers that ``write_json`` wrote as text."""
    if isinstance(value, dict):
        return {key: _with_infinities(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_infinities(item) for item in value]
    return _NUMBERS.get(value, value) if isinstance(value, str) else value
