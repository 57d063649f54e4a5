"""What the 3D view of a report shows, from the files of a run folder."""

import base64
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdslab.errors import UserError, one_line
from sdslab.meshes.mesh import QUATERNIONS, Up
from sdslab.report.glb_parts import GlbParts
from sdslab.report.result_files import data_uri
from sdslab.report.wording import stage_label

LARGEST_GEOMETRY = 8 * 2**20  # bytes, some 200,000 faces: with base64, most of a page of 15 MB
LARGEST_LIGHT = 2 * 2**20
LARGEST_TEXTURE = 1024  # pixels a side
QUALITY = {"albedo": 92, "metallic_roughness": 92, "normal": 95}


@dataclass(frozen=True)
class View:
    """The 3D view of a page.

    Attributes:
        data: for ``viewer/viewer.mjs``, JSON-able.
        looks: (name, label) of the materials that can be switched between, the result first.
        note: what of it is not as in the run's own files; empty where nothing is.
    """

    data: dict[str, Any]
    looks: list[tuple[str, str]]
    note: str


def view_of(folder: Path, record: dict[str, Any]) -> View | str:
    """Reads the geometry, the materials and the light of a run.

    Returns:
        The view; or why there is none, in one line.

    Raises:
        UserError: a file is damaged.
    """
    if not (folder / "mesh.glb").is_file():
        return "the run has not written a mesh"
    names = _material_names(record)
    files = [folder / "mesh.glb", *(folder / name / "mesh.glb" for name in names[1:])]
    shown = [(name, file) for name, file in zip(names, files, strict=True) if file.is_file()]
    result = GlbParts.read(files[0])
    geometry = result.geometry(_up(record))
    if len(geometry) > LARGEST_GEOMETRY:
        return (
            f"the mesh is too large for a page ({len(geometry) / 2**20:.0f} MB of geometry, "
            f"{LARGEST_GEOMETRY // 2**20} MB fit): open mesh.glb in a viewer of glTF"
        )
    looks, note = [], ""
    for name, file in shown:
        parts = result if file == files[0] else GlbParts.read(file)
        pictures = parts.pictures()
        largest = max(max(picture.size) for picture in pictures.values())
        if largest > LARGEST_TEXTURE:
            note = f"textures are shown at {LARGEST_TEXTURE}² of {largest}²"
        look = {
            kind: data_uri(pictures[kind], LARGEST_TEXTURE, quality)
            for kind, quality in QUALITY.items()
        }
        looks.append({"name": name, "label": label_of(name), **look})
    light = folder / "light.hdr"
    data = {
        "geometry": base64.b64encode(geometry).decode(),
        "looks": looks,
        "light": _light(light) if light.is_file() else None,
        "color_mode": _color_mode(record),
    }
    return View(data, [(look["name"], look["label"]) for look in looks], note)


def label_of(name: str) -> str:
    """A material's name for people."""
    label = stage_label(name).replace("_", " ")
    return label[:1].upper() + label[1:]


def _material_names(record: dict[str, Any]) -> list[str]:
    """Names of the record's materials: plain words only, for they name folders."""
    names = record["details"].get("materials")
    if not isinstance(names, list) or not names:
        return ["result"]
    words = [name for name in names if isinstance(name, str) and re.fullmatch(r"\w{1,40}", name)]
    return words or ["result"]


def _color_mode(record: dict[str, Any]) -> str:
    rendering = record["config"].get("rendering")
    return str(rendering.get("color_mode", "srgb")) if isinstance(rendering, dict) else "srgb"


def _up(record: dict[str, Any]) -> Up:
    mesh = record["details"].get("mesh")
    up = mesh.get("up") if isinstance(mesh, dict) else None
    for axis in QUATERNIONS:
        if axis == up:
            return axis
    return "y"


def _light(path: Path) -> str:
    content = path.read_bytes()
    if len(content) > LARGEST_LIGHT or not content.startswith(b"#?RADIANCE\n"):
        raise UserError(
            f"{one_line(str(path))!r} must be the light that a run wrote, got another file; run "
            f"the program again with --fresh"
        )
    return base64.b64encode(content).decode()
