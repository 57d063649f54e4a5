"""A run's ``mesh.glb``, taken apart: the bare geometry, and the pictures of its material."""

import io
import json
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from sdslab.errors import UserError, first_line, one_line
from sdslab.meshes.mesh import QUATERNIONS, Up
from sdslab.report.result_files import decode_picture

MAGIC, JSON_CHUNK, BINARY_CHUNK = 0x46546C67, 0x4E4F534A, 0x004E4942
PICTURES = ("albedo", "metallic_roughness", "normal")
LARGEST_FILE = 2**30  # bytes


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
