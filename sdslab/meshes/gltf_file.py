"""glTF 2.0 and GLB: every node's triangles in the world's coordinates, materials, no animation."""

import base64
import json
import re
from typing import Any

import numpy as np

from sdslab.meshes.mesh_file import (
    MOST_FACES,
    FileMaterial,
    Floats,
    Indices,
    MeshFile,
    MeshFileError,
    MeshFolder,
)

COMPONENTS = {5120: "<i1", 5121: "<u1", 5122: "<i2", 5123: "<u2", 5125: "<u4", 5126: "<f4"}
WIDTHS = {"SCALAR": 1, "VEC2": 2, "VEC3": 3, "VEC4": 4}
# Extensions that a file may require and that change nothing about its triangles' positions and uv,
# or that are read here.
UNDERSTOOD = re.compile(
    r"KHR_(materials_|mesh_quantization|lights_|xmp|texture_transform)|EXT_texture_webp"
)
MOST_VERTICES = 3 * MOST_FACES


def read_gltf(content: bytes, folder: MeshFolder) -> MeshFile:
    """Reads all triangles of the scene; several nodes or primitives become parts.

    Raises:
        MeshFileError: the file is damaged, or a buffer lies outside the folder, or the file needs
            an extension, such as compression, that is not read.
    """
    document = _Document(content, folder)
    parts: list[tuple[str, Floats, Indices, Floats | None, Floats | None, int]] = []
    total = 0
    for name, mesh, matrix in document.instances():
        for number, primitive in enumerate(mesh["primitives"]):
            part = document.primitive(primitive, matrix)
            if part is None:
                continue
            several = len(mesh["primitives"]) > 1
            material = primitive.get("material", -1)
            label = document.materials[material].name if material >= 0 else ""
            full = f"{name} {label or number}".strip() if several else name
            parts.append((full, *part, material))
            total += len(part[1])
            if total > MOST_FACES:
                raise MeshFileError(f"it has more than {MOST_FACES:,} triangles")
    if not parts:
        raise MeshFileError("its scene holds no triangles")
    names, positions, faces, normals, uv, materials = zip(*parts, strict=True)
    starts = np.cumsum([0, *(len(p) for p in positions[:-1])])
    return MeshFile(
        positions=np.concatenate(positions),
        faces=np.concatenate([f + s for f, s in zip(faces, starts, strict=True)]),
        face_part=np.repeat(np.arange(len(parts)), [len(f) for f in faces]),
        part_names=list(names),
        part_material=list(materials),
        uv=_joined(uv, positions, 2),
        normals=_joined(normals, positions, 3),
        materials=document.materials,
        notes=list(dict.fromkeys(document.notes)),
    )


def _joined(arrays: tuple[Any, ...], positions: tuple[Floats, ...], width: int) -> Floats | None:
    if all(array is None for array in arrays):
        return None
    filled = [
        np.full((len(p), width), np.nan) if a is None else a
        for a, p in zip(arrays, positions, strict=True)
    ]
    return np.concatenate(filled)


class _Document:
    """The JSON of a file with its buffers."""

    def __init__(self, content: bytes, folder: MeshFolder) -> None:
        self.folder = folder
        self.notes: list[str] = []
        self.vertices = 0  # of the primitives so far
        self.binary: bytes | None = None
        text = content
        if content.startswith(b"glTF"):
            text, self.binary = _chunks(content)
        self.json: dict[str, Any] = json.loads(text.decode("utf-8"))
        if not str(self.json["asset"]["version"]).startswith("2"):
            raise MeshFileError(f"it is glTF {self.json['asset']['version']}, not 2.0")
        for extension in self.json.get("extensionsRequired", []):
            if not UNDERSTOOD.match(extension):
                raise MeshFileError(f"it needs {extension}; export it without")
        self.buffers: dict[int, bytes] = {}
        self.materials = [self._material(m) for m in self.json.get("materials", [])]
        if self.json.get("skins"):
            self.notes.append("skeleton ignored: the pose is the bind pose")
        if any("targets" in p for m in self.json.get("meshes", []) for p in m["primitives"]):
            self.notes.append("morph targets ignored")

    def instances(self) -> list[tuple[str, dict[str, Any], Floats]]:
        """Every mesh in the scene with its node's name and its transform, depth first."""
        nodes, meshes = self.json.get("nodes", []), self.json.get("meshes", [])
        scenes = self.json.get("scenes")
        if not nodes:
            return [(m.get("name", ""), m, np.eye(4)) for m in meshes]
        if scenes:
            roots = scenes[self.json.get("scene", 0)].get("nodes", [])
        else:
            children = {child for node in nodes for child in node.get("children", [])}
            roots = [index for index in range(len(nodes)) if index not in children]
        found = []
        waiting = [(_index(root, nodes), np.eye(4)) for root in reversed(roots)]
        visited: set[int] = set()
        while waiting:
            index, parent = waiting.pop()
            if index in visited:
                raise MeshFileError(f"node {index} is its own ancestor or has two parents")
            visited.add(index)
            node = nodes[index]
            matrix = parent @ _local_matrix(node)
            waiting += [
                (_index(child, nodes), matrix) for child in reversed(node.get("children", []))
            ]
            if "mesh" in node:
                mesh = meshes[_index(node["mesh"], meshes)]
                name = node.get("name") or mesh.get("name") or ""
                # glTF: the transform of a skinned mesh's own node is to be ignored
                found.append((str(name), mesh, np.eye(4) if "skin" in node else matrix))
        return found

    def primitive(
        self, primitive: dict[str, Any], matrix: Floats
    ) -> tuple[Floats, Indices, Floats | None, Floats | None] | None:
        """Positions, faces, normals and texture coordinates, or None if it has no triangles."""
        mode = primitive.get("mode", 4)
        if mode not in (4, 5, 6):
            self.notes.append("points and lines left out")
            return None
        attributes = primitive["attributes"]
        accessors = self.json["accessors"]
        self.vertices += accessors[_index(attributes["POSITION"], accessors)]["count"]
        if self.vertices > MOST_VERTICES:  # said before any of them is copied
            raise MeshFileError(f"its primitives name more than {MOST_VERTICES:,} vertices")
        positions = self.accessor(attributes["POSITION"], 3)
        if "indices" in primitive:
            indices = self.accessor(primitive["indices"], 1).astype(np.int64).reshape(-1)
        else:
            indices = np.arange(len(positions))
        if mode == 4:
            faces = indices[: len(indices) // 3 * 3].reshape(-1, 3)
        elif mode == 5:
            faces = np.stack([indices[:-2], indices[1:-1], indices[2:]], axis=1)
            faces[1::2] = faces[1::2, [1, 0, 2]]
        else:
            first = np.broadcast_to(indices[:1], (max(len(indices) - 2, 0),))
            faces = np.stack([first, indices[1:-1], indices[2:]], axis=1)
        if len(faces) and faces.max() >= len(positions):
            raise MeshFileError(f"a face names vertex {faces.max()} of {len(positions)}")
        uv = normals = None
        if "TEXCOORD_0" in attributes:
            uv = self.accessor(attributes["TEXCOORD_0"], 2)
            uv = np.stack([uv[:, 0], 1 - uv[:, 1]], axis=1)  # glTF's v points down
        if "NORMAL" in attributes:
            normals = self.accessor(attributes["NORMAL"], 3)
        for array in (uv, normals):
            if array is not None and len(array) != len(positions):
                raise MeshFileError("a primitive's attributes differ in length")
        if not np.array_equal(matrix, np.eye(4)):
            linear = matrix[:3, :3]
            positions = positions @ linear.T + matrix[:3, 3]
            cofactors = np.cross(linear[[1, 2, 0]], linear[[2, 0, 1]])
            if normals is not None:
                normals = normals @ cofactors.T
            if np.linalg.det(linear) < 0:
                faces = faces[:, ::-1]
                normals = None if normals is None else -normals
        return positions, faces, normals, uv

    def accessor(self, index: int, width: int) -> Floats:
        """[n, width] float64; integers that are stored normalised are mapped to [−1, 1]."""
        accessors = self.json["accessors"]
        accessor = accessors[_index(index, accessors)]
        count = accessor["count"]
        if WIDTHS[accessor["type"]] != width or not isinstance(count, int) or count < 0:
            raise MeshFileError(f"accessor {index} should hold {width} numbers each")
        if count > MOST_VERTICES:
            raise MeshFileError(f"accessor {index} promises {count:,} elements")
        dtype = np.dtype(COMPONENTS[accessor["componentType"]])
        if "bufferView" in accessor:
            offset = accessor.get("byteOffset", 0)
            values = self._view(accessor["bufferView"], offset, count, width, dtype)
        else:
            values = np.zeros((count, width), dtype)
        if "sparse" in accessor:
            sparse = accessor["sparse"]
            where, what = sparse["indices"], sparse["values"]
            number = sparse["count"]
            kind = np.dtype(COMPONENTS[where["componentType"]])
            at = self._view(where["bufferView"], where.get("byteOffset", 0), number, 1, kind)
            values = values.copy()
            values[at.reshape(-1)] = self._view(
                what["bufferView"], what.get("byteOffset", 0), number, width, dtype
            )
        result = values.astype(np.float64)
        if accessor.get("normalized") and dtype.kind in "iu":
            result = np.maximum(result / np.iinfo(dtype).max, -1)
        return result

    def _view(
        self, index: int, offset: int, count: int, width: int, dtype: np.dtype[Any]
    ) -> np.ndarray:
        data, stride = self._bytes(index)
        stride = stride or width * dtype.itemsize
        if (
            offset < 0
            or stride < 1
            or (count - 1) * stride + width * dtype.itemsize > len(data) - offset
        ):
            raise MeshFileError(f"buffer view {index} is too short")
        if count == 0:
            return np.empty((0, width), dtype)
        return np.ndarray((count, width), dtype, data, offset, (stride, dtype.itemsize))

    def _bytes(self, index: int) -> tuple[bytes, int]:
        views = self.json["bufferViews"]
        view = views[_index(index, views)]
        start, length = view.get("byteOffset", 0), view["byteLength"]
        data = self._buffer(view["buffer"])
        if start < 0 or length < 0 or start + length > len(data):
            raise MeshFileError(f"buffer view {index} reaches beyond its buffer")
        return data[start : start + length], view.get("byteStride", 0)

    def _buffer(self, index: int) -> bytes:
        if index not in self.buffers:
            buffer = self.json["buffers"][_index(index, self.json["buffers"])]
            if "uri" in buffer:
                self.buffers[index] = self._resource(buffer["uri"])
            elif index == 0 and self.binary is not None:
                self.buffers[index] = self.binary
            else:
                raise MeshFileError("it lacks its binary chunk")
        return self.buffers[index]

    def _resource(self, uri: str) -> bytes:
        if uri.startswith("data:"):
            return base64.b64decode(uri.partition("base64,")[2], validate=True)
        return self.folder.read(uri)

    def _material(self, entry: dict[str, Any]) -> FileMaterial:
        pbr = entry.get("pbrMetallicRoughness", {})
        color = [_unit(value) for value in [*pbr.get("baseColorFactor", []), 1, 1, 1][:3]]
        surface = self._image(pbr.get("metallicRoughnessTexture"))
        return FileMaterial(
            name=str(entry.get("name", "")),
            color=(color[0], color[1], color[2]),
            roughness=_unit(pbr.get("roughnessFactor", 1.0)),
            metallic=_unit(pbr.get("metallicFactor", 1.0)),
            normal_scale=float(entry.get("normalTexture", {}).get("scale", 1.0)),
            color_image=self._image(pbr.get("baseColorTexture")),
            roughness_image=surface,
            metallic_image=surface,
            normal_image=self._image(entry.get("normalTexture")),
            double_sided=bool(entry.get("doubleSided", False)),
        )

    def _image(self, reference: dict[str, Any] | None) -> bytes | None:
        if reference is None:
            return None
        if reference.get("texCoord", 0) or "KHR_texture_transform" in reference.get(
            "extensions", {}
        ):
            self.notes.append("texture with coordinates of its own ignored")
            return None
        texture = self.json["textures"][reference["index"]]
        webp = texture.get("extensions", {}).get("EXT_texture_webp", {})
        source = webp.get("source", texture.get("source"))
        try:
            image = self.json["images"][source]
            if "bufferView" in image:
                return self._bytes(image["bufferView"])[0]
            return self._resource(image["uri"])
        except (LookupError, TypeError, ValueError) as error:
            reason = str(error) if isinstance(error, MeshFileError) else "is not readable"
            self.notes.append(f"texture {reason}")
            return None


def _chunks(content: bytes) -> tuple[bytes, bytes | None]:
    length = int.from_bytes(content[8:12], "little")
    if length > len(content) or len(content) < 20:
        raise MeshFileError(f"it is cut off: {len(content):,} of {length:,} bytes")
    offset, chunks = 12, {}
    while offset + 8 <= length:
        size = int.from_bytes(content[offset : offset + 4], "little")
        if offset + 8 + size > length:
            raise MeshFileError("a chunk reaches beyond its end")
        kind = content[offset + 4 : offset + 8]
        chunks.setdefault(kind, content[offset + 8 : offset + 8 + size])
        offset += 8 + size
    if b"JSON" not in chunks:
        raise MeshFileError("it lacks its JSON chunk")
    return chunks[b"JSON"], chunks.get(b"BIN\0")


def _index(index: Any, items: list[Any]) -> int:
    if not isinstance(index, int) or not 0 <= index < len(items):
        raise MeshFileError(f"it names entry {index!r} of {len(items)}")
    return index


def _unit(value: Any) -> float:
    return min(max(float(value), 0.0), 1.0)


def _local_matrix(node: dict[str, Any]) -> Floats:
    if "matrix" in node:
        return np.array(node["matrix"], np.float64).reshape(4, 4).T
    x, y, z, w = np.array(node.get("rotation", [0, 0, 0, 1]), np.float64)
    scale = np.array(node.get("scale", [1, 1, 1]), np.float64)
    matrix = np.eye(4)
    matrix[:3, :3] = scale * np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )
    matrix[:3, 3] = node.get("translation", [0, 0, 0])
    return matrix
