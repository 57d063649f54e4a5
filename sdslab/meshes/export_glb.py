"""glTF 2.0 binary: one file with the geometry as it came and the maps as viewers read them."""

import json
import struct
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdslab import __version__
from sdslab.atomic_write import atomic_write
from sdslab.meshes.material_io import encode_png, map_pictures
from sdslab.meshes.mesh import Mesh, Part

# Constants of glTF, which are OpenGL's.
FLOAT, UNSIGNED_INT = 5126, 5125
ARRAY_BUFFER, ELEMENT_ARRAY_BUFFER = 34962, 34963
LINEAR, LINEAR_MIPMAP_LINEAR, REPEAT = 9729, 9987, 10497
MAGIC, VERSION, JSON_CHUNK, BINARY_CHUNK = 0x46546C67, 2, 0x4E4F534A, 0x004E4942
LARGEST_ROUNDING = 1e-4  # of a position, as a share of half the mesh's extent


def export_glb(
    mesh: Mesh, maps: Tensor, path: Path, *, extras: dict[str, Any] | None = None
) -> None:
    """Writes a mesh with its material as a .glb file: `glb_bytes` at ``path``.

    Raises:
        UserError: the file cannot be written.
    """
    content = glb_bytes(mesh, maps, extras)
    with atomic_write(path) as temporary:
        temporary.write_bytes(content)


def glb_bytes(mesh: Mesh, maps: Tensor, extras: dict[str, Any] | None = None) -> bytes:
    """A mesh with its material as a .glb file holds them.

    Every part becomes a node of its own and holds the vertices that its faces use, in the mesh's
    order; vertices that no face uses are left out. Coordinates are the mesh's own as float32; a
    mesh so far from the origin that float32 would deform it is stored around its own centre, and
    its nodes' translation puts it back.

    Args:
        mesh: its `positions`, `normals`, `tangents` and `uv` are written; v is turned down.
        maps: [h, w, 8] as `material.py` describes.
        extras: where the file comes from, to be kept in its `asset.extras`: JSON-able.

    Raises:
        ValueError: a face's position overflows float32, or a map is not in [0, 1].

    Source: the glTF 2.0 specification (Khronos).
    """
    used = mesh.positions[mesh.faces.long().unique()]
    origin = _origin(mesh, used)
    if not bool((used - origin).float().isfinite().all()):
        raise ValueError("positions must be finite in float32, which is what a .glb file holds")
    binary = _Binary()
    nodes, meshes = [], []
    for part in mesh.parts:
        primitive = _primitive(mesh, part, origin, binary)
        place = {"translation": origin.tolist()} if origin.any() else {}
        nodes.append({"mesh": len(meshes), "name": part.name, **place})
        meshes.append({"name": part.name, "primitives": [primitive]})
    pictures = map_pictures(maps)
    images = [
        {
            "bufferView": binary.add(encode_png(pictures[name])),
            "mimeType": "image/png",
            "name": name,
        }
        for name in ("albedo", "metallic_roughness", "normal")
    ]
    sides = sorted({_double_sided(mesh, part) for part in mesh.parts})
    for part, entry in zip(mesh.parts, meshes, strict=True):
        entry["primitives"][0]["material"] = sides.index(_double_sided(mesh, part))
    document = {
        "asset": {"version": "2.0", "generator": f"sdslab {__version__}"},
        "scene": 0,
        "scenes": [{"name": mesh.name, "nodes": list(range(len(nodes)))}],
        "nodes": nodes,
        "meshes": meshes,
        "materials": [_material(mesh.name, double_sided) for double_sided in sides],
        "textures": [{"source": i, "sampler": 0, "name": images[i]["name"]} for i in range(3)],
        "images": images,
        "samplers": [
            {
                "magFilter": LINEAR,
                "minFilter": LINEAR_MIPMAP_LINEAR,
                "wrapS": REPEAT,
                "wrapT": REPEAT,
            }
        ],
        "accessors": binary.accessors,
        "bufferViews": binary.views,
        "buffers": [{"byteLength": len(binary.content)}],
    }
    if extras:
        document["asset"]["extras"] = extras
    return _container(document, binary.content)


class _Binary:
    """The file's one buffer, with the views and accessors that tell what lies where in it."""

    def __init__(self) -> None:
        self.content = bytearray()
        self.views: list[dict[str, Any]] = []
        self.accessors: list[dict[str, Any]] = []

    def add(self, content: bytes, target: int | None = None) -> int:
        """Appends bytes, padded to four; returns their view's index."""
        view = {"buffer": 0, "byteOffset": len(self.content), "byteLength": len(content)}
        self.views.append(view if target is None else {**view, "target": target})
        self.content += content + bytes(-len(content) % 4)
        return len(self.views) - 1

    def add_vertices(self, values: Tensor) -> int:
        """Appends [n, k] as float32; returns its accessor's index."""
        array = values.detach().cpu().numpy().astype("<f4")
        return self._add_accessor(array, ARRAY_BUFFER, FLOAT, f"VEC{array.shape[1]}")

    def add_indices(self, values: Tensor) -> int:
        """Appends indices as uint32; returns their accessor's index."""
        array = values.detach().cpu().numpy().astype("<u4").reshape(-1, 1)
        return self._add_accessor(array, ELEMENT_ARRAY_BUFFER, UNSIGNED_INT, "SCALAR")

    def _add_accessor(self, array: np.ndarray, target: int, component: int, kind: str) -> int:
        self.accessors.append(
            {
                "bufferView": self.add(array.tobytes(), target),
                "componentType": component,
                "count": len(array),
                "type": kind,
                "min": array.min(0).tolist(),
                "max": array.max(0).tolist(),
            }
        )
        return len(self.accessors) - 1


def _origin(mesh: Mesh, used: Tensor) -> Tensor:
    """[3] float64: zeros, or the mesh's centre where float32 would shift vertices visibly."""
    rounding = (used.float().double() - used).abs().max() * mesh.normalization.scale
    return torch.zeros_like(used[0]) if rounding < LARGEST_ROUNDING else mesh.normalization.center


def _primitive(mesh: Mesh, part: Part, origin: Tensor, binary: _Binary) -> dict[str, Any]:
    faces = mesh.faces[part.faces.start : part.faces.stop].long()
    used, indices = torch.unique(faces, return_inverse=True)
    uv = mesh.uv[used].double()
    attributes = {
        "POSITION": mesh.positions[used] - origin,
        "NORMAL": mesh.normals[used],
        "TANGENT": mesh.tangents[used],
        "TEXCOORD_0": torch.stack((uv[:, 0], 1 - uv[:, 1]), -1),
    }
    return {
        "attributes": {name: binary.add_vertices(values) for name, values in attributes.items()},
        "indices": binary.add_indices(indices),
    }


def _double_sided(mesh: Mesh, part: Part) -> bool:
    return mesh.double_sided or part.material.double_sided


def _material(name: str, double_sided: bool) -> dict[str, Any]:
    return {
        "name": f"{name} (double-sided)" if double_sided else name,
        "doubleSided": double_sided,
        "pbrMetallicRoughness": {
            "baseColorFactor": [1.0, 1.0, 1.0, 1.0],
            "baseColorTexture": {"index": 0},
            "metallicFactor": 1.0,
            "roughnessFactor": 1.0,
            "metallicRoughnessTexture": {"index": 1},
        },
        "normalTexture": {"index": 2, "scale": 1.0},
    }


def _container(document: dict[str, Any], binary: bytes | bytearray) -> bytes:
    """The two chunks of a .glb file, each padded to four bytes, behind their headers."""
    text = json.dumps(document, allow_nan=False, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 4)
    size = 12 + 8 + len(text) + 8 + len(binary)
    return b"".join(
        (
            struct.pack("<3I", MAGIC, VERSION, size),
            struct.pack("<2I", len(text), JSON_CHUNK),
            text,
            struct.pack("<2I", len(binary), BINARY_CHUNK),
            binary,
        )
    )
