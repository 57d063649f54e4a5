"""OFF and STL: the two formats that hold nothing but shapes."""

import re

import numpy as np

from sdslab.meshes.mesh_file import MOST_FACES, MeshFile, MeshFileError, MeshFolder
from sdslab.meshes.polygons import triangulate


def read_off(content: bytes, folder: MeshFolder) -> MeshFile:
    """Reads positions and polygons; colours and the like are passed over."""
    del folder
    text = re.sub(r"#[^\n]*", "", content.decode("utf-8", "replace"))
    rows = [row for line in text.splitlines() if (row := line.split())]
    if not rows or not re.fullmatch(r"(ST)?C?N?OFF", rows[0][0]):
        raise MeshFileError("it does not start with OFF")
    rows[0] = rows[0][1:]
    if not rows[0]:
        del rows[0]
    vertex_count, face_count = (int(word) for word in rows[0][:2])
    if min(vertex_count, face_count) < 0 or vertex_count + face_count > len(rows) - 1:
        raise MeshFileError("it ends too early")
    positions = np.array([row[:3] for row in rows[1 : 1 + vertex_count]], np.float64)
    polygons = [
        row[1 : 1 + int(row[0])] for row in rows[1 + vertex_count : 1 + vertex_count + face_count]
    ]
    sizes = np.array([len(polygon) for polygon in polygons], np.int64)
    corner = np.array([int(word) for polygon in polygons for word in polygon], np.int64)
    if ((corner < 0) | (corner >= vertex_count)).any():
        raise MeshFileError(f"a face names a vertex outside 0 … {vertex_count - 1}")
    positions = positions.reshape(-1, 3)
    triangles, _ = triangulate(sizes, positions[corner])
    return MeshFile(
        positions, corner[triangles], np.zeros(len(triangles), np.int64), [""], [-1]
    )  # fmt: skip


def read_stl(content: bytes, folder: MeshFolder) -> MeshFile:
    """Reads triangles, three vertices each as in the file; text files may have several solids."""
    del folder
    count = int.from_bytes(content[80:84], "little")
    if len(content) >= 84 and len(content) == 84 + 50 * count:
        if count > MOST_FACES:
            raise MeshFileError(f"it has more than {MOST_FACES:,} triangles")
        layout = np.dtype([("normal", "<f4", 3), ("corners", "<f4", (3, 3)), ("more", "<u2")])
        corners = np.frombuffer(content, layout, count, 84)["corners"].reshape(-1, 3)
        names, part = [""], np.zeros(count, np.int64)
    else:
        if not content.lstrip()[:5].lower() == b"solid":
            raise MeshFileError("its length does not fit the number of triangles it states")
        solids = re.split(r"^\s*solid\b", content.decode("utf-8", "replace"), flags=re.M | re.I)
        words = [re.findall(r"\bvertex\s+(\S+)\s+(\S+)\s+(\S+)", s, re.I) for s in solids[1:]]
        if any(len(rows) % 3 for rows in words):
            raise MeshFileError("a triangle lacks a corner")
        names = [solid.partition("\n")[0].strip() for solid in solids[1:]]
        corners = np.array([row for rows in words for row in rows], np.float64).reshape(-1, 3)
        part = np.repeat(np.arange(len(words)), [len(rows) // 3 for rows in words])
    faces = np.arange(len(corners)).reshape(-1, 3)
    return MeshFile(corners.astype(np.float64), faces, part, names, [-1] * len(names))
