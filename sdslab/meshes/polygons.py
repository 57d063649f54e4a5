"""Polygons into triangles."""

import numpy as np

from sdslab.meshes.mesh_file import MOST_FACES, Floats, Indices, MeshFileError

MOST_CORNERS = 2000  # of a polygon that is not convex: clipping ears takes n² steps


def triangulate(sizes: Indices, points: Floats) -> tuple[Indices, Indices]:
    """Cuts polygons into triangles: fans where they are convex, by ears where not.

    Args:
        sizes: [p] corners of each polygon; those with fewer than three are left out.
        points: [c, 3] positions of all corners, polygon after polygon.

    Returns:
        Triangles [t, 3] as indices of corners, in the order of the polygons, and the polygon [t]
        that each comes from.
    """
    if int(np.maximum(sizes - 2, 0).sum()) > MOST_FACES:
        raise MeshFileError(f"it has more than {MOST_FACES:,} triangles")
    starts = np.cumsum(sizes) - sizes
    triangles, polygons = [np.empty((0, 3), np.int64)], [np.empty(0, np.int64)]
    for size in np.unique(sizes[sizes >= 3]):
        polygon = np.flatnonzero(sizes == size)
        local = _triangles(points[starts[polygon, None] + np.arange(size)])
        triangles.append((starts[polygon, None, None] + local).reshape(-1, 3))
        polygons.append(np.repeat(polygon, size - 2))
    polygon = np.concatenate(polygons)
    order = np.argsort(polygon, kind="stable")
    return np.concatenate(triangles)[order], polygon[order]


def _triangles(points: Floats) -> Indices:
    """[p, n, 3] to the corners [p, n − 2, 3] of every polygon's triangles."""
    count, size, _ = points.shape
    first = np.zeros(count, np.int64)
    fan = np.arange(1, size - 1)
    if size == 3:
        return np.broadcast_to(np.arange(3), (count, 1, 3))
    with np.errstate(all="ignore"):  # huge coordinates: such polygons become fans
        centred = points - points[:, :1]
        centred = centred / np.abs(centred).max(axis=(1, 2), keepdims=True)
        following = np.roll(centred, -1, axis=1)
        normal = np.cross(centred, following).sum(1)
        edge = following - centred
        turn = (np.cross(np.roll(edge, 1, axis=1), edge) * normal[:, None]).sum(-1)
        concave = (turn < -1e-12 * (normal**2).sum(-1, keepdims=True)).any(1)
    if size == 4:
        # a quadrilateral has at most one reflex corner, and the fan around it is right
        first = np.where(concave, turn.argmin(1), 0)
    fans = (first[:, None, None] + np.stack([np.zeros_like(fan), fan, fan + 1], -1)) % size
    if size > 4:
        for polygon in np.flatnonzero(concave):
            fans[polygon] = _ears(centred[polygon], normal[polygon])
    return fans


def _ears(points: Floats, normal: Floats) -> Indices:
    """[n, 3] to [n − 2, 3]; a polygon that crosses itself ends as a fan of what is left."""
    if len(points) > MOST_CORNERS:
        raise MeshFileError(f"it has a polygon of {len(points):,} corners that is not convex")
    axis = int(np.abs(normal).argmax())
    plane = points[:, [(axis + 1) % 3, (axis + 2) % 3]] * [np.sign(normal[axis]), 1]
    left = list(range(len(points)))
    triangles = []
    while len(left) > 3:
        for k in range(len(left)):
            ear = (left[k - 1], left[k], left[(k + 1) % len(left)])
            if _is_ear(plane[list(ear)], plane[[i for i in left if i not in ear]]):
                break
        else:
            k = 1
            ear = (left[0], left[1], left[2])
        triangles.append(ear)
        del left[k]
    return np.array([*triangles, left])


def _is_ear(corners: Floats, others: Floats) -> bool:
    edges = np.roll(corners, -1, axis=0) - corners
    if edges[0, 0] * edges[1, 1] - edges[0, 1] * edges[1, 0] <= 0:
        return False
    # Where a bridge leads to a hole, another corner of the polygon lies at the same place.
    apart = (others[:, None] != corners).any(-1).all(1)
    offsets = others[apart, None] - corners
    sides = edges[:, 0] * offsets[..., 1] - edges[:, 1] * offsets[..., 0]
    return not (sides >= 0).all(1).any()
