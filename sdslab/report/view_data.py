"""What the 3D view of a report shows, from a run folder's files: pictures, and parts of its GLB."""

import base64
import io
import json
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from sdslab.errors import UserError, first_line, one_line
from sdslab.meshes.mesh import QUATERNIONS, Up
from sdslab.report.result_files import data_uri, decode_picture
from sdslab.report.wording import stage_label

MAGIC, JSON_CHUNK, BINARY_CHUNK = 0x46546C67, 0x4E4F534A, 0x004E4942
PICTURES = ("albedo", "metallic_roughness", "normal")
LARGEST_FILE = 2**30  # bytes

LARGEST_GEOMETRY = 8 * 2**20  # bytes, some 200,000 faces: with base64, most of a page of 15 MB


@dataclass(frozen=True)
class GlbParts:
    """A GLB as `sdslab.meshes.export_glb` writes it.

    Attributes:
        path: where it lies.
        document: its JSON.
        binary: its one buffer.
    """

    path: Path
    document: dict[str, Any]
    binary: bytes

    @classmethod
    def read(cls, path: Path) -> "GlbParts":
        """Reads a file.

        Raises:
            UserError: it is no GLB of a run.
        """
        with _errors_told(path):
            if path.stat().st_size > LARGEST_FILE:
                raise ValueError(f"it has {path.stat().st_size:,} bytes")
            content = path.read_bytes()
            magic, _, _, length, kind = struct.unpack_from("<5I", content)
            size, binary_kind = struct.unpack_from("<2I", content, 20 + length)
            if (magic, kind, binary_kind) != (MAGIC, JSON_CHUNK, BINARY_CHUNK):
                raise ValueError("its two chunks are not there")
            if len(content) < 28 + length + size:
                raise ValueError("its end is missing")
            document = json.loads(content[20 : 20 + length])
            return cls(path, document, content[28 + length :])

    def view(self, index: int) -> bytes:
        """The bytes of a buffer view."""
        view = self.document["bufferViews"][index]
        start, size = view.get("byteOffset", 0), view["byteLength"]
        if not 0 <= start <= start + size <= len(self.binary):
            raise ValueError("a view reaches beyond its buffer")
        return self.binary[start : start + size]

    def geometry(self, up: Up = "y") -> bytes:
        """The same file without pictures: of its materials the sides are left, nothing else.

        Args:
            up: which of its axes points up; in the result +Y does.

        Raises:
            UserError: it is no GLB of a run.
        """
        with _errors_told(self.path):
            return self._geometry(up)

    def _geometry(self, up: Up) -> bytes:
        document = {
            name: self.document[name] for name in ("asset", "scene", "scenes", "nodes", "meshes")
        }
        document["asset"] = {"version": "2.0"}
        if up != "y":
            upright = {"rotation": QUATERNIONS[up], "children": document["scenes"][0]["nodes"]}
            document["scenes"] = [{"nodes": [len(document["nodes"])]}]
            document["nodes"] = [*document["nodes"], upright]
        document["materials"] = [
            {"doubleSided": bool(material.get("doubleSided"))}
            for material in self.document["materials"]
        ]
        binary, views, accessors = bytearray(), [], []
        for accessor in self.document["accessors"]:
            content = self.view(accessor["bufferView"])
            old = self.document["bufferViews"][accessor["bufferView"]]
            accessors.append({**accessor, "bufferView": len(views)})
            place = {"buffer": 0, "byteOffset": len(binary), "byteLength": len(content)}
            views.append(place | ({"target": old["target"]} if "target" in old else {}))
            binary += content + bytes(-len(content) % 4)
        document |= {
            "accessors": accessors,
            "bufferViews": views,
            "buffers": [{"byteLength": len(binary)}],
        }
        text = json.dumps(document, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 4)
        return b"".join(
            (
                struct.pack("<3I", MAGIC, 2, 28 + len(text) + len(binary)),
                struct.pack("<2I", len(text), JSON_CHUNK),
                text,
                struct.pack("<2I", len(binary), BINARY_CHUNK),
                binary,
            )
        )

    def pictures(self) -> dict[str, Image.Image]:
        """The material's three: "albedo", "metallic_roughness" and "normal".

        Raises:
            UserError: they are not there, or cannot be read.
        """
        with _errors_told(self.path):
            contents = {
                image["name"]: self.view(image["bufferView"]) for image in self.document["images"]
            }
            return {name: decode_picture(io.BytesIO(contents[name])) for name in PICTURES}


@contextmanager
def _errors_told(path: Path) -> Iterator[None]:
    try:
        yield
    except (OSError, ValueError, LookupError, TypeError, AttributeError, struct.error) as error:
        raise UserError(
            f"{one_line(str(path))!r} must be a mesh that a run wrote: "
            f"{one_line(first_line(error))}; run the program again with --fresh"
        ) from error


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
