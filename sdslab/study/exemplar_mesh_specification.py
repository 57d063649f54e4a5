"""A study of exemplar guidance on meshes, as data. Imports nothing heavy."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from sdslab.errors import UserError
from sdslab.study.specification import build, check_names, read_study

SECTIONS = ("methods",)


@dataclass(frozen=True)
class MeshSettings:
    """What every row shares."""

    meshes: tuple[str, ...]
    """Files, or built-in meshes."""
    photos: tuple[str, ...]
    """Files, or names of the photographs that scikit-image ships."""
    seeds: tuple[int, ...]
    """Of views and noise."""
    texture_size: int = 1024
    """Height and width of the maps, a power of two."""
    scale: float = 1.5
    """World size of a photo's height; an object's largest extent is 2."""
    steps: int | None = None
    """Of each level, in place of its own."""
    device: str = "cpu"
    """"auto" is cuda where there is one."""
    up: Literal["x", "-x", "y", "-y", "z", "-z"] | None = None
    """Which axis of the mesh files points up; None is y."""
    out: str = "figures"
    """Folder for the results."""


@dataclass(frozen=True)
class Method:
    """One way of texturing a mesh like a photograph."""

    name: str
    label: str
    method: Literal["two_stages", "stage_one", "triplanar", "plain_sds"]
    """All levels; without super-resolution; projected; one scale, fresh noise, random t."""
    orient: Literal["up", "free", "flow"] = "up"
    """Where the photo's up points."""


@dataclass(frozen=True)
class MeshStudy:
    """A parsed study file with one preset applied."""

    name: str
    title: str
    preset: str
    settings: MeshSettings
    methods: tuple[Method, ...]


def load_mesh_study(path: Path, preset: str | None = None) -> MeshStudy:
    """Reads a study file of kind "exemplar_mesh".

    Raises:
        UserError: a key or value that is not one of the valid ones.
    """
    tables = read_study(path, SECTIONS, preset)
    study = MeshStudy(
        name=tables.name,
        title=tables.title,
        preset=tables.preset,
        settings=build(MeshSettings, tables.settings, f"{path}: settings"),
        methods=tuple(build(Method, row, f"{path}: methods") for row in tables.sections["methods"]),
    )
    check_mesh_study(study, str(path))
    return study


def check_mesh_study(study: MeshStudy, where: str) -> None:
    """Refuses settings and methods that make no sense."""
    size = study.settings.texture_size
    if not 32 <= size <= 8192 or size & (size - 1):
        raise UserError(f"{where}: texture_size must be a power of two from 32 to 8192, got {size}")
    if not 0.01 <= study.settings.scale <= 100:
        raise UserError(f"{where}: scale must be from 0.01 to 100, got {study.settings.scale:g}")
    if not study.methods:
        raise UserError(f"{where}: methods must be given, at least one, got none")
    check_names([method.name for method in study.methods], f"{where}: methods")
