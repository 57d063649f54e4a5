"""A study of the renderer as data. Imports nothing heavy."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sdslab.errors import UserError
from sdslab.study.specification import build, read_study

SECTIONS = ("comparisons", "loads", "steps", "recoveries")


@dataclass(frozen=True)
class RendererSettings:
    """What every row shares."""

    mesh: str = "torus"
    """A file, or a built-in mesh."""
    target: str = "coffee"
    """The picture that steps and recoveries are guided to."""
    device: str = "auto"
    """"auto" is cuda where there is one."""
    repeats: int = 15
    """Timed calls of each row, after one that is not."""
    out: str = "figures"
    """Folder for the results."""


@dataclass(frozen=True)
class Comparison:
    """One operation, ours and a reference's."""

    name: str
    label: str
    operation: Literal["visibility", "texture"]
    """"visibility" against embree, "texture" against plain torch."""
    views: int
    render_size: int
    texture_size: int = 1


@dataclass(frozen=True)
class LoadTiming:
    """A mesh file loaded by us and by trimesh, each time in a fresh process."""

    name: str
    label: str
    file: Literal["obj", "ply", "glb"]
    faces: int
    """About so many, with texture coordinates."""
    repeats: int | None = None
    """In place of the settings' own."""


@dataclass(frozen=True)
class StepTiming:
    """Whole optimisation steps."""

    name: str
    label: str
    views: int
    render_size: int
    texture_size: int
    subdivisions: int = 0
    """Each turns every face into four."""
    repeats: int | None = None
    """In place of the settings' own."""


@dataclass(frozen=True)
class Recovery:
    """A known material, recovered from grey."""

    name: str
    label: str
    views: int
    render_size: int
    texture_size: int
    steps: int
    learning_rate: float
    cameras: Literal["castex", "wide"] = "castex"
    """A name of ``sdslab.rendering.cameras.CAMERA_SAMPLERS``."""
    lights: tuple[str, ...] = ()
    unlit: bool = False
    fixed_light: bool = False
    disable: tuple[Literal["albedo", "roughness", "metallic", "normal"], ...] = ()
    """Maps that are known to be neutral: no metal, no bumps, roughness 0.5."""


@dataclass(frozen=True)
class RendererStudy:
    """A parsed study file with one preset applied."""

    name: str
    title: str
    preset: str
    settings: RendererSettings
    comparisons: tuple[Comparison, ...]
    loads: tuple[LoadTiming, ...]
    steps: tuple[StepTiming, ...]
    recoveries: tuple[Recovery, ...]


def load_renderer_study(path: Path, preset: str | None = None) -> RendererStudy:
    """Reads a study file of kind "renderer".

    Raises:
        UserError: a key or value that is not one of the valid ones.
    """
    tables = read_study(path, SECTIONS, preset)
    kinds = {
        "comparisons": Comparison,
        "loads": LoadTiming,
        "steps": StepTiming,
        "recoveries": Recovery,
    }
    built = {
        name: tuple(build(kinds[name], row, f"{path}: {name}") for row in rows)
        for name, rows in tables.sections.items()
    }
    for row in (*built["comparisons"], *built["steps"], *built["recoveries"]):
        size = row.texture_size
        if not 1 <= size <= 8192 or size & (size - 1):
            raise UserError(
                f"{path}: {row.name}: texture_size must be a power of two up to 8192, got {size}"
            )
    for row in built["loads"]:
        if not 2 <= row.faces <= 5_000_000:
            raise UserError(f"{path}: {row.name}: faces must be 2 … 5,000,000, got {row.faces:,}")
    return RendererStudy(
        name=tables.name,
        title=tables.title,
        preset=tables.preset,
        settings=build(RendererSettings, tables.settings, f"{path}: settings"),
        **built,
    )
