"""Which of a file's axes points up, and whether the shape says that it is another than +Y."""

from typing import Literal

import torch
from torch import Tensor

Up = Literal["x", "-x", "y", "-y", "z", "-z"]
_HALF = 0.5**0.5
# The least rotations that bring an axis to +Y, as quaternions (x, y, z, w).
QUATERNIONS: dict[Up, tuple[float, float, float, float]] = {
    "x": (0.0, 0.0, _HALF, _HALF),
    "-x": (0.0, 0.0, -_HALF, _HALF),
    "y": (0.0, 0.0, 0.0, 1.0),
    "-y": (1.0, 0.0, 0.0, 0.0),
    "z": (-_HALF, 0.0, 0.0, _HALF),
    "-z": (_HALF, 0.0, 0.0, _HALF),
}
TOUCHING = 0.005  # of the largest extent: what lies so low touches the ground
LEAST_SUPPORT = 0.1  # of the footprint's box
CLEARLY_LESS = 0.25
FLAT = 0.01  # of the largest extent: a thinner sheet stands on nothing


def turned_up(vectors: Tensor, up: Up) -> Tensor:
    """Vectors [..., 3] from a file's axes to Y-up ones, exactly: components change places."""
    x, y, z = vectors.unbind(-1)
    columns = {
        "x": (-y, x, z), "-x": (y, -x, z), "y": (x, y, z),
        "-y": (x, -y, -z), "z": (x, z, -y), "-z": (x, -z, y),
    }  # fmt: skip
    return torch.stack(columns[up], -1)


def z_up_note(points: Tensor, is_stl: bool) -> str | None:
    """A phrase where a mesh seems to be meant with +Z up, or None.

    A shape that could stand on what is lowest along z, but not on what is lowest along y, probably
    does: a scan with its table's plane, a figure with its base. An STL file says nothing of its up,
    and nearly all are made for printers, whose up is +Z.

    Args:
        points: [v, 3] of vertices that faces use, in the file's axes.
        is_stl: whether they come from an STL file.
    """
    along_y, along_z = _support(points, 1), _support(points, 2)
    what = "if pictures show it lying, give --up z"
    if along_z > LEAST_SUPPORT and along_y < CLEARLY_LESS * along_z:
        return f"its shape stands along z rather than y; {what}"
    if is_stl and not (along_y > LEAST_SUPPORT and along_z < CLEARLY_LESS * along_y):
        return f"STL files mostly have z up, y is taken; {what}"
    return None


def _support(points: Tensor, axis: int) -> float:
    """Area of the convex hull of what touches the ground, as a share of the footprint's box.

    Zero where the middle of the shape does not lie above it: it would fall over.
    """
    from scipy.spatial import ConvexHull, QhullError

    low, high = points.amin(0), points.amax(0)
    extents = high - low
    touching = points[:, axis] <= low[axis] + TOUCHING * extents.max()
    plane = [k for k in range(3) if k != axis]
    if not extents.min() > FLAT * extents.max():
        return 0.0
    footprint = ((points - low) / extents)[:, plane]
    try:
        hull = ConvexHull(footprint[touching].numpy())
    except (QhullError, ValueError):  # a point or a line
        return 0.0
    middle = footprint.mean(0).numpy()
    stands = (hull.equations[:, :2] @ middle + hull.equations[:, 2] <= 0).all()
    return float(hull.volume) if stands else 0.0  # of a plane hull, its area
