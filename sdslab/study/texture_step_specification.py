"""A study of whole texture steps as data. Imports nothing heavy."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sdslab.errors import UserError
from sdslab.study.specification import build, read_study

SECTIONS = ("steps",)


@dataclass(frozen=True)
class TextureStepSettings:
    """What every row shares."""

    mesh: str = "torus"
    """A file, or a built-in mesh."""
    light: str = "studio"
    """A built-in environment, or a panorama."""
    device: str = "auto"
    """"auto" is cuda where there is one."""
    repeats: int = 15
    """Timed steps of each row, after two that are not."""
    out: str = "figures"
    """Folder for the results."""


@dataclass(frozen=True)
class StepCase:
    """A step of one stage, ours and plain eager."""

    name: str
    label: str
    device: Literal["cpu", "cuda"]
    """The kind of device that it is meant for; on another it is left out."""
    unet: Literal["IF-I-M", "IF-I-XL", "IF-II-L", "tiny-I", "tiny-II"]
    """A name of ``sdslab.study.unet_configurations.CONFIGURATIONS``; it decides the stage."""
    views: int
    render_size: int
    texture_size: int
    """A power of two."""

    @property
    def shape(self) -> str:
        """Views, picture and texture, for people."""
        return f"{self.views} × {self.render_size}², {self.texture_size}²"


@dataclass(frozen=True)
class TextureStepStudy:
    """A parsed study file with one preset applied."""

    name: str
    title: str
    preset: str
    settings: TextureStepSettings
    steps: tuple[StepCase, ...]


def load_texture_step_study(path: Path, preset: str | None = None) -> TextureStepStudy:
    """Reads a study file of kind "texture_step".

    Raises:
        UserError: a key or value that is not one of the valid ones.
    """
    tables = read_study(path, SECTIONS, preset)
    study = TextureStepStudy(
        name=tables.name,
        title=tables.title,
        preset=tables.preset,
        settings=build(TextureStepSettings, tables.settings, f"{path}: settings"),
        steps=tuple(build(StepCase, row, f"{path}: steps") for row in tables.sections["steps"]),
    )
    for case in study.steps:
        size = case.texture_size
        if size < 1 or size & (size - 1):
            raise UserError(
                f"{path}: texture_size must be a power of two, got {size} in {case.name}"
            )
        if case.views < 1 or case.render_size < 1:
            raise UserError(f"{path}: views and render_size must be positive in {case.name}")
    return study
