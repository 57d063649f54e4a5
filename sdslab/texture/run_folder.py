"""Whose a run's folder is: a new run's, this run's to go on with, or another's; ``--resume``."""

import dataclasses
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from sdslab.errors import UserError, one_line
from sdslab.files.atomic_write import check_writable
from sdslab.runs.folder import (
    ResumedRun,
    check_inputs_apart,
    check_output_folder,
    listed_in,
    own_files,
    record_in,
)
from sdslab.runs.from_toml import build
from sdslab.runs.schema import read_run
from sdslab.texture.arguments import Arguments

# What a run may be continued with: it changes where and how the result is made, not which.
FREE_SECTION = "output"
FREE_OPTIONS = ("low_memory", "offload")

_MAPS = ("albedo", "metallic_roughness", "normal", "roughness", "metallic", "opacity")
LOG = ("metrics.csv", "previews/*.png")
# All files that a run may write, beside its checkpoints and TensorBoard's log.
OUTPUTS = (
    *LOG, "report.html", "mesh.glb", "front.png", "light.hdr", "contact_sheet.png",
    "turntable.mp4", "turntable.gif", "obj/mesh.obj", "obj/mesh.mtl",
    "obj/emissive-*.png", "obj/emissive-*.jpg", "inputs/photograph-*.png", "inputs/target.png",
    *(f"{material}/mesh.glb" for material in ("original", "target", "stage1")),
    *(f"{folder}/{name}.png" for folder in ("maps", "obj") for name in _MAPS),
    *(f"maps/{name}.exr" for name in _MAPS),
)  # fmt: skip

State = Literal["new", "begun", "finished"]


def own_outputs(out: Path, inputs: Mapping[str, str]) -> list[Path]:
    """What an earlier run left in its folder: to be replaced or removed.

    Args:
        out: the run's folder.
        inputs: files and folders that the run reads, by option.

    Raises:
        UserError: the folder cannot be written, holds what is not ours, or an input lies in it.
    """
    for folder in (out, out / "obj", out / "maps"):
        check_writable(folder)
    check_inputs_apart(out, inputs, "--out")
    check_output_folder(out, _holds_a_texture, "--out")
    listed = listed_in(record_in(out / "run.json"))
    own = own_files(out, OUTPUTS, listed, "--out", inputs)
    return own if listed is not None else [*own, *_half_written(out)]


def _half_written(out: Path) -> list[Path]:
    """What `atomic_write` had not yet renamed when its process was killed."""
    places = [out / name for name in OUTPUTS]
    return [
        path
        for place in places
        for path in place.parent.glob(f".{place.stem}.????????{place.suffix}")
        if path.is_file() and not path.is_symlink()
    ]


def _holds_a_texture(folder: Path) -> bool:
    return (record_in(folder / "run.json") or {}).get("program") == "texture"


def state_of(
    out: Path,
    resolve: Callable[[Arguments], Arguments],
    arguments: Arguments,
    inputs: Mapping[str, str],
) -> State:
    """What the folder holds.

    Args:
        out: the run's folder.
        resolve: fills the defaults in where a record of an older version has none.
        arguments: of the run to come, with every default filled in.
        inputs: digests of the files that it will read, by name.

    Raises:
        UserError: another run's results.
    """
    if not (out / "run.json").is_file():
        return "new"
    try:
        before = read_run(out / "run.json")
        there = resolve(arguments_of(before["config"], "config"))
        unlike = differences(dataclasses.asdict(there), dataclasses.asdict(arguments))
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


def arguments_of(config: Mapping[str, Any], where: str) -> Arguments:
    """The arguments that a record's ``config`` stands for; what it leaves out has its default.

    Args:
        config: as `resolved_arguments.recorded_config` makes it.
        where: it was read, for the message.

    Raises:
        UserError: it is of another version, or none.
    """
    sections = {field.name: {} for field in dataclasses.fields(Arguments)}
    given = {name: value for name, value in config.items() if name != "stages"}
    if "subject" not in given:
        raise UserError(f"{where} must hold 'subject', got {', '.join(given) or 'nothing'}")
    return build(Arguments, {**sections, **given}, where)


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
    for option, name in recorded.named_objects.items():
        if given.named_objects.get(option) != name:
            # A record may come from anywhere: code runs only where the command line names it.
            raise UserError(
                f"--resume of a run by code of one's own needs that named again, got a run by "
                f"{one_line(str(name))!r}; if you trust it, add {option} {name}"
            )
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
