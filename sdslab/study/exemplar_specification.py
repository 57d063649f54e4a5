"""A study of the exemplar denoiser in two dimensions, as data. Imports nothing heavy."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from sdslab.errors import UserError
from sdslab.study.specification import build, check_names, read_study

SECTIONS = ("cases", "sweeps")
FACTOR = 4  # of the enlargement


@dataclass(frozen=True)
class ExemplarSettings:
    """What every case shares."""

    photos: tuple[str, ...]
    """Files, or names of the photographs that scikit-image ships."""
    seeds: tuple[int, ...]
    """Of the noise; real crops are taken from another corner for each."""
    sweep_photos: tuple[str, ...]
    """Photographs of the sweeps; together they are what a tag is told from."""
    sweep_seeds: tuple[int, ...]
    """Seeds of the sweeps."""
    size: int = 64
    """Height and width of the small pictures; the enlarged ones have four times as much."""
    exemplar_size: int = 96
    """Height and width of the photograph beside small pictures."""
    device: str = "cpu"
    """"auto" is cuda where there is one."""
    out: str = "figures"
    """Folder for the results."""


@dataclass(frozen=True)
class ExemplarCase:
    """One way of making a picture like a photograph."""

    name: str
    label: str
    method: Literal["crop", "ddim", "sds", "pyramid", "bicubic", "sr_sds"]
    """A real crop; samples; SDS from grey at one resolution, or from coarse to fine; enlarged."""
    steps: int = 100
    """Of the sampler or the optimisation; a pyramid's at its finest level."""
    noise: Literal["fixed", "fresh"] = "fixed"
    """One ε for the whole run, or another one each step."""
    timesteps: Literal["annealed", "random"] = "annealed"
    """t falls evenly, or is drawn anew each step."""
    band_energy: bool = False
    """Whether x̂_0 gets the photograph's contrast back."""
    temperature: float = 1.0
    """That the posterior's log-likelihood is divided by."""
    guidance: float | None = None
    """w of ε_all + w (ε_photo − ε_all), among the sweeps' photographs; absent: its own alone."""
    enlarges: str | None = None
    """The case whose pictures are enlarged."""
    enlarged: bool = False
    """Whether a crop is one of the enlarged size."""
    pictured: bool = True
    """Whether the contact sheet shows it; the table always does."""

    @property
    def is_large(self) -> bool:
        """Whether its pictures have the enlarged size."""
        return self.enlarged or self.enlarges is not None


@dataclass(frozen=True)
class Sweep:
    """One setting varied, for the plot of collapse."""

    name: str
    case: str
    """The case that is varied."""
    parameter: Literal["temperature", "guidance"]
    values: tuple[float, ...]


@dataclass(frozen=True)
class ExemplarStudy:
    """A parsed study file with one preset applied."""

    name: str
    title: str
    preset: str
    settings: ExemplarSettings
    cases: tuple[ExemplarCase, ...]
    sweeps: tuple[Sweep, ...]

    def case_named(self, name: str) -> ExemplarCase:
        """The case of that name, which must be there."""
        return next(case for case in self.cases if case.name == name)

    def swept(self, sweep: Sweep) -> list[tuple[float, ExemplarCase]]:
        """The sweep's values, each with its case."""
        base = self.case_named(sweep.case)
        return [
            (value, replace(base, **{"name": f"{sweep.name}_{value:g}", sweep.parameter: value}))
            for value in sweep.values
        ]


def load_exemplar_study(path: Path, preset: str | None = None) -> ExemplarStudy:
    """Reads a study file of kind "exemplar".

    Raises:
        UserError: a key or value that is not one of the valid ones.
    """
    tables = read_study(path, SECTIONS, preset)
    study = ExemplarStudy(
        name=tables.name,
        title=tables.title,
        preset=tables.preset,
        settings=build(ExemplarSettings, tables.settings, f"{path}: settings"),
        cases=tuple(build(ExemplarCase, row, f"{path}: cases") for row in tables.sections["cases"]),
        sweeps=tuple(build(Sweep, row, f"{path}: sweeps") for row in tables.sections["sweeps"]),
    )
    check_exemplar_study(study, str(path))
    return study


def check_exemplar_study(study: ExemplarStudy, where: str) -> None:
    """Refuses settings, cases and sweeps that make no sense."""
    settings = study.settings
    if settings.size % 4 or not 32 <= settings.size <= settings.exemplar_size:
        raise UserError(
            f"{where}: settings.size must be a multiple of 4 from 32 to exemplar_size, "
            f"{settings.exemplar_size}, got {settings.size}"
        )
    if settings.exemplar_size % 4:
        raise UserError(
            f"{where}: settings.exemplar_size must be a multiple of 4, got {settings.exemplar_size}"
        )
    check_names([case.name for case in study.cases], f"{where}: cases")
    for case in study.cases:
        place = f"{where}: cases.{case.name}"
        if case.steps < 2:
            raise UserError(f"{place}: steps must be at least 2, got {case.steps}")
        if not case.temperature > 0:
            raise UserError(f"{place}: temperature must be positive, got {case.temperature:g}")
        if (case.method in ("bicubic", "sr_sds")) != (case.enlarges is not None):
            raise UserError(f"{place}: enlarges must be given for bicubic and sr_sds, and only so")
        small = [other.name for other in study.cases if not other.is_large]
        if case.enlarges is not None and case.enlarges not in small:
            raise UserError(
                f"{place}: enlarges must be one of {', '.join(small)}, got {case.enlarges!r}"
            )
    for sweep in study.sweeps:
        valid = [case.name for case in study.cases if case.method == "sds"]
        if sweep.case not in valid:
            raise UserError(
                f"{where}: sweeps.{sweep.name}: case must be one of {', '.join(valid) or 'none'}, "
                f"got {sweep.case!r}"
            )
        if sweep.parameter == "temperature" and min(sweep.values) <= 0:
            raise UserError(
                f"{where}: sweeps.{sweep.name}: temperatures must be positive, got "
                f"{min(sweep.values):g}"
            )
