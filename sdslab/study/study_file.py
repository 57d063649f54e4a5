"""A study as data: strict TOML to dataclasses, a preset applied, and back; its files on disk."""

import dataclasses
import importlib
import math
import re
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sdslab.errors import UserError, one_line
from sdslab.files.atomic_write import check_writable
from sdslab.runs.folder import (
    ResumedRun,
    check_inputs_apart,
    check_output_folder,
    check_own_file,
    does_not_count,
    is_own_page,
    listed_in,
    own_files,
    record_in,
)
from sdslab.runs.from_toml import as_table, build, check_keys, read_toml
from sdslab.shell.named_inputs import is_named_object

if TYPE_CHECKING:
    from sdslab.study.experiment import Experiment

# The kinds of study, each an `Experiment`: a class of a module of this package.
KINDS = {
    "reconstruction": "reconstruction.Reconstruction",
    "renderer": "renderer.RendererSpeeds",
    "kernels": "kernels.KernelSpeeds",
    "exemplar": "exemplar.ExemplarPictures",
    "exemplar_mesh": "exemplar_mesh.ExemplarMeshes",
    "texture_step": "texture_step.TextureStepSpeeds",
    "figure2_speed": "figure2_speed.Figure2Speeds",
    "objectives": "objectives.Objectives",
}
SUFFIXES = (
    "csv", "md", "png", "pdf", "convergence.png", "convergence.pdf", "mode_seeking.png",
)  # fmt: skip
_HEAD = ("name", "title", "preset", "settings")  # fields of a study that are no sections
_NUMBERS = {"inf": math.inf, "-inf": -math.inf}  # which JSON lacks


def studies_folder() -> Path:
    """The folder of the study files: beside the package in a checkout, inside it when installed."""
    package = Path(__file__).parents[1]
    checkout = package.parent / "studies"
    return checkout if checkout.is_dir() else package / "studies"


def list_studies() -> dict[str, str]:
    """Names and titles of the studies that come with sdslab."""
    return {
        path.stem: str(read_toml(path).get("title", ""))
        for path in sorted(studies_folder().glob("*.toml"))
    }


def find_study(name: str) -> Path:
    """The file of a study given by name or by path."""
    if not name.endswith(".toml"):
        if name not in list_studies():
            raise UserError(
                f"STUDY must be one of {', '.join(list_studies())}, or a .toml file, got {name!r}"
            )
        return studies_folder() / f"{name}.toml"
    if not Path(name).is_file():
        raise UserError(f"STUDY must be an existing .toml file, got {name!r}")
    return Path(name)


def study_kind(path: Path) -> str:
    """What a study file describes, one of ``KINDS``: its key ``kind``, or else "reconstruction"."""
    kind = read_toml(path).get("kind", "reconstruction")
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(f"{path}: kind must be one of {', '.join(KINDS)}, got {kind!r}")
    return kind


def experiment_of(kind: str) -> "type[Experiment]":
    """The class of a kind; it imports what the kind computes with."""
    module, name = KINDS[kind].split(".")
    return getattr(importlib.import_module(f"sdslab.study.{module}"), name)


def load_study(path: Path, preset: str | None = None) -> Any:
    """Reads a study file of any kind and applies one of its presets; all presets are checked.

    Raises:
        UserError: no TOML, a key or value that is not one of the valid ones (which are listed), a
            missing key, or an unknown preset.
    """
    experiment, table = experiment_of(study_kind(path)), read_toml(path)
    sections = _sections(experiment)
    check_keys(table, ("title", "kind", "settings", *sections, "presets"), str(path))
    presets = as_table(table.get("presets", {}), f"{path}: presets")
    if preset is not None and preset not in presets:
        valid = ", ".join(presets) or "none here"
        raise UserError(f"{path}: preset must be one of {valid}, got {preset!r}")
    studies = {name: _resolve(experiment, table, name, path) for name in (None, *presets)}
    return studies[preset]


def _sections(experiment: "type[Experiment]") -> dict[str, type[Any]]:
    """The sections of rows of a kind, each with the dataclass of its rows."""
    hints = typing.get_type_hints(experiment.study_class)
    return {name: typing.get_args(hints[name])[0] for name in hints if name not in _HEAD}


def _resolve(
    experiment: "type[Experiment]", table: dict[str, Any], preset: str | None, path: Path
) -> Any:
    """Builds the study with one preset applied."""
    sections = _sections(experiment)
    settings = dict(as_table(table.get("settings", {}), f"{path}: settings"))
    rows = {name: _rows(table.get(name, []), f"{path}: {name}") for name in sections}
    if preset is not None:
        _apply_preset(table["presets"][preset], settings, rows, f"{path}: presets.{preset}")
    settings_class = typing.get_type_hints(experiment.study_class)["settings"]
    study = experiment.study_class(
        name=path.stem,
        title=str(table.get("title", path.stem)),
        preset=preset or "default",
        settings=build(settings_class, settings, f"{path}: settings"),
        **{
            name: tuple(
                build(sections[name], row, f"{path}: {name}.{row.get('name', number)}")
                for number, row in enumerate(given)
            )
            for name, given in rows.items()
        },
    )
    return _checked(experiment, study, str(path))


def _checked(experiment: "type[Experiment]", study: Any, where: str) -> Any:
    """The study, if its rows' names can be told apart and part files from each other."""
    for section in _sections(experiment):
        names = [row.name for row in getattr(study, section)]
        for name in names:
            if not re.fullmatch("[a-z0-9_]+", name):
                raise UserError(
                    f"{where}: {section}: a name must be lower-case letters, digits and "
                    f"underscores, got {name!r}"
                )
            if names.count(name) > 1:
                raise UserError(f"{where}: {section} must have different names, got {name!r} twice")
    if not any(getattr(study, section) for section in _sections(experiment)):
        sections = " or ".join(_sections(experiment))
        raise UserError(f"{where}: {sections} must be given, at least one, got none")
    return experiment.finish_study(study, where, lambda name: load_study(find_study(name)))


def _rows(value: Any, where: str) -> list[dict[str, Any]]:
    if not isinstance(value, list):
        raise UserError(f"{where} must be [[tables]], got {value!r}")
    return [dict(as_table(row, where)) for row in value]


def _apply_preset(
    preset: Any,
    settings: dict[str, Any],
    sections: dict[str, list[dict[str, Any]]],
    where: str,
) -> None:
    """Replaces single values, in place.

    Args:
        preset: a table; ``[presets.NAME.settings]`` (or keys beside it) replaces settings and
            ``[presets.NAME.SECTION.ROW]`` reaches into the row of that name.
        settings: the study's.
        sections: the study's rows by section.
        where: for messages.
    """
    preset = dict(as_table(preset, where))
    changes = {name: as_table(preset.pop(name, {}), f"{where}.{name}") for name in sections}
    settings.update(as_table(preset.pop("settings", {}), f"{where}.settings"))
    settings.update(preset)
    for section, rows in sections.items():
        by_name = {str(row.get("name")): row for row in rows}
        check_keys(changes[section], by_name, f"{where}.{section}")
        for name, change in changes[section].items():
            for key, value in as_table(change, f"{where}.{section}.{name}").items():
                before = by_name[name].get(key, {})
                both = isinstance(value, dict) and isinstance(before, dict)
                by_name[name][key] = {**before, **value} if both else value


@dataclass(frozen=True)
class ResumedStudy:
    """A study to go on with.

    Attributes:
        kind: one of ``KINDS``.
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
    experiment = experiment_of(kind) if kind in KINDS else None
    if experiment is None or not experiment.sources:
        raise UserError(
            f"--resume is for studies whose finished rows are kept, got {option!r}, a study of "
            f"speeds, which are compared within one run; run its command again"
        )
    where = f"{one_line(option)}/run.json: config"
    study = build(experiment.study_class, _with_infinities(run.record["config"]), where)
    study = _checked(experiment, study, where)
    rows = [row for section in _sections(experiment) for row in getattr(study, section)]
    if any(is_named_object(name) for row in rows for name in getattr(row, "named", ())):
        raise UserError(
            f"--resume must be of a study without MODULE:NAME, whose code it would run, got "
            f"{option!r}; give its .toml again: finished cells are kept, and it goes on"
        )
    if study.name != run.out.name:
        raise UserError(
            f"{where}: the study must have its folder's name, {run.out.name!r}, got "
            f"{study.name!r}; run its command again instead"
        )
    only = run.record["details"].get("only", [])
    if not isinstance(only, list) or not all(isinstance(name, str) for name in only):
        raise UserError(
            f"{one_line(option)}/run.json: details.only must be a list of names, got {only!r}; run "
            f"its command again instead"
        )
    settings = dataclasses.replace(study.settings, out=str(run.out.parent))
    study = dataclasses.replace(study, settings=settings)
    return ResumedStudy(kind, study, tuple(only), run.started_in)


def _with_infinities(value: Any) -> Any:
    """``value`` with the numbers that ``write_json`` wrote as text."""
    if isinstance(value, dict):
        return {key: _with_infinities(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_with_infinities(item) for item in value]
    return _NUMBERS.get(value, value) if isinstance(value, str) else value


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
