"""Stanford PLY: text and both binary orders, polygons, texture coordinates of vertices or faces."""

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from sdslab.meshes.mesh_file import (
    FileMaterial,
    Indices,
    MeshFile,
    MeshFileError,
    MeshFolder,
    split_corners,
)
from sdslab.meshes.polygons import triangulate

TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2",
    "ushort": "u2", "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4",
    "float": "f4", "float32": "f4", "double": "f8", "float64": "f8",
}  # fmt: skip


@dataclass
class _Element:
    """Rows of one kind; a list property has the type of its length too."""

    count: int
    properties: dict[str, tuple[str | None, str]] = field(default_factory=dict)
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    lengths: dict[str, Indices] = field(default_factory=dict)


def read_ply(content: bytes, folder: MeshFolder) -> MeshFile:
    """Reads vertices in order; one that faces use with several texture coordinates is split."""
    elements, encoding, texture, body = _header(content)
    offset = 0
    words = np.array(body.split(), np.float64) if encoding == "ascii" else None
    for element in elements.values():
        if words is not None:
            offset = _read(element, offset, _Text(words))
        else:
            order = ">" if encoding == "binary_big_endian" else "<"
            offset = _read(element, offset, _Binary(body, order))
    vertices, faces = elements.get("vertex"), elements.get("face")
    if vertices is None or not {"x", "y", "z"} <= vertices.columns.keys():
        raise MeshFileError("it has no vertices")
    name = next((n for n in ("vertex_indices", "vertex_index") if faces and n in faces.lengths), "")
    if faces is None or not name:
        raise MeshFileError("it has no faces, only points")
    positions = np.stack([vertices.columns[k] for k in "xyz"], axis=1).astype(np.float64)
    corner, sizes = faces.columns[name].astype(np.int64), faces.lengths[name]
    if ((corner < 0) | (corner >= len(positions))).any():
        raise MeshFileError(f"a face names a vertex outside 0 … {len(positions) - 1}")
    triangles, _ = triangulate(sizes, positions[corner])
    vertex = corner[triangles.reshape(-1)]
    source = np.arange(len(positions))
    uv = _columns(vertices, ("texture_u", "texture_v"), ("u", "v"), ("s", "t"))
    if "texcoord" in faces.lengths and (faces.lengths["texcoord"] == 2 * sizes).all():
        texcoord = faces.columns["texcoord"].reshape(-1, 2)[triangles.reshape(-1)]
        values, index = np.unique(texcoord.astype(np.float64), axis=0, return_inverse=True)
        none = np.full(len(vertex), -1)
        vertex, source, source_uv, _ = split_corners(
            vertex, index.reshape(-1), none, len(positions)
        )
        uv = np.where(source_uv[:, None] >= 0, values[source_uv], np.nan)
    normals = _columns(vertices, ("nx", "ny", "nz"))
    materials, notes = [], []
    if texture:
        try:
            materials.append(FileMaterial(color_image=folder.read(texture)))
        except MeshFileError as error:
            notes.append(f"texture {error}")
    return MeshFile(
        positions=positions[source],
        faces=vertex.reshape(-1, 3),
        face_part=np.zeros(len(triangles), np.int64),
        part_names=[""],
        part_material=[len(materials) - 1],
        uv=uv,
        normals=None if normals is None else normals[source],
        source_vertex=source,
        materials=materials,
        notes=notes,
    )


def _columns(element: _Element, *choices: tuple[str, ...]) -> np.ndarray | None:
    for names in choices:
        if set(names) <= element.columns.keys():
            return np.stack([element.columns[name] for name in names], axis=1).astype(np.float64)
    return None


def _header(content: bytes) -> tuple[dict[str, _Element], str, str, bytes]:
    head, found, body = content.partition(b"end_header")
    if not content.startswith(b"ply") or not found:
        raise MeshFileError("its header is not a PLY header")
    end_of_line = body[:2] if body.startswith(b"\r\n") else body[:1]
    elements: dict[str, _Element] = {}
    encoding, texture, current = "", "", None
    for line in head.decode("ascii", "replace").splitlines()[1:]:
        match line.split():
            case ["format", kind, _]:
                encoding = kind
            case ["element", name, count]:
                current = elements[name] = _Element(int(count))
            case ["property", "list", length, kind, name] if current:
                current.properties[name] = (TYPES[length], TYPES[kind])
            case ["property", kind, name] if current:
                current.properties[name] = (None, TYPES[kind])
            case ["comment", "TextureFile", *rest]:
                texture = " ".join(rest)
    if encoding not in ("ascii", "binary_little_endian", "binary_big_endian"):
        raise MeshFileError(f"its format is {encoding[:40]!r}")
    for name, element in elements.items():
        # every value takes a byte at least: no memory is set aside for what cannot be there
        if not 0 <= element.count * len(element.properties) <= len(body):
            raise MeshFileError(f"its header promises {element.count:,} of {name[:40]!r}")
    return elements, encoding, texture, body[len(end_of_line) :]


class _Text:
    """Values as words."""

    def __init__(self, words: np.ndarray) -> None:
        self.words = words

    def width(self, kind: str) -> int:
        del kind
        return 1

    def one(self, offset: int, kind: str) -> float:
        del kind
        return self.words[offset]

    def table(self, offset: int, kinds: list[str], rows: int) -> list[np.ndarray]:
        return list(self.words[offset : offset + rows * len(kinds)].reshape(rows, -1).T)


class _Binary:
    """Values as bytes."""

    def __init__(self, body: bytes, order: str) -> None:
        self.body = body
        self.order = order

    def width(self, kind: str) -> int:
        return int(kind[1])

    def one(self, offset: int, kind: str) -> float:
        return np.frombuffer(self.body, self.order + kind, 1, offset)[0]

    def table(self, offset: int, kinds: list[str], rows: int) -> list[np.ndarray]:
        dtype = np.dtype([(str(k), self.order + kind) for k, kind in enumerate(kinds)])
        table = np.frombuffer(self.body, dtype, rows, offset)
        return [table[str(k)] for k in range(len(kinds))]


def _read(element: _Element, offset: int, data: Any) -> int:
    """Fills an element's columns; returns where the next one starts."""
    rows: dict[str, list[np.ndarray]] = {name: [] for name in element.properties}
    lengths: dict[str, list[np.ndarray]] = {name: [] for name in element.properties}
    done, run = 0, element.count
    while done < element.count:
        # Runs of rows whose lists are as long as the first one's are read at once.
        kinds: list[str] = []
        spans: dict[str, tuple[int, int]] = {}
        start = offset
        for name, (length, kind) in element.properties.items():
            size = 1
            if length is not None:
                size = int(data.one(start, length))
                if not 0 <= size <= 1_000_000:
                    raise MeshFileError(f"a list has {size} values")
                kinds.append(length)
                start += data.width(length)
            spans[name] = (len(kinds), size)
            kinds += [kind] * size
            start += data.width(kind) * size
        stride = start - offset
        available = (len(data.words) if isinstance(data, _Text) else len(data.body)) - offset
        run = min(run, element.count - done, available // max(stride, 1))
        if run < 1 or (stride == 0):
            raise MeshFileError("it ends too early")
        table = data.table(offset, kinds, run)
        same = np.ones(run, bool)
        for name, (first, size) in spans.items():
            if element.properties[name][0] is not None:
                same &= table[first - 1] == size
        equal = run if same.all() else max(int(same.argmin()), 1)
        for name, (first, size) in spans.items():
            block = [table[first + k][:equal] for k in range(size)]
            rows[name].append(np.stack(block, axis=1).reshape(-1) if size else np.empty(0))
            lengths[name].append(np.full(equal, size))
        done += equal
        offset += stride * equal
        run = min(2 * equal + 16, element.count)
    for name, (length, _) in element.properties.items():
        element.columns[name] = np.concatenate(rows[name]) if rows[name] else np.empty(0)
        if length is not None:
            element.lengths[name] = np.concatenate([np.empty(0, np.int64), *lengths[name]])
    return offset
