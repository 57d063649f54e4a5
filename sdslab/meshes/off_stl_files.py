"""OFF and STL: two formats that hold little but shapes."""

import re

import numpy as np

from sdslab.meshes.mesh_file import (
    MOST_FACES,
    Floats,
    MeshFile,
    MeshFileError,
    counted,
    linear_colors,
    triangulate,
)
from sdslab.meshes.mesh_folder import MeshFolder
from sdslab.meshes.text_lines import TextLines, decoded, parsed, plain_text, ragged
from sdslab.meshes.text_lines import without_comments as commented_out

OFF = re.compile(rb"\s*((?:ST)?C?N?4?)OFF(?![A-Za-z])(\s+BINARY)?", re.IGNORECASE)


def read_off(content: bytes, folder: MeshFolder) -> MeshFile:
    """Reads positions and polygons, and of vertices normals, colours and texture coordinates."""
    del folder
    text = commented_out(plain_text(content))
    match = OFF.match(text)
    if match is None and not re.match(rb"\s*\d+\s+\d+(\s+\d+)?\s*\n", text):
        raise MeshFileError("it does not start with OFF")
    kind = decoded(match[1]).upper() if match else ""
    if match and match[2]:
        raise MeshFileError("it is a binary OFF file, which is not read; write it as text")
    # "nOFF" has vertices of n numbers; "noff" is a file in lower case.
    if match and (b"4" in match[1] or b"nOFF" in match[0]):
        raise MeshFileError("its vertices have other than three coordinates")
    lines = TextLines(text[match.end() :] if match else text)
    values = lines.numbers(np.ones(len(lines.counts), bool), len(lines.words))
    rows = np.flatnonzero(lines.counts)
    if not len(rows) or lines.counts[rows[0]] < 2 or not np.isfinite(values[:2]).all():
        raise MeshFileError("it does not state how many vertices and faces it has")
    vertex_count, face_count = int(values[0]), int(values[1])
    if min(vertex_count, face_count) < 0 or vertex_count + face_count > len(rows) - 1:
        raise MeshFileError("it ends too early")
    first, counts = lines.first[rows[1:]], lines.counts[rows[1:]]
    notes, lost = [], []
    if len(first) > vertex_count + face_count:
        notes.append(
            f"{counted(len(first) - vertex_count - face_count, 'line')} after the last face"
        )
    width = int(counts[:vertex_count].min()) if vertex_count else 3
    if width < 3:
        raise MeshFileError("a vertex needs three numbers")
    table = values[first[:vertex_count, None] + np.arange(width)]
    start, sizes = first[vertex_count:][:face_count], counts[vertex_count:][:face_count]
    corners = values[start]
    wrong = ~(np.isfinite(corners) & (corners >= 0) & (corners + 1 <= sizes))
    if wrong.any():
        raise MeshFileError(f"face {int(wrong.argmax()) + 1} has fewer vertices than it states")
    corners = corners.astype(np.int64)
    if (sizes > corners + 1).any():
        lost.append("colours of faces")
    corner = values[ragged(start + 1, corners)]
    if not ((corner >= 0) & (corner < vertex_count)).all():
        raise MeshFileError(f"a face names a vertex outside 0 … {vertex_count - 1}")
    corner = corner.astype(np.int64)
    triangles, _ = triangulate(corners, table[corner, :3], notes)
    normals, colors, uv = _off_attributes(table[:, 3:], kind, lost)
    return MeshFile(
        table[:, :3],
        corner[triangles],
        np.zeros(len(triangles), np.int64),
        [""],
        [-1],
        uv=uv,
        normals=normals,
        colors=colors,
        notes=notes,
        lost=lost,
    )


def _off_attributes(
    more: Floats, kind: str, lost: list[str]
) -> tuple[Floats | None, Floats | None, Floats | None]:
    """Normals, colours and texture coordinates, which follow the position in this order."""
    normals, colors, uv = None, None, None
    if "N" in kind and more.shape[1] >= 3:
        normals, more = more[:, :3], more[:, 3:]
    if "ST" in kind and more.shape[1] >= 2:
        uv, more = more[:, -2:], more[:, :-2]
    if "C" in kind and more.shape[1] >= 3:
        colors, more = more[:, :4], more[:, 4:]
        colors = linear_colors(colors / 255 if np.nanmax(colors, initial=0) > 1 else colors)
    if more.shape[1]:
        lost.append("further values of vertices")
    return normals, colors, uv


def read_stl(content: bytes, folder: MeshFolder) -> MeshFile:
    """Reads triangles, three vertices each as in the file; text files may have several solids."""
    del folder
    count = int.from_bytes(content[80:84], "little")
    end = 84 + 50 * count
    # Binary files may begin with "solid", too.
    text = content.lstrip()[:5].lower() == b"solid" and b"facet" in content[:4096].lower()
    if len(content) == end or (84 <= end < len(content) and not text):
        return _binary_stl(content, count, len(content) - end)
    if not content.lstrip()[:5].lower() == b"solid":
        raise MeshFileError("its length does not fit the number of triangles it states")
    plain = plain_text(content)
    solids = re.split(rb"^[ \t]*solid\b", plain, flags=re.MULTILINE | re.IGNORECASE)[1:]
    words = [re.findall(rb"\bvertex\s+([^\n]*)", solid, re.IGNORECASE) for solid in solids]
    facets = [len(re.findall(rb"\bouter\s+loop\b", solid, re.IGNORECASE)) for solid in solids]
    if [3 * n for n in facets] != [len(rows) for rows in words]:
        raise MeshFileError("a triangle has other than three corners")
    values = parsed(b"\n".join(row for rows in words for row in rows), np.float64)
    if len(values) != 9 * sum(facets):
        raise MeshFileError("a vertex is not three numbers")
    notes = [] if b"endsolid" in plain[-4096:].lower() else ["no endsolid: the file may be cut off"]
    corners = values.reshape(-1, 3)
    return MeshFile(
        corners,
        np.arange(len(corners)).reshape(-1, 3),
        np.repeat(np.arange(len(solids)), facets),
        [decoded(solid.partition(b"\n")[0]).strip() for solid in solids],
        [-1] * len(solids),
        notes=notes,
    )


def _binary_stl(content: bytes, count: int, surplus: int) -> MeshFile:
    if count > MOST_FACES:
        raise MeshFileError(f"it has more than {MOST_FACES:,} triangles")
    if not count and surplus:
        raise MeshFileError("its length does not fit the number of triangles it states")
    layout = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("more", "<u2")])
    table = np.frombuffer(content, layout, count, 84)
    corners = table["corners"].reshape(-1, 3).astype(np.float64)
    return MeshFile(
        corners,
        np.arange(len(corners)).reshape(-1, 3),
        np.zeros(count, np.int64),
        [""],
        [-1],
        notes=[f"{counted(surplus, 'byte')} behind the last triangle"] if surplus else [],
        lost=["attributes of triangles"] if table["more"].any() else [],
    )
