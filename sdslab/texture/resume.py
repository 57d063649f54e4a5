"""``--resume RUN``: a run's own settings, read back from its ``run.json``."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdslab.errors import UserError, one_line
from sdslab.runs.resumed import ResumedRun
from sdslab.texture.arguments import Arguments
from sdslab.texture.run_folder import arguments_of, differences


@dataclass(frozen=True)
class Resumed:
    """A run to go on with.

    Attributes:
        arguments: its own, but for what the command line says of its output.
        folder: where it was started: paths in its arguments begin there.
    """

    arguments: Arguments
    folder: Path


def resumed_run(given: Arguments, parse: Callable[[Arguments], Arguments]) -> Resumed:
    """The run that ``--resume`` names.

    Args:
        given: the command line.
        parse: the command line once more, with defaults other than the program's own.

    Raises:
        UserError: there is no such run, or the command line has options that change its result.
    """
    assert given.output.resume is not None
    run = ResumedRun.of(given.output.resume)
    if given.output.fresh:
        raise UserError("--resume and --fresh exclude each other: give one")
    if given.output.out is not None:
        raise UserError(
            f"--resume goes on in the run's own folder, got --out {given.output.out}; leave it out"
        )
    recorded = _arguments(run.record["config"], run.out)
    merged = parse(recorded)
    changed = differences(dataclasses.asdict(recorded), _explicit(given, merged, recorded))
    if changed:
        raise UserError(
            f"--resume goes on with the run's own settings, got others ({'; '.join(changed)}); "
            f"leave them out, or start another run with them"
        )
    output = dataclasses.replace(merged.output, out=str(run.out), resume=None, fresh=False)
    return Resumed(dataclasses.replace(recorded, output=output), run.started_in)


def _arguments(config: Mapping[str, Any], run: Path) -> Arguments:
    try:
        return arguments_of(config, f"{one_line(str(run))}/run.json: config")
    except UserError as error:
        raise UserError(
            f"--resume needs the run.json of a texture run of this version, got {error}; run its "
            f"command again instead"
        ) from error


def _explicit(given: Arguments, merged: Arguments, recorded: Arguments) -> dict[str, Any]:
    """``merged``, in which what is given again of a repeatable option replaces what was recorded.

    The parser appends it instead.
    """
    config = dataclasses.asdict(merged)
    for section, values in config.items():
        before = getattr(recorded, section)
        for name, value in values.items():
            asked = getattr(getattr(given, section), name)
            both = (getattr(before, name), asked)
            repeatable = all(isinstance(part, tuple) for part in both)
            if repeatable and value == both[0] + both[1]:
                values[name] = asked or value
    return json.loads(json.dumps(config))
