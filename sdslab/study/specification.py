"""A study as data: strict TOML to frozen dataclasses. Imports nothing heavy."""

import dataclasses
import re
import tomllib
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from sdslab.errors import UserError
from sdslab.runs.from_toml import as_table, build, check_keys


@dataclass(frozen=True)
class Settings:
    """What a study runs on; presets and command-line options replace single fields."""

    images: tuple[str, ...]
    """Files, or names of the photographs that scikit-image ships."""
    seeds: tuple[int, ...]
    """Of the initial θ and of the noise."""
    size: int
    """Height and width of the image, in pixels."""
    vae: str = "shipped"
    """"shipped", a local folder or a hub id."""
    dtype: Literal["float32", "float64"] = "float32"
    """Of θ, the VAE and the gradient."""
    device: str = "cpu"
    """"auto" is cuda where there is one."""
    out: str = "figures"
    """Folder for the results."""


@dataclass(frozen=True)
class Optimization:
    """Fields of ``OptimizeConfig``, which explains and checks them."""

    steps: int
    optimizer: str = "adam"
    learning_rate: float = 0.01
    learning_rate_schedule: str = "constant"
    gradient_norm_limit: float = float("inf")
    converged_below: float = 0.0


@dataclass(frozen=True)
class Cell:
    """One way of recovering an image: where diffusion happens, what θ is, how it is optimised."""

    name: str
    """For ``--only`` and file names: lower-case letters, digits and underscores."""
    label: str
    """For the table and the figure."""
    diffusion: Literal["pixel", "latent"]
    """The space of the diffusion model."""
    parameterization: Literal["pixel", "dip", "latent"]
    """What θ is."""
    optimization: Optimization
    """How θ moves."""
    initialization: Literal["grey", "noise", "image", "network"] = "network"
    """θ at the start; "image" is the original itself, "network" a DIP's random weights."""
    network: str = "paint-it"
    """The DIP network."""
    width: int | None = None
    """The DIP network's channels; absent: its own."""
    weighting: str = "x0_unit"
    """w(t), a name of ``sdslab.denoisers.noise_schedule.WEIGHTINGS``."""
    noise: Literal["cancelled", "sampled"] = "cancelled"
    """Eq. 3 in closed form, or through a drawn ε, x_t and the printed ε̂."""
    pictured: bool = True
    """Whether the figure shows it; the table always does."""
    paper_psnr_db: dict[str, float] = field(default_factory=dict)
    """The paper's numbers by read-out: theta, decoded."""


@dataclass(frozen=True)
class Study:
    """A parsed study file with one preset applied."""

    name: str
    title: str
    preset: str
    settings: Settings
    cells: tuple[Cell, ...]


STUDY_KEYS = ("title", "kind", "settings", "cells", "presets")
KINDS = (
    "reconstruction", "renderer", "kernels", "exemplar", "exemplar_mesh", "texture_step",
    "figure2_speed",
)  # fmt: skip


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


def study_kind(path: Path) -> str:
    """What a study file describes, one of ``KINDS``: its key ``kind``, or else "reconstruction"."""
    kind = read_toml(path).get("kind", "reconstruction")
    if kind not in KINDS:
        raise UserError(f"{path}: kind must be one of {', '.join(KINDS)}, got {kind!r}")
    return kind


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


def load_study(path: Path, preset: str | None = None) -> Study:
    """Reads a study file and applies one of its presets; the keys and types of all are checked.

    Raises:
        UserError: not TOML, a key or value that is not one of the valid ones (which are listed), a
            missing key, or an unknown preset.
    """
    table = read_toml(path)
    check_keys(table, STUDY_KEYS, str(path))
    for key in ("title", "settings", "cells"):
        if key not in table:
            raise UserError(f"{path}: {key!r} must be there, got none")
    presets = as_table(table.get("presets", {}), f"{path}: presets")
    if preset is not None and preset not in presets:
        valid = ", ".join(presets) or "none here"
        raise UserError(f"{path}: preset must be one of {valid}, got {preset!r}")
    studies = {name: _resolve(table, name, path) for name in (None, *presets)}
    return studies[preset]


def select_cells(study: Study, only: tuple[str, ...]) -> Study:
    """Keeps the cells named in ``only``; all, where it is empty."""
    check_only(only, [cell.name for cell in study.cells])
    cells = tuple(cell for cell in study.cells if not only or cell.name in only)
    return dataclasses.replace(study, cells=cells)


def _resolve(table: dict[str, Any], preset: str | None, path: Path) -> Study:
    """Builds the study with one preset applied."""
    settings = dict(as_table(table["settings"], f"{path}: settings"))
    cells = [dict(as_table(cell, f"{path}: cells")) for cell in _list(table["cells"], str(path))]
    if preset is not None:
        where = f"{path}: presets.{preset}"
        preset_keys = [f.name for f in dataclasses.fields(Settings)]
        changes = as_table(table["presets"][preset], where)
        check_keys(changes, [*preset_keys, "cells"], where)
        apply_preset(changes, settings, {"cells": cells}, where)
    built = tuple(
        build(Cell, cell, f"{path}: cells.{cell.get('name', number)}")
        for number, cell in enumerate(cells)
    )
    study = Study(
        name=path.stem,
        title=str(table["title"]),
        preset=preset or "default",
        settings=build(Settings, settings, f"{path}: settings"),
        cells=built,
    )
    check_study(study, str(path))
    return study


def apply_preset(
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

    Raises:
        UserError: a row that is not there.
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
                if isinstance(value, dict) and isinstance(before, dict):
                    by_name[name][key] = {**before, **value}
                else:
                    by_name[name][key] = value


def rows_of_tables(value: Any, where: str) -> list[dict[str, Any]]:
    """Copies of the tables of one section."""
    if not isinstance(value, list):
        raise UserError(f"{where} must be [[tables]], got {value!r}")
    return [dict(as_table(row, where)) for row in value]


@dataclass(frozen=True)
class StudyTables:
    """A study file's tables with one preset applied; what is in them is not checked yet.

    Attributes:
        name: of the file.
        title: of the study.
        preset: "default", or the one that was applied.
        settings: its settings.
        sections: its rows by section.
    """

    name: str
    title: str
    preset: str
    settings: dict[str, Any]
    sections: dict[str, list[dict[str, Any]]]


def read_study(path: Path, sections: tuple[str, ...], preset: str | None) -> StudyTables:
    """Reads a study file of another kind than "reconstruction".

    Raises:
        UserError: no TOML, another section, or an unknown preset.
    """
    table = read_toml(path)
    check_keys(table, ("title", "kind", "settings", *sections, "presets"), str(path))
    presets = table.get("presets", {})
    if preset is not None and preset not in presets:
        valid = ", ".join(presets) or "none here"
        raise UserError(f"{path}: preset must be one of {valid}, got {preset!r}")
    rows = {name: rows_of_tables(table.get(name, []), f"{path}: {name}") for name in sections}
    settings = dict(table.get("settings", {}))
    if preset is not None:
        apply_preset(presets[preset], settings, rows, f"{path}: presets.{preset}")
    title = str(table.get("title", path.stem))
    return StudyTables(path.stem, title, preset or "default", settings, rows)


def check_study(study: Study, where: str) -> None:
    """Refuses cells that make no sense, and names that are not one file's each."""
    check_names([cell.name for cell in study.cells], f"{where}: cells")
    for cell in study.cells:
        _check_cell(cell, f"{where}: cells.{cell.name}")


def check_names(names: list[str], where: str) -> None:
    """Refuses rows' names that are no part of a file's name, or not each row's own."""
    for name in names:
        if not re.fullmatch("[a-z0-9_]+", name):
            raise UserError(
                f"{where}: a name must be lower-case letters, digits and underscores, got {name!r}"
            )
        if names.count(name) > 1:
            raise UserError(f"{where} must have different names, got {name!r} twice")


def check_only(only: tuple[str, ...], names: list[str], where: str = "") -> None:
    """Refuses names of rows that a study does not have."""
    for name in only:
        if name not in names:
            raise UserError(f"--only must name one of {', '.join(names)}{where}, got {name!r}")


def _check_cell(cell: Cell, where: str) -> None:
    if cell.parameterization == "latent" and cell.diffusion == "pixel":
        raise UserError(f"{where}: a latent parameterization needs diffusion = 'latent'")
    if (cell.parameterization == "dip") != (cell.initialization == "network"):
        raise UserError(
            f"{where}: initialization must be 'network' for dip and 'grey', 'noise' or 'image' "
            f"otherwise, got {cell.initialization!r}"
        )
    check_keys(cell.paper_psnr_db, ("theta", "decoded"), f"{where}.paper_psnr_db")


def read_toml(path: Path) -> dict[str, Any]:
    """Parses a file.

    Raises:
        UserError: it is not there, or no TOML.
    """
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    # Besides its own errors tomllib lets through those of long integers and of deep nesting.
    except (OSError, ValueError, RecursionError) as error:
        raise UserError(f"{path} must be a readable TOML file: {error}") from error


def _list(value: Any, where: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise UserError(f"{where}: cells must be [[cells]] tables, at least one, got {value!r}")
    return value
