"""Meshes made of formulas, closed and smooth, with texture coordinates that do not overlap."""

import dataclasses
from collections.abc import Callable
from typing import Protocol

import numpy as np
import torch

from sdslab.meshes.mesh import Mesh
from sdslab.meshes.mesh_assembly import Unwrapping, assemble_mesh
from sdslab.meshes.mesh_file import Floats, Indices, MeshFile


class MakeMesh(Protocol):
    """Makes a mesh; arguments as of `load_mesh`."""

    def __call__(
        self, unwrap: Unwrapping = "never", progress: Callable[[float], None] | None = None
    ) -> Mesh: ...


def sphere(unwrap: Unwrapping = "never", progress: Callable[[float], None] | None = None) -> Mesh:
    """The unit sphere by longitude and latitude, 3,968 triangles."""
    u, v = _grid(64, 32)
    polar = np.pi * (1 - v)
    around, radius = 2 * np.pi * u, np.sin(polar)
    positions = np.stack([radius * np.sin(around), np.cos(polar), radius * np.cos(around)], axis=-1)
    uv = np.stack([u, v], axis=-1)
    # the triangles at a pole have their tip in the middle of their base
    uv[[0, -1], :, 0] += 0.5 / 64
    uv[[0, -1], -1, 0] -= 1 / 64
    return assemble_mesh("sphere", _file({"sphere": [(positions, uv)]}), unwrap, progress)


def torus(unwrap: Unwrapping = "never", progress: Callable[[float], None] | None = None) -> Mesh:
    """Radii 1 and 0.4 about the y axis, 6,144 triangles."""
    u, v = _grid(96, 32)
    around, across = 2 * np.pi * u, 2 * np.pi * v
    radius = 1 - 0.4 * np.cos(across)
    positions = np.stack(
        [radius * np.sin(around), -0.4 * np.sin(across), radius * np.cos(around)], axis=-1
    )
    uv = np.stack([u, v], axis=-1)
    return assemble_mesh("torus", _file({"torus": [(positions, uv)]}), unwrap, progress)


def apple(unwrap: Unwrapping = "never", progress: Callable[[float], None] | None = None) -> Mesh:
    """An apple of three parts, fruit, stem and leaf, about 5,000 triangles.

    The texture holds the fruit's upper and lower half as discs, the stem as a strip, and both sides
    of the leaf.
    """
    sheets = {
        "fruit": [_fruit(0, 0.5, (0.292, 0.292)), _fruit(0.5, 1, (0.708, 0.708))],
        "stem": [_stem()],
        "leaf": [_leaf(1), _leaf(-1)],
    }
    return assemble_mesh("apple", _file(sheets), unwrap, progress)


PROCEDURAL_MESHES: dict[str, MakeMesh] = {"apple": apple, "sphere": sphere, "torus": torus}


def _grid(columns: int, rows: int) -> tuple[Floats, Floats]:
    """The corners of a grid on the unit square: u and v, [rows + 1, columns + 1] each."""
    u, v = np.meshgrid(np.linspace(0, 1, columns + 1), np.linspace(0, 1, rows + 1))
    return u, v


def _file(parts: dict[str, list[tuple[Floats, Floats]]]) -> MeshFile:
    """Sheets of positions and uv, [rows, columns, ·] each, whose front shows uv unmirrored."""
    positions, uvs, faces, labels = [], [], [], []
    count = 0
    for label, sheets in enumerate(parts.values()):
        for position, uv in sheets:
            points = position.reshape(-1, 3).round(12)  # so that seams and poles meet exactly
            triangles = _sheet_faces(position.shape[0], position.shape[1], points)
            positions.append(points)
            uvs.append(uv.reshape(-1, 2))
            faces.append(triangles + count)
            labels.append(np.full(len(triangles), label))
            count += len(points)
    return _compact(
        MeshFile(
            np.concatenate(positions), np.concatenate(faces), np.concatenate(labels),
            list(parts), [-1] * len(parts), uv=np.concatenate(uvs),
        )
    )  # fmt: skip


def _sheet_faces(rows: int, columns: int, points: Floats) -> Indices:
    corner = np.arange(rows * columns).reshape(rows, columns)
    a, b, c, d = (corner[i : rows - 1 + i, j : columns - 1 + j] for i, j in
                  ((0, 0), (0, 1), (1, 1), (1, 0)))  # fmt: skip
    faces = np.stack([a, b, c, a, c, d], axis=-1).reshape(-1, 3)
    sides = points[faces] - points[np.roll(faces, 1, axis=1)]
    return faces[(np.abs(sides).max(-1) > 0).all(1)]


def _compact(file: MeshFile) -> MeshFile:
    """One vertex for all of the same position and uv, such as a pole's; none without a face."""
    assert file.uv is not None
    corners = np.concatenate([file.positions, file.uv], axis=1)[file.faces.reshape(-1)]
    _, first, inverse = np.unique(corners, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    kept = corners[first[order]]
    return MeshFile(
        kept[:, :3], rank[inverse.reshape(-1)].reshape(-1, 3), file.face_part, file.part_names,
        file.part_material, uv=kept[:, 3:],
    )  # fmt: skip


def _fruit_profile(t: Floats) -> tuple[Floats, Floats]:
    """Distance from the axis and height, from the hollow of the stem (0) to the calyx (1)."""
    angle = np.pi * t
    radius = np.sin(angle) * (1 + 0.13 * np.cos(angle))
    height = 0.88 * np.cos(angle)
    height -= 0.42 * np.exp(-((radius / 0.30) ** 2)) * (t < 0.5)
    height += 0.22 * np.exp(-((radius / 0.24) ** 2)) * (t >= 0.5)
    return radius, height


def _fruit(begin: float, end: float, centre: tuple[float, float]) -> tuple[Floats, Floats]:
    """Half of the fruit; the texture's radius is the length along the meridian."""
    fine = np.linspace(begin, end, 2001)
    length = np.cumsum(np.hypot(*(np.diff(c, prepend=c[0]) for c in _fruit_profile(fine))))
    u, v = _grid(64, 18)
    t = np.interp(v * length[-1], length, fine)
    radius, height = _fruit_profile(t)
    along = 2 * np.pi * u
    bottom = np.clip((t - 0.45) / 0.55, 0, 1)
    lobes = 1 + 0.045 * bottom**2 * np.cos(5 * along) * np.sin(np.pi * t) ** 0.5
    height = height - 0.05 * bottom**3 * np.cos(5 * along) * np.minimum(radius / 0.3, 1)
    tilt = 0.05 * radius * np.sin(along)
    positions = np.stack(
        [radius * lobes * np.sin(along), height + tilt, radius * lobes * np.cos(along)], axis=-1
    )
    upper = begin == 0
    spread = 0.285 * (v if upper else 1 - v)
    turn = along if upper else -along
    uv = np.stack([centre[0] + spread * np.sin(turn), centre[1] - spread * np.cos(turn)], axis=-1)
    flip = slice(None, None, -1)
    return positions[flip], uv[flip]


def _stem() -> tuple[Floats, Floats]:
    """A bent tube that widens upwards, closed at both ends."""
    u, v = _grid(14, 13)
    s = np.clip((v - 0.1) / 0.8, 0, 1)
    thickness = (0.045 + 0.035 * s**3) * np.minimum(1, np.minimum(v, 1 - v) / 0.1)
    along = 2 * np.pi * u
    lean = 0.28 * s**2
    x = lean + thickness * np.sin(along)
    y = 0.36 + 0.66 * s - 0.35 * thickness * np.sin(along) * s
    z = thickness * np.cos(along)
    uv = np.stack([0.66 + 0.32 * u, 0.02 + 0.32 * v], axis=-1)
    return np.stack([x, y, z], axis=-1), uv


def _leaf(side: int) -> tuple[Floats, Floats]:
    """One face of the leaf, +1 the upper; both meet along the outline."""
    across, along = _grid(10, 20)
    b = 2 * across - 1
    width = 0.235 * np.sin(np.pi * along**0.85) ** 0.85
    width[[0, -1]] = 0
    reach = 0.95 * along
    x = 0.07 - reach
    rise = 0.72 + 0.62 * along - 0.62 * along**2.2
    bend = 0.16 * (b**2) * np.sin(np.pi * along)
    thickness = 0.018 * (1 - b**2) * np.sin(np.pi * along) ** 0.5
    thickness[[0, -1]] = 0
    y = rise + bend + side * thickness
    z = b * width * 0.95 + 0.1 * np.sin(np.pi * along)
    shift = 0.0 if side > 0 else 0.185
    texture_width = 0.085 * width / 0.235
    uv = np.stack(
        [0.1 + shift - side * b * texture_width, 0.64 + 0.34 * along], axis=-1
    )  # fmt: skip
    positions = np.stack([x, y, z], axis=-1)
    return positions[:, ::-side], uv[:, ::-side]


def subdivide(mesh: Mesh) -> Mesh:
    """Splits every face into four at the middles of its edges.

    Attributes of new vertices are means of their edge's ends; parts keep their faces.
    """
    corners = mesh.faces.long()
    edges = torch.stack((corners, corners.roll(-1, 1)), -1).sort(-1).values  # [f, 3, 2]
    unique, index = edges.flatten(0, 1).unique(dim=0, return_inverse=True)
    middle = len(mesh.positions) + index.view(-1, 3)  # of edges 01, 12, 20
    (a, b, c), (ab, bc, ca) = corners.unbind(1), middle.unbind(1)
    faces = torch.stack((a, ab, ca, ab, b, bc, ca, bc, c, ab, bc, ca), 1).view(-1, 3)

    def extended(values: torch.Tensor) -> torch.Tensor:
        return torch.cat((values, values[unique].mean(1)))

    normals = torch.nn.functional.normalize(extended(mesh.normals), dim=1)
    tangents = extended(mesh.tangents)
    direction = torch.nn.functional.normalize(tangents[:, :3], dim=1)
    handedness = torch.where(tangents[:, 3:] < 0, -1.0, 1.0)
    return dataclasses.replace(
        mesh,
        positions=extended(mesh.positions),
        faces=faces.int(),
        uv=extended(mesh.uv),
        normals=normals,
        tangents=torch.cat((direction, handedness), 1),
        parts=tuple(
            dataclasses.replace(part, faces=range(4 * part.faces.start, 4 * part.faces.stop))
            for part in mesh.parts
        ),
        source_vertex=torch.cat((mesh.source_vertex, mesh.source_vertex[unique[:, 0]])),
        source_material=None,
    )
