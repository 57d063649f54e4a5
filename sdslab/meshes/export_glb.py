"""glTF 2.0 binary: one file with the geometry as it came and the maps as viewers read them."""

import json
import struct
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from sdslab import __version__
from sdslab.files.atomic_write import atomic_write
from sdslab.meshes.material import encode_png, map_pictures, opacity_picture
from sdslab.meshes.mesh import Mesh, Part
from sdslab.meshes.mesh_file import TexturePlace

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
        mesh: its own coordinates are written, v turned down, and with them what it keeps of its
            file: names, opacity, emission, occlusion, further coordinates, vertex colours.
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
    looks = _Looks(mesh, maps, binary)
    nodes, meshes = [], []
    for part in mesh.parts:
        primitive = _primitive(mesh, part, origin, binary, looks)
        place = {"translation": origin.tolist()} if origin.any() else {}
        nodes.append({"mesh": len(meshes), "name": part.name, **place})
        meshes.append({"name": part.mesh_name or part.name, "primitives": [primitive]})
    document = {
        "asset": {"version": "2.0", "generator": f"sdslab {__version__}"},
        "scene": 0,
        "scenes": [{"name": mesh.name, "nodes": list(range(len(nodes)))}],
        "nodes": nodes,
        "meshes": meshes,
        "materials": looks.materials,
        "textures": looks.textures,
        "images": looks.images,
        "samplers": looks.samplers,
        "accessors": binary.accessors,
        "bufferViews": binary.views,
        "buffers": [{"byteLength": len(binary.content)}],
    }
    if looks.extensions:
        document["extensionsUsed"] = sorted(looks.extensions)
    if "EXT_texture_webp" in looks.extensions:
        document["extensionsRequired"] = ["EXT_texture_webp"]
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


def _primitive(
    mesh: Mesh, part: Part, origin: Tensor, binary: _Binary, looks: "_Looks"
) -> dict[str, Any]:
    faces = mesh.faces[part.faces.start : part.faces.stop].long()
    used, indices = torch.unique(faces, return_inverse=True)
    attributes = {
        "POSITION": mesh.positions[used] - origin,
        "NORMAL": mesh.normals[used],
        "TANGENT": mesh.tangents[used],
        "TEXCOORD_0": _v_down(mesh.uv[used]),
    }
    # which of the file's sets of coordinates is which of the result's
    sets, further = ({0: 0} if mesh.file_uv is None else {}), 1
    for own, array in ((1, mesh.extra_uv), (0, mesh.file_uv)):
        if array is not None and bool(array[used].isfinite().all()):
            attributes[f"TEXCOORD_{further}"] = _v_down(array[used])
            sets[own], further = further, further + 1
    if mesh.colors is not None and bool(mesh.colors[used].isfinite().all()):
        # viewers multiply COLOR_0 with the albedo, which holds the colours already
        white = bool((mesh.colors.nan_to_num(1.0) == 1).all())
        attributes["COLOR_0" if white else "_COLOR_0"] = mesh.colors[used]
    return {
        "attributes": {name: binary.add_vertices(values) for name, values in attributes.items()},
        "indices": binary.add_indices(indices),
        "material": looks.material(part, sets),
    }


def _v_down(uv: Tensor) -> Tensor:
    u, v = uv.double().unbind(-1)
    return torch.stack((u, 1 - v), -1)


class _Looks:
    """Materials: each of the file's under its name, with the new maps and what it keeps."""

    def __init__(self, mesh: Mesh, maps: Tensor, binary: _Binary) -> None:
        self.mesh = mesh
        self.binary = binary
        self.materials: list[dict[str, Any]] = []
        self.images: list[dict[str, Any]] = []
        self.textures: list[dict[str, Any]] = []
        self.samplers: list[dict[str, Any]] = []
        self.extensions: set[str] = set()
        self._indices: dict[Any, int] = {}
        pictures = map_pictures(maps)
        if mesh.opacity is not None:
            alpha = opacity_picture(mesh.opacity, maps)
            pictures["albedo"] = np.dstack((pictures["albedo"], alpha))
        for name in ("albedo", "metallic_roughness", "normal"):
            self._texture(encode_png(pictures[name]), name, (REPEAT, REPEAT))

    def material(self, part: Part, sets: dict[int, int]) -> int:
        """The index of a part's material; ``sets`` says where the file's coordinates went."""
        kept = part.material
        double_sided = self.mesh.double_sided or kept.double_sided
        key = (replace(kept, double_sided=double_sided), tuple(sorted(sets.items())))
        if key in self._indices:
            return self._indices[key]
        name = kept.name or f"{self.mesh.name}{' (double-sided)' if double_sided else ''}"
        entry = {
            "name": name,
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
        if kept.alpha_mode != "OPAQUE":
            entry["alphaMode"] = kept.alpha_mode
        if kept.alpha_mode == "MASK":
            entry["alphaCutoff"] = kept.alpha_cutoff
        glow = self._reference(kept.emissive_image, "emissive", kept.emissive_place, sets)
        strength = max(*kept.emissive, 1.0)
        if any(kept.emissive) and (glow or kept.emissive_image is None):
            entry["emissiveFactor"] = [channel / strength for channel in kept.emissive]
            entry |= {"emissiveTexture": glow} if glow else {}
            if strength > 1:
                self.extensions.add("KHR_materials_emissive_strength")
                entry["extensions"] = {
                    "KHR_materials_emissive_strength": {"emissiveStrength": strength}
                }
        shade = self._reference(kept.occlusion_image, "occlusion", kept.occlusion_place, sets)
        if shade:
            entry["occlusionTexture"] = {**shade, "strength": kept.occlusion_strength}
        self.materials.append(entry)
        return self._indices.setdefault(key, len(self.materials) - 1)

    def _reference(
        self, content: bytes | None, name: str, place: TexturePlace, sets: dict[int, int]
    ) -> dict[str, Any] | None:
        """How a material names a picture of the file, if there is one and it has coordinates."""
        if content is None or place.uv_set not in sets:
            return None
        reference: dict[str, Any] = {
            "index": self._texture(content, name, place.wrap),
            "texCoord": sets[place.uv_set],
        }
        if place.transforms:
            self.extensions.add("KHR_texture_transform")
            transform = {
                "offset": list(place.offset), "rotation": place.rotation, "scale": list(place.scale)
            }  # fmt: skip
            reference["extensions"] = {"KHR_texture_transform": transform}
        return reference

    def _texture(self, content: bytes, name: str, wrap: tuple[int, int]) -> int:
        picture = (name, content)
        if picture not in self._indices:
            webp, jpeg = content[8:12] == b"WEBP", content.startswith(b"\xff\xd8")
            kind = "webp" if webp else "jpeg" if jpeg else "png"
            view = self.binary.add(content)
            image = {"bufferView": view, "mimeType": f"image/{kind}", "name": name}
            self.images.append(image)
            self._indices[picture] = len(self.images) - 1
        if wrap not in self._indices:
            self.samplers.append(
                {
                    "magFilter": LINEAR,
                    "minFilter": LINEAR_MIPMAP_LINEAR,
                    "wrapS": wrap[0],
                    "wrapT": wrap[1],
                }
            )
            self._indices[wrap] = len(self.samplers) - 1
        key = ("texture", self._indices[picture], self._indices[wrap])
        if key not in self._indices:
            source = {"source": self._indices[picture]}
            if self.images[source["source"]]["mimeType"] == "image/webp":
                self.extensions.add("EXT_texture_webp")
                source = {"extensions": {"EXT_texture_webp": source}}
            self.textures.append({**source, "sampler": self._indices[wrap], "name": name})
            self._indices[key] = len(self.textures) - 1
        return self._indices[key]


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
