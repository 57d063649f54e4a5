"""Stanford PLY: text and both binary orders, polygons and strips, coordinates and colours."""

import re
from dataclasses import dataclass, field

import numpy as np

from sdslab.meshes.mesh_file import (
    MOST_FACES,
    FileMaterial,
    Floats,
    Indices,
    MeshFile,
    MeshFileError,
    counted,
    linear_colors,
    note_small_polygons,
    split_corners,
    triangulate,
)
from sdslab.meshes.mesh_folder import MeshFolder
from sdslab.meshes.ply_rows import Binary, Element, read_stream, read_text
from sdslab.meshes.text_lines import decoded, plain_text

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
class _Header:
    encoding: str = ""
    textures: list[str] = field(default_factory=list)
    elements: dict[str, Element] = field(default_factory=dict)


def read_ply(content: bytes, folder: MeshFolder) -> MeshFile:
    """Reads vertices in order; one that faces use with several texture coordinates is split."""
    header, body = _header(content)
    notes: list[str] = []
    if header.encoding == "ascii":
        read_text(header.elements, plain_text(body), notes)
    else:
        order = ">" if header.encoding == "binary_big_endian" else "<"
        read_stream(header.elements, Binary(body, order))
    vertices = header.elements.get("vertex")
    if vertices is None or not {"x", "y", "z"} <= vertices.columns.keys():
        raise MeshFileError("it has no vertices")
    positions = np.stack([vertices.columns[k] for k in "xyz"], axis=1).astype(np.float64)
    faces, corner, sizes = _polygons(header.elements, len(positions))
    note_small_polygons(sizes, notes)
    triangles, polygon = triangulate(sizes, positions[corner])
    used, vertex = triangles.reshape(-1), corner[triangles.reshape(-1)]
    source, uv = np.arange(len(positions)), _columns(vertices, *COORDINATES)
    texcoord = _coordinates_of_corners(faces, sizes, notes)
    if texcoord is not None:
        index = np.where(np.isfinite(texcoord[used]).all(1), _same_rows(texcoord)[used], -1)
        none = np.full(len(vertex), -1)
        vertex, source, own, _ = split_corners(vertex, index, none, len(positions))
        uv = np.where(own[:, None] >= 0, texcoord[own], np.nan)
    materials, part, part_material = _parts(header.textures, faces, len(sizes), folder, notes)
    order = np.argsort(part[polygon], kind="stable")
    normals, colors = _columns(vertices, ("nx", "ny", "nz")), _colors(vertices)
    return MeshFile(
        positions=positions[source],
        faces=vertex.reshape(-1, 3)[order],
        face_part=part[polygon][order],
        part_names=[""] * len(part_material),
        part_material=part_material,
        uv=uv,
        normals=None if normals is None else normals[source],
        colors=None if colors is None else colors[source],
        source_vertex=source,
        materials=materials,
        notes=notes,
        lost=_lost(header.elements, faces),
    )


def _polygons(elements: dict[str, Element], vertices: int) -> tuple[Element, Indices, Indices]:
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
            corner, sizes = _strips(corner, sizes)
        wrong = (corner < 0) | (corner >= vertices)
        if wrong.any():
            raise MeshFileError(
                f"a face names vertex {corner[wrong][0]}, outside 0 … {vertices - 1}"
            )
        return element, corner, sizes
    raise MeshFileError("it has no faces, only points")


def _strips(corner: Indices, sizes: Indices) -> tuple[Indices, Indices]:
    """Strips, ended by −1 and by the end of a list, as triangles [3t] that face one way."""
    if len(corner) > 3 * MOST_FACES:
        raise MeshFileError(f"it has more than {MOST_FACES:,} triangles")
    owner = np.repeat(np.arange(len(sizes)), sizes)
    strip = owner + np.cumsum(corner == -1)
    first = np.arange(len(corner) - 2) if len(corner) > 2 else np.empty(0, np.int64)
    whole = (corner[first] != -1) & (corner[first + 1] != -1) & (corner[first + 2] != -1)
    first = first[whole & (strip[first] == strip[first + 2]) & (owner[first] == owner[first + 2])]
    begins = np.flatnonzero((corner != -1) & np.diff(strip, prepend=-1).astype(bool))
    behind = np.flatnonzero(corner == -1) + 1
    begins = np.union1d(begins, behind)
    odd = (first - begins[np.searchsorted(begins, first, "right") - 1]) % 2
    turned = np.stack([first + odd, first + 1 - odd, first + 2], axis=1)
    return corner[turned].reshape(-1), np.full(len(first), 3)


def _coordinates_of_corners(faces: Element, sizes: Indices, notes: list[str]) -> Floats | None:
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


def _same_rows(rows: Floats) -> Indices:
    """[n] the first row that equals each one."""
    order = np.lexsort((rows[:, 1], rows[:, 0]))
    changes = (rows[order][1:] != rows[order][:-1]).any(1)
    starts = np.concatenate([[0], np.flatnonzero(changes) + 1]) if len(rows) else np.arange(0)
    result = np.empty(len(rows), np.int64)
    result[order] = order[starts].repeat(np.diff(starts, append=len(rows)))
    return result


def _parts(
    textures: list[str], faces: Element, count: int, folder: MeshFolder, notes: list[str]
) -> tuple[list[FileMaterial], Indices, list[int]]:
    """The materials, the part of each face, and each part's material."""
    number = faces.columns.get("texnumber")
    materials, material_of = [], []
    for name in textures:
        try:
            materials.append(FileMaterial(color_image=folder.picture(name)))
            material_of.append(len(materials) - 1)
        except MeshFileError as error:
            notes.append(f"texture {error}")
            material_of.append(-1)
    if number is None or len(number) != count or len(textures) < 2:
        if len(textures) > 1:
            notes.append("only the first texture is used: no face has a texnumber")
        return materials, np.zeros(count, np.int64), [material_of[0] if textures else -1]
    known = np.isfinite(number) & (number >= 0) & (number < len(textures))
    part = np.where(known, number, len(textures)).astype(np.int64)
    if not known.all():
        notes.append(f"{counted(int((~known).sum()), 'face')} of a texnumber without a texture")
    return materials, part, [*material_of, -1]


def _columns(element: Element, *choices: tuple[str, ...]) -> Floats | None:
    for names in choices:
        if set(names) <= element.columns.keys():
            return np.stack([element.columns[name] for name in names], axis=1).astype(np.float64)
    return None


def _colors(vertices: Element) -> Floats | None:
    for names in COLORS:
        found = _columns(vertices, (*names, "alpha"), (*names, "a"), names)
        if found is not None:
            kind = vertices.properties[names[0]][1]
            return linear_colors(found / ({"u1": 255, "u2": 65535}.get(kind, 1)))
    return None


def _lost(elements: dict[str, Element], faces: Element) -> list[str]:
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


def _header(content: bytes) -> tuple[_Header, bytes]:
    match = HEADER.match(content)
    if not match:
        raise MeshFileError("its header is not a PLY header")
    header, current = _Header(), None
    for line in decoded(match[2] or b"").splitlines():
        match line.split():
            case ["format", kind, *_]:
                header.encoding = kind
            case ["element", name, count] if count.isascii() and count.isdigit():
                current = header.elements[name] = Element(name, int(count[:18]))
            case ["property", *_, name] if current and name in current.properties:
                raise MeshFileError(f"its header has {name[:40]!r} twice")
            case ["property", "list", length, kind, name] if current:
                current.properties[name] = (_type(length), _type(kind))
            case ["property", kind, name] if current:
                current.properties[name] = (None, _type(kind))
            case ["comment", "TextureFile", *_]:
                header.textures.append(line.split(None, 2)[2].strip().strip('"'))
            case ["comment" | "obj_info", *_] | []:
                pass
            case _:
                raise MeshFileError(f"its header has a line {line.strip()[:60]!r}")
    if header.encoding not in ("ascii", "binary_little_endian", "binary_big_endian"):
        raise MeshFileError(f"its format is {header.encoding[:40]!r}")
    body = content[match.end() :]
    for name, element in header.elements.items():
        # every value takes a byte at least: no memory is set aside for what cannot be there
        if element.count * max(len(element.properties), 1) > len(body):
            raise MeshFileError(
                f"its header promises {element.count:,} of {name[:40]!r}, more than it holds"
            )
    return header, body


def _type(name: str) -> str:
    if name not in TYPES:
        raise MeshFileError(f"its header has values of type {name[:40]!r}")
    return TYPES[name]
