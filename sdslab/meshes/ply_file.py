"""Stanford PLY: text and both binary orders, polygons and strips, coordinates and colours."""

import re
from dataclasses import dataclass, field, replace

import numpy as np

from sdslab.meshes import mesh_kernels
from sdslab.meshes.mesh_file import (
    FileMaterial,
    Floats,
    Indices,
    MeshFile,
    MeshFileError,
    counted,
    linear_colors,
    split_corners,
    strips,
    triangulate,
)
from sdslab.meshes.mesh_folder import MeshFolder
from sdslab.meshes.text_lines import TextLines, decoded, plain_text, ragged

TYPES = {
    "char": "i1", "int8": "i1", "uchar": "u1", "uint8": "u1", "short": "i2", "int16": "i2",
    "ushort": "u2", "uint16": "u2", "int": "i4", "int32": "i4", "uint": "u4", "uint32": "u4",
    "float": "f4", "float32": "f4", "double": "f8", "float64": "f8",
}  # fmt: skip
HEADER = re.compile(rb"ply[ \t]*(\r\n|\n|\r)(.*?[\r\n])?end_header[ \t]*(\r\n|\n|\r|\Z)", re.DOTALL)
COORDINATES = (("texture_u", "texture_v"), ("u", "v"), ("s", "t"), ("texture_s", "texture_t"))
COLORS = (("red", "green", "blue"), ("diffuse_red", "diffuse_green", "diffuse_blue"),
          ("r", "g", "b"))  # fmt: skip


@dataclass
class _Element:
    """Rows of one kind; a list property has the type of its length too."""

    name: str
    count: int
    properties: dict[str, tuple[str | None, str]] = field(default_factory=dict)
    columns: dict[str, np.ndarray] = field(default_factory=dict)
    lengths: dict[str, Indices] = field(default_factory=dict)


@dataclass
class _Body:
    """Values as bytes; the words of a text, whatever is declared, are float64."""

    content: bytes
    order: str
    is_text: bool = False

    def width(self, kind: str) -> int:
        return 8 if self.is_text else int(kind[1])

    def take(self, offsets: Indices, kind: str) -> np.ndarray:
        # A view of the value that starts at each byte: rows are aligned to nothing.
        kind = "f8" if self.is_text else kind
        starts = max(len(self.content) - self.width(kind) + 1, 0)
        values = np.ndarray((starts,), self.order + kind, self.content, strides=(1,))
        return values[offsets].astype(kind, copy=False)


def read_ply(content: bytes, folder: MeshFolder) -> MeshFile:
    """Reads vertices in order; one that faces use with several texture coordinates is split."""
    encoding, textures, elements, body = _header(content)
    notes: list[str] = []
    if encoding == "ascii":
        _read_text(elements, plain_text(body), notes)
    else:
        _read_stream(elements, _Body(body, ">" if encoding == "binary_big_endian" else "<"))
    vertices = elements.get("vertex")
    if vertices is None or not {"x", "y", "z"} <= vertices.columns.keys():
        raise MeshFileError("it has no vertices")
    positions = np.stack([vertices.columns[k] for k in "xyz"], axis=1).astype(np.float64)
    faces, corner, sizes = _polygons(elements, len(positions))
    triangles, polygon = triangulate(sizes, positions[corner], notes)
    used, vertex = triangles.reshape(-1), corner[triangles.reshape(-1)]
    materials, part, part_material = _parts(textures, faces, len(sizes), folder, notes)
    order = np.argsort(part[polygon], kind="stable")
    file = MeshFile(
        positions=positions,
        faces=vertex.reshape(-1, 3)[order],
        face_part=part[polygon][order],
        part_names=[""] * len(part_material),
        part_material=part_material,
        uv=_columns(vertices, *COORDINATES),
        normals=_columns(vertices, ("nx", "ny", "nz")),
        colors=_colors(vertices),
        materials=materials,
        notes=notes,
        lost=_lost(elements, faces),
    )
    texcoord = _coordinates_of_corners(faces, sizes, notes)
    if texcoord is None:
        return file
    number, count = mesh_kernels.number_rows((texcoord + 0.0).view(np.int64))  # −0 becomes 0
    index = np.where(np.isfinite(texcoord[used]).all(1), number[used], -1)
    none = np.full(len(vertex), -1)
    vertex, source, own, _ = split_corners(vertex, index, none, len(positions))
    table = np.full((count, 2), np.nan)
    table[number] = texcoord
    uv = np.where(own[:, None] >= 0, table[own], np.nan)
    return replace(file.with_vertices(source), uv=uv, faces=vertex.reshape(-1, 3)[order])


def _polygons(elements: dict[str, _Element], vertices: int) -> tuple[_Element, Indices, Indices]:
    """The faces' element, the vertices of all their corners and how many each has."""
    for name in ("face", "tristrips"):
        element = elements.get(name)
        lists = element.lengths if element else {}
        wanted = ("vertex_indices", "vertex_index", "vertex_indexes", "indices")
        whole = [n for n in lists if element and element.properties[n][1][0] in "iu"]
        key = next((n for n in wanted if n in lists), whole[0] if len(whole) == 1 else None)
        if element is None or key is None or not element.count:
            continue
        corner, sizes = element.columns[key], element.lengths[key]
        if not np.isfinite(corner).all():
            raise MeshFileError("a face names a vertex that is no number")
        corner = corner.astype(np.int64)
        if name == "tristrips":
            corner, sizes = strips(corner, sizes)
        wrong = (corner < 0) | (corner >= vertices)
        if wrong.any():
            raise MeshFileError(
                f"a face names vertex {corner[wrong][0]}, outside 0 … {vertices - 1}"
            )
        return element, corner, sizes
    raise MeshFileError("it has no faces, only points")


def _coordinates_of_corners(faces: _Element, sizes: Indices, notes: list[str]) -> Floats | None:
    """[c, 2] for all corners, NaN for those of faces without any; None where no face has them."""
    lengths = faces.lengths.get("texcoord")
    if lengths is None or len(lengths) != len(sizes) or not lengths.any():
        return None
    fits = lengths == 2 * sizes
    strange = int((~fits & (lengths > 0)).sum())
    if strange:
        notes.append(f"{counted(strange, 'face')} whose texture coordinates do not fit the corners")
    result = np.full((int(sizes.sum()), 2), np.nan)
    values = faces.columns["texcoord"][np.repeat(fits, lengths)]
    result[np.repeat(fits, sizes)] = values.reshape(-1, 2)
    return result


def _parts(
    textures: list[str], faces: _Element, count: int, folder: MeshFolder, notes: list[str]
) -> tuple[list[FileMaterial], Indices, list[int]]:
    """The materials, the part of each face, and each part's material."""
    number = faces.columns.get("texnumber")
    materials, material_of = [], []
    for name in textures:
        material_of.append(-1)
        try:
            materials.append(FileMaterial(color_image=folder.picture(name)))
            material_of[-1] = len(materials) - 1
        except MeshFileError as error:
            notes.append(f"texture {error}")
    if number is None or len(number) != count or len(textures) < 2:
        if len(textures) > 1:
            notes.append("only the first texture is used: no face has a texnumber")
        return materials, np.zeros(count, np.int64), [material_of[0] if textures else -1]
    known = np.isfinite(number) & (number >= 0) & (number < len(textures))
    part = np.where(known, number, len(textures)).astype(np.int64)
    if not known.all():
        notes.append(f"{counted(int((~known).sum()), 'face')} of a texnumber without a texture")
    return materials, part, [*material_of, -1]


def _columns(element: _Element, *choices: tuple[str, ...]) -> Floats | None:
    for names in choices:
        if set(names) <= element.columns.keys():
            return np.stack([element.columns[name] for name in names], axis=1).astype(np.float64)
    return None


def _colors(vertices: _Element) -> Floats | None:
    for names in COLORS:
        found = _columns(vertices, (*names, "alpha"), (*names, "a"), names)
        if found is not None:
            kind = vertices.properties[names[0]][1]
            return linear_colors(found / ({"u1": 255, "u2": 65535}.get(kind, 1)))
    return None


def _lost(elements: dict[str, _Element], faces: _Element) -> list[str]:
    lost = []
    if {"red", "green", "blue"} <= faces.columns.keys():
        lost.append("colours of faces")
    known = {"x", "y", "z", "nx", "ny", "nz", "alpha", "a"}.union(*COORDINATES, *COLORS)
    more = [name for name in elements["vertex"].properties if name not in known]
    if more:
        lost.append(f"values {', '.join(n[:20] for n in more[:3])}{', …' * bool(more[3:])}")
    for element in elements.values():
        if element.name not in ("vertex", faces.name) and element.count:
            lost.append(f"{counted(element.count, 'row')} of {element.name[:40]!r}")
    return lost


def _header(content: bytes) -> tuple[str, list[str], dict[str, _Element], bytes]:
    """The encoding, names of textures, the elements without their rows, and these."""
    match = HEADER.match(content)
    if not match:
        raise MeshFileError("its header is not a PLY header")
    encoding, textures, current = "", list[str](), None
    elements: dict[str, _Element] = {}
    for line in decoded(match[2] or b"").splitlines():
        match line.split():
            case ["format", kind, *_]:
                encoding = kind
            case ["element", name, count] if count.isascii() and count.isdigit():
                current = elements[name] = _Element(name, int(count[:18]))
            case ["property", *_, name] if current and name in current.properties:
                raise MeshFileError(f"its header has {name[:40]!r} twice")
            case ["property", "list", length, kind, name] if current:
                current.properties[name] = (_type(length), _type(kind))
            case ["property", kind, name] if current:
                current.properties[name] = (None, _type(kind))
            case ["comment", "TextureFile", _, *_]:
                textures.append(line.split(None, 2)[2].strip().strip('"'))
            case ["comment" | "obj_info", *_] | []:
                pass
            case _:
                raise MeshFileError(f"its header has a line {line.strip()[:60]!r}")
    if encoding not in ("ascii", "binary_little_endian", "binary_big_endian"):
        raise MeshFileError(f"its format is {encoding[:40]!r}")
    body = content[match.end() :]
    for name, element in elements.items():
        # every value takes a byte at least: no memory is set aside for what cannot be there
        if element.count * max(len(element.properties), 1) > len(body):
            raise MeshFileError(
                f"its header promises {element.count:,} of {name[:40]!r}, more than it holds"
            )
    return encoding, textures, elements, body


def _type(name: str) -> str:
    if name not in TYPES:
        raise MeshFileError(f"its header has values of type {name[:40]!r}")
    return TYPES[name]


def _read_text(elements: dict[str, _Element], text: bytes, notes: list[str]) -> None:
    """Fills the elements; each row is a line, unless there are more or fewer lines than rows."""
    lines = TextLines(text)
    values = lines.numbers(np.ones(len(lines.counts), bool), len(lines.words))
    body = _Body(values.tobytes(), "=", is_text=True)
    rows = np.flatnonzero(lines.counts)
    if len(rows) != sum(element.count for element in elements.values()):
        _read_stream(elements, body)
        return
    ends = 8 * np.cumsum(lines.counts[rows])
    starts, done = ends - 8 * lines.counts[rows], 0
    for element in elements.values():
        own = slice(done, done + element.count)
        done += element.count
        read = _read_rows(element, starts[own], body, ends[own])
        surplus = int((ends[own] - read).max(initial=0))
        if surplus and element.name == "vertex":
            # As assimp 5 wrote them: which of the values are undeclared, nobody knows.
            notes.append(
                f"rows of 'vertex' hold up to {surplus // 8} values more than its header "
                "declares: only x, y and z are used"
            )
            element.columns = {k: v for k, v in element.columns.items() if k in "xyz"}
        elif surplus:
            notes.append(f"rows of {element.name[:40]!r} hold more than its header declares")


def _read_stream(elements: dict[str, _Element], body: _Body) -> None:
    """Fills the elements, whose rows follow each other."""
    offset = 0
    for element in elements.values():
        starts, offset = _row_starts(element, offset, body)
        _read_rows(element, starts, body, np.full(len(starts), len(body.content)))
    rest = body.content[offset:]
    if rest if body.is_text else rest.strip(b"\n\r \t\0"):
        left = f"{len(rest) // 8:,} values" if body.is_text else f"{len(rest):,} bytes"
        raise MeshFileError(f"its body holds {left} more than its header declares")


def _row_starts(element: _Element, offset: int, body: _Body) -> tuple[Indices, int]:
    """Where each row starts, and where the last one ends."""
    rows, size = np.arange(element.count), len(body.content)

    def row(at: int) -> tuple[list[tuple[int, str, float]], int]:
        """Place, type and value of the lengths of a row's lists, and where the row ends."""
        lists = []
        for length, kind in element.properties.values():
            number = 1
            if length is not None:
                value = body.take(np.array(at), length).item()
                number = int(value)
                if number < 0:
                    raise MeshFileError(f"a list of {element.name[:40]!r} has {number} values")
                lists.append((at, length, value))
                at += body.width(length)
            at += number * body.width(kind)
        return lists, at

    lists: list[tuple[int, str, float]] = []
    try:
        lists, end = row(offset) if element.count else ([], offset)
        stride = end - offset
        # Mostly, the lists of all rows are as long as those of the first.
        if offset + stride * element.count <= size and all(
            (body.take(at + stride * rows, length) == value).all() for at, length, value in lists
        ):
            return offset + stride * rows, offset + stride * element.count
        starts = [offset]
        while lists and len(starts) <= element.count:
            starts.append(row(starts[-1])[1])
    except MeshFileError:
        raise
    except (IndexError, ValueError, OverflowError):  # behind the end, or no number
        starts = [size + 1]
    if not lists or starts[-1] > size:
        raise MeshFileError(
            f"it ends before its {element.count:,} rows of {element.name[:40]!r} do, or its rows "
            "are not as its header declares them"
        )
    return np.array(starts[:-1], np.int64), starts[-1]


def _read_rows(element: _Element, starts: Indices, body: _Body, ends: Indices) -> Indices:
    """Fills an element's columns; returns where each row ends."""
    at, name = starts, element.name[:40]

    def within(stop: Indices) -> Indices:
        if (stop > ends).any():
            number = int((stop > ends).argmax()) + 1
            raise MeshFileError(f"row {number:,} of {name!r} is too short")
        return stop

    for key, (length, kind) in element.properties.items():
        if length is None:
            stop = within(at + body.width(kind))
            element.columns[key] = body.take(at, kind)
        else:
            first = within(at + body.width(length))
            sizes = body.take(at, length)
            if not ((sizes >= 0) & (sizes <= len(body.content))).all():  # NaN included
                raise MeshFileError(f"a list of {name!r} has {sizes.min()} values")
            sizes = element.lengths[key] = sizes.astype(np.int64)
            stop = within(first + body.width(kind) * sizes)
            element.columns[key] = body.take(ragged(first, sizes, body.width(kind)), kind)
        at = stop
    return at
