"""How much of a texture the faces use, and how much of it more than once."""

import math
from dataclasses import dataclass

import numpy as np

from sdslab.kernels.compiled import njit
from sdslab.meshes.mesh_file import Floats

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
    """Measures how often faces [f, 3, 2] cover the texture, see `texel_counts`."""
    times = texel_counts(corner_uv, resolution)
    covered = int((times > 0).sum())
    return UvCoverage(covered / times.size, float((times > 1).sum()) / max(covered, 1))


def texel_counts(corner_uv: Floats, resolution: int = RESOLUTION) -> np.ndarray:
    """Counts the faces over every texel's centre; the texture repeats.

    Each face crosses each row of texels in one span, of which only the ends are noted; a running
    sum along the row then gives the counts. A centre on a shared edge belongs to one face.

    Args:
        corner_uv: [f, 3, 2], at most a few thousand in magnitude.
        resolution: texels along each side; halved while there would be too many spans.

    Returns:
        [resolution, resolution] int32.
    """
    heights = corner_uv[..., 1].max(1) - corner_uv[..., 1].min(1)
    while resolution > 16 and heights.sum() * resolution > MOST_SPANS:
        resolution //= 2
    counts = np.zeros((resolution, resolution + 1), np.int32)
    _add_spans(np.ascontiguousarray(corner_uv, np.float64), counts)
    return counts.cumsum(1, dtype=np.int32)[:, :resolution]


@njit(nogil=True, cache=True)
def _add_spans(corner_uv, counts):
    resolution = len(counts)
    ends = np.empty((3, 4))  # of each side, the lower one first
    for f in range(len(corner_uv)):
        bottom, top = math.inf, -math.inf
        for k in range(3):
            # texel centres at integers
            following = (k + 1) % 3
            x, y = corner_uv[f, k, 0] * resolution - 0.5, corner_uv[f, k, 1] * resolution - 0.5
            p = corner_uv[f, following, 0] * resolution - 0.5
            q = corner_uv[f, following, 1] * resolution - 0.5
            bottom, top = min(bottom, y), max(top, y)
            # the lower end first, so that both faces of a side find the very same crossing
            if y > q or (y == q and x > p):
                x, y, p, q = p, q, x, y
            ends[k, 0], ends[k, 1], ends[k, 2] = x, y, q
            ends[k, 3] = (p - x) / (q - y) if q > y else 0.0
        for row in range(math.ceil(bottom), math.ceil(top)):
            low, high = math.inf, -math.inf
            for k in range(3):
                if ends[k, 1] <= row < ends[k, 2]:
                    x = ends[k, 0] + (row - ends[k, 1]) * ends[k, 3]
                    low, high = min(low, x), max(high, x)
            if low <= high:
                line = counts[row % resolution]
                start, end = math.ceil(low), math.ceil(high)
                turns, width = (end - start) // resolution, (end - start) % resolution
                start %= resolution
                stop = start + width
                line[0] += turns
                line[start] += 1
                line[min(stop, resolution)] -= 1
                if stop > resolution:
                    line[0] += 1
                    line[stop - resolution] -= 1
