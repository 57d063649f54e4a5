"""Points spread evenly over a surface, each with a frame, and which of them lie beside which."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from sdslab.kernels.compiled import njit
from sdslab.machine import run_all, split, worker_count
from sdslab.meshes.mesh import Mesh

Array = np.ndarray[Any, Any]

SPACING = 0.75  # of a pixel, between points: darts thrown until none fits are one a pixel then
DARTS = 8  # thrown for each point that is wanted
FACING = 0.3  # least cosine between the normals of neighbours: a sheet's other side is none
REACH = 1.0  # pixels between the place where a neighbour is looked for and the neighbour

# Large primes that spread neighbouring cells over a table (Teschner et al. 2003).
VOXEL_HASH = (73856093, 19349663, 83492791)


@dataclass(frozen=True, eq=False)
class SurfacePoints:
    """Places on a surface, each with a frame.

    Attributes:
        position: [n, 3] float32, world.
        normal: [n, 3] float32, unit.
        up: [n, 3] float32, unit and along the surface.
        uv: [n, 2] float32, where they lie in the texture.
        face: [n] int64.
    """

    position: Array
    normal: Array
    up: Array
    uv: Array
    face: Array

    @property
    def right(self) -> Array:
        """[n, 3], up × normal."""
        return np.cross(self.up, self.normal).astype(np.float32)

    @classmethod
    def spread(cls, mesh: Mesh, up: torch.Tensor, per_unit: float) -> "SurfacePoints":
        """Darts at random places, of which each stays that is not too near an earlier one.

        Args:
            mesh: the surface.
            up: [v, 3] unit tangent vectors at its vertices.
            per_unit: points along a unit of the surface.
        """
        double_areas = mesh.face_vectors.norm(dim=1).numpy()
        share = np.cumsum(double_areas)
        count = max(1, round(DARTS * share[-1] / 2 * per_unit**2))
        random = np.random.default_rng(0).random((count, 3))
        face = np.searchsorted(share, random[:, 0] * share[-1], side="right")
        face = np.minimum(face, len(share) - 1)
        root = np.sqrt(random[:, 1])
        weights = np.stack((1 - root, root * (1 - random[:, 2]), root * random[:, 2]), 1)
        darts = cls.at(mesh, up, face, weights)
        radius = SPACING / per_unit
        kept = np.zeros(count, dtype=bool)
        cells = _cells(darts.position, radius)
        heads, size = np.full(_table_size(count), -1), np.int64(_table_size(count))
        _throw(darts.position, darts.normal, cells, size, heads, np.full(count, -1), radius, kept)
        return cls(*(value[kept] for value in vars(darts).values()))

    @classmethod
    def at(cls, mesh: Mesh, up: torch.Tensor, face: Array, weights: Array) -> "SurfacePoints":
        """Points of faces.

        Args:
            mesh: the surface.
            up: [v, 3] unit tangent vectors at its vertices.
            face: [n] int64, the face of each point.
            weights: [n, 3], of its corners.
        """
        corners = mesh.faces.long()[torch.from_numpy(face)]
        shares = torch.from_numpy(weights).float()[..., None]
        position, normal, along, uv = (
            (values[corners].float() * shares).sum(1)
            for values in (mesh.render_positions, mesh.render_normals, up, mesh.uv)
        )
        normal = F.normalize(normal, dim=1)
        return cls(
            position.numpy(), normal.numpy(), tangent(along, normal).numpy(), uv.numpy(), face
        )


def tangent(along: torch.Tensor, normal: torch.Tensor) -> torch.Tensor:
    """Vectors [n, 3] laid along the surface; any direction where they have none on it."""
    laid = along - (along * normal).sum(1, keepdim=True) * normal
    axis = F.one_hot(normal.abs().argmin(1), 3).to(normal)
    other = axis - (axis * normal).sum(1, keepdim=True) * normal
    return F.normalize(torch.where(laid.norm(dim=1, keepdim=True) > 1e-4, laid, other), dim=1)


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Points around points.

    Attributes:
        index: [n, k] int32, −1 where none is near.
        displacement: [n, k, 2] float32, to them in pixels (right, down) of each point's frame.
        turn: [n, k] float32, by how much their frame is turned against it, from right to down.
    """

    index: Array
    displacement: Array
    turn: Array


def neighbours(
    of: SurfacePoints, among: SurfacePoints, offsets: Array, per_unit: float
) -> Neighbours:
    """The points nearest to places that lie at offsets from each point.

    Args:
        of: n points.
        among: points that may be the neighbours.
        offsets: [k, 2] in pixels (right, down).
        per_unit: pixels along a unit of the surface.
    """
    n, k = len(of.position), len(offsets)
    index = np.full((n, k), -1, dtype=np.int32)
    displacement = np.zeros((n, k, 2), dtype=np.float32)
    turn = np.zeros((n, k), dtype=np.float32)
    cell = 2 * REACH / per_unit
    size = _table_size(len(among.position))
    slot = _slots(_cells(among.position, cell), size)
    order = np.argsort(slot, kind="stable").astype(np.int32)
    start = np.searchsorted(slot[order], np.arange(size + 1)).astype(np.int32)
    theirs = (among.position, among.normal, among.right, order, start)
    ours = (of.position, of.normal, of.right, of.up)
    found = (index, displacement, turn)
    calls = [
        (*ours, *theirs, np.asarray(offsets, np.float32), per_unit, *found, part.start, part.stop)
        for part in split(n, 4 * worker_count())
    ]
    run_all(_find, calls)
    return Neighbours(*found)


def _table_size(count: int) -> int:
    return 1 << max(4, int(count).bit_length())


def _cells(position: Array, width: float) -> Array:
    return np.floor(position / width).astype(np.int64)


def _slots(cells: Array, size: int) -> Array:
    return _hash(cells[:, 0], cells[:, 1], cells[:, 2]) & (size - 1)


@njit(nogil=True, cache=True)
def _hash(x, y, z):
    return (x * VOXEL_HASH[0]) ^ (y * VOXEL_HASH[1]) ^ (z * VOXEL_HASH[2])


@njit(nogil=True, cache=True)
def _floor(value):
    return np.int64(np.floor(value))


@njit(nogil=True, cache=True)
def _throw(position, normal, cells, size, heads, after, radius, kept):
    for n in range(len(position)):
        free = True
        for dx in range(-1, 2):
            for dy in range(-1, 2):
                for dz in range(-1, 2):
                    slot = _hash(cells[n, 0] + dx, cells[n, 1] + dy, cells[n, 2] + dz) & (size - 1)
                    m = heads[slot]
                    while free and m >= 0:
                        distance, cosine = 0.0, 0.0
                        for c in range(3):
                            distance += (position[n, c] - position[m, c]) ** 2
                            cosine += normal[n, c] * normal[m, c]
                        free = distance >= radius * radius or cosine <= FACING
                        m = after[m]
        if free:
            slot = _hash(cells[n, 0], cells[n, 1], cells[n, 2]) & (size - 1)
            after[n], heads[slot], kept[n] = heads[slot], n, True


@njit(nogil=True, cache=True)
def _find(
    position, normal, right, up, their_position, their_normal, their_right, order, start, offsets,
    per_unit, index, displacement, turn, first, last,
):  # fmt: skip
    size = len(start) - 1
    width = REACH / per_unit
    place = np.empty(3)
    for n in range(first, last):
        for k in range(len(offsets)):
            for c in range(3):
                across = offsets[k, 0] * right[n, c] - offsets[k, 1] * up[n, c]
                place[c] = position[n, c] + across / per_unit
            # Cells are twice as wide as a neighbour may be far: it lies in one of eight.
            x = _floor(place[0] / (2 * width) - 0.5)
            y = _floor(place[1] / (2 * width) - 0.5)
            z = _floor(place[2] / (2 * width) - 0.5)
            best, nearest = -1, width * width
            for corner in range(8):
                slot = _hash(x + (corner & 1), y + (corner >> 1 & 1), z + (corner >> 2))
                slot &= size - 1
                for entry in range(start[slot], start[slot + 1]):
                    m = order[entry]
                    distance = (
                        (their_position[m, 0] - place[0]) ** 2
                        + (their_position[m, 1] - place[1]) ** 2
                        + (their_position[m, 2] - place[2]) ** 2
                    )
                    # Cells that share a slot offer a point twice: no harm.
                    if distance > nearest or (distance == nearest and m >= best):
                        continue
                    cosine = 0.0
                    for c in range(3):
                        cosine += normal[n, c] * their_normal[m, c]
                    if cosine > FACING:
                        best, nearest = m, distance
            if best < 0:
                continue
            index[n, k] = best
            a, b, across, along = 0.0, 0.0, 0.0, 0.0
            for c in range(3):
                step = their_position[best, c] - position[n, c]
                a += step * right[n, c]
                b -= step * up[n, c]
                across += their_right[best, c] * right[n, c]
                along -= their_right[best, c] * up[n, c]
            displacement[n, k, 0], displacement[n, k, 1] = a * per_unit, b * per_unit
            turn[n, k] = np.arctan2(along, across)
