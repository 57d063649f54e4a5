"""Small glTF files for tests, written by hand: whatever the format allows, sound or not."""

import json
import struct
from typing import Any

import numpy as np

COMPONENTS = {"i1": 5120, "u1": 5121, "i2": 5122, "u2": 5123, "u4": 5125, "f4": 5126}
KINDS = {1: "SCALAR", 2: "VEC2", 3: "VEC3", 4: "VEC4"}
SQUARE = np.array([[0, 0, 0], [1, 0, 0], [1, 1, 0], [0, 1, 0]], "f4")
SQUARE_UV = np.array([[0, 1], [1, 1], [1, 0], [0, 0]], "f4")  # v down
SQUARE_FACES = np.array([0, 1, 2, 0, 2, 3], "u2")


class GltfBuilder:
    """A document with one buffer; `primitive`'s meshes are shown by one node each by default."""

    def __init__(self, **more: Any) -> None:
        self.binary = bytearray()
        self.json: dict[str, Any] = {"asset": {"version": "2.0"}, "meshes": [], "nodes": []}
        self.json |= {"accessors": [], "bufferViews": [], **more}

    def view(self, content: bytes, **more: Any) -> int:
        """Appends bytes; returns their buffer view's index."""
        view = {"buffer": 0, "byteOffset": len(self.binary), "byteLength": len(content), **more}
        self.json["bufferViews"].append(view)
        self.binary += content + bytes(-len(content) % 4)
        return len(self.json["bufferViews"]) - 1

    def accessor(self, values: np.ndarray, **more: Any) -> int:
        """Appends an array of the type that the file is to hold."""
        table = values.reshape(len(values), -1)
        accessor = {
            "bufferView": self.view(table.astype(table.dtype.newbyteorder("<")).tobytes()),
            "componentType": COMPONENTS[table.dtype.str[1:]],
            "count": len(table),
            "type": KINDS[table.shape[1]],
            **more,
        }
        self.json["accessors"].append(accessor)
        return len(self.json["accessors"]) - 1

    def image(self, content: bytes, kind: str = "png") -> int:
        """Appends a picture and a texture of it; returns the texture's index."""
        images = self.json.setdefault("images", [])
        images.append({"bufferView": self.view(content), "mimeType": f"image/{kind}"})
        textures = self.json.setdefault("textures", [])
        textures.append({"source": len(images) - 1})
        return len(textures) - 1

    def square(self, node: dict[str, Any] | None = None, **more: Any) -> dict[str, Any]:
        """Appends a unit square in the xy plane under a node; returns its primitive."""
        attributes = {
            "POSITION": self.accessor(SQUARE), "TEXCOORD_0": self.accessor(SQUARE_UV)
        }  # fmt: skip
        primitive = {"attributes": attributes, "indices": self.accessor(SQUARE_FACES), **more}
        self.json["meshes"].append({"primitives": [primitive]})
        self.json["nodes"].append({"mesh": len(self.json["meshes"]) - 1, **(node or {})})
        return primitive

    def glb(self) -> bytes:
        """The document as a .glb file."""
        document = {**self.json, "buffers": [{"byteLength": len(self.binary)}]}
        if "scenes" not in document:
            document["scenes"] = [{"nodes": list(range(len(self.json["nodes"])))}]
        text = json.dumps(document).encode()
        text += b" " * (-len(text) % 4)
        sizes = 28 + len(text) + len(self.binary), len(text), len(self.binary)
        return b"".join(
            (
                struct.pack("<4sII", b"glTF", 2, sizes[0]),
                struct.pack("<I4s", sizes[1], b"JSON"),
                text,
                struct.pack("<I4s", sizes[2], b"BIN\0"),
                self.binary,
            )
        )
