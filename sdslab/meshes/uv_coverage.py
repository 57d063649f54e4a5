"""How much of a texture the faces use, and how much of it more than once."""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from sdslab.meshes.mesh_file import Floats, Indices

RESOLUTION = 1024
MOST_SPANS = 30_000_000  # rows crossed by faces, all together; a coarser grid keeps below


@dataclass(frozen=True)
class UvCoverage:
    """Shares of a grid of sample points in the texture.

    Attributes:
        fill: of the texture, covered by some face.
        overlap: of what is covered, covered by more than one face.
    """

    fill: float
    overlap: float


def uv_coverage(corner_uv: Floats, resolution: int = RESOLUTION) -> UvCoverage:
    """Counts the faces over every texel's centre; the texture repeats.

    Each face crosses each row of texels in one span, of which only the ends are noted; a running
    sum along the row then gives the counts. A centre on a shared edge belongs to one face.

    Args:
        corner_uv: [f, 3, 2], at most a few thousand in magnitude.
        resolution: texels along each side; halved while there would be too many spans.
    """
    heights = np.ptp(corner_uv[..., 1], axis=1)
    while resolution > 16 and heights.sum() * resolution > MOST_SPANS:
        resolution //= 2
    points = corner_uv * resolution - 0.5  # texel centres at integers
    first = np.ceil(points[..., 1].min(1)).astype(np.int64)
    rows = np.ceil(points[..., 1].max(1)).astype(np.int64) - first
    counts = np.zeros((resolution, resolution + 1), np.int32)
    for chunk in _chunks(np.maximum(rows, 0), 4_000_000):
        _add_spans(counts, points[chunk], first[chunk], rows[chunk])
    times = counts.cumsum(1)[:, :resolution]
    covered = int((times > 0).sum())
    return UvCoverage(covered / resolution**2, float((times > 1).sum()) / max(covered, 1))


def _chunks(rows: Indices, limit: int) -> list[slice]:
    ends = np.flatnonzero(np.diff(np.cumsum(rows) // limit)) + 1
    edges = [0, *ends.tolist(), len(rows)]
    return [slice(a, b) for a, b in pairwise(edges)]


def _add_spans(counts: np.ndarray, points: Floats, first: Indices, rows: Indices) -> None:
    resolution = len(counts)
    face = np.repeat(np.arange(len(rows)), rows)
    y = first[face] + np.arange(len(face)) - np.repeat(np.cumsum(rows) - rows, rows)
    low = np.full(len(face), np.inf)
    high = np.full(len(face), -np.inf)
    for k in range(3):
        # the lower end first, so that both faces of an edge find the very same crossing
        a, b = points[:, k], points[:, (k + 1) % 3]
        swap = ((a[:, 1] > b[:, 1]) | ((a[:, 1] == b[:, 1]) & (a[:, 0] > b[:, 0])))[:, None]
        a, b = np.where(swap, b, a), np.where(swap, a, b)
        slope = (b[:, 0] - a[:, 0]) / np.where(b[:, 1] > a[:, 1], b[:, 1] - a[:, 1], 1)
        crosses = (a[face, 1] <= y) & (y < b[face, 1])
        x = a[face, 0] + (y - a[face, 1]) * slope[face]
        low = np.where(crosses, np.minimum(low, x), low)
        high = np.where(crosses, np.maximum(high, x), high)
    seen = low <= high
    row = y[seen] % resolution
    start, end = (np.ceil(edge[seen]).astype(np.int64) for edge in (low, high))
    turns, width = np.divmod(end - start, resolution)
    start %= resolution
    stop = start + width
    wraps = stop > resolution
    np.add.at(counts, (row, start), 1)
    np.add.at(counts, (row, np.minimum(stop, resolution)), -1)
    np.add.at(counts, (row[wraps], np.zeros(1, np.int64)), 1)
    np.add.at(counts, (row[wraps], stop[wraps] - resolution), -1)
    np.add.at(counts, (row, np.zeros(1, np.int64)), turns.astype(np.int32))
