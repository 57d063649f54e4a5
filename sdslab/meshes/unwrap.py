"""Whether texture coordinates can carry a texture of their own, and new ones where they cannot."""

import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch

from sdslab.errors import UserError
from sdslab.files.disk_cache import cached_tensors, content_hash
from sdslab.kernels.compiled import njit
from sdslab.meshes import mesh_kernels, xatlas_process
from sdslab.meshes.mesh_file import Floats, Indices

MOST_OVERLAP = 0.05  # of the covered texels
MOST_DEGENERATE = 0.01  # of the surface
LEAST_FILL = 0.01  # of the texture
FARTHEST = 1000.0  # |u| or |v|: float32 still resolves a sixteenth of a texel of 1024
LARGEST_KEPT_SPAN = 32  # of one face, where that is asked for
LARGEST_SPAN = 8  # of one face, in repeats of the texture; a wider one overlaps itself or is thin
MOST_BOXES = 1000.0  # areas of the texture, by the faces' bounding boxes, which are searched
MOST_REPEATS = 16.0  # areas of the texture
MOST_CROSSED = 100_000.0  # lengths of the texture's side, by slivers without area
VERSION = 1  # of the settings below and of xatlas_process; part of the cache's key


@dataclass(frozen=True)
class UvReport:
    """What is to be said about texture coordinates.

    Attributes:
        problem: why they cannot be used, as a phrase, or None.
        overlap: share of the covered texels that more than one face covers.
        fill: share of the texture that is covered.
        degenerate: share of the surface whose faces have no area in the texture.
        keepable: whether they can carry a texture in spite of the problem, if one is wanted that
            faces share or that few texels make up.
    """

    problem: str | None
    overlap: float = 0.0
    fill: float = 0.0
    degenerate: float = 0.0
    keepable: bool = True


@dataclass(frozen=True, eq=False)
class Unwrapped:
    """New texture coordinates.

    Attributes:
        source_vertex: [n] int64, non-decreasing: the vertex that each new one comes from.
        faces: [f, 3], the same faces in the same order.
        uv: [n, 2] in [0, 1].
        charts: pieces that the surface was cut into.
        fill: share of the texture that is covered.
    """

    source_vertex: Indices
    faces: Indices
    uv: Floats
    charts: int
    fill: float


def inspect_uv(positions: Floats, faces: Indices, uv: Floats | None) -> UvReport:
    """Judges texture coordinates.

    Args:
        positions: [v, 3], normalised.
        faces: [f, 3].
        uv: [v, 2], NaN where there is none.
    """
    if uv is None:
        return UvReport("no texture coordinates", keepable=False)
    present = np.asarray(np.isfinite(uv).all(1))
    if not present.all() and not present[faces].all():
        missing = np.mean(~present[faces].all(1))
        problem = f"no texture coordinates on {missing:.1%} of the triangles"
        return UvReport(problem, keepable=False)
    coordinates = np.ascontiguousarray(uv, np.float64)
    sizes = mesh_kernels.measure_uv(np.ascontiguousarray(positions), faces, coordinates)
    farthest, areas, lengths, boxes, widest, surface, flat = sizes
    if farthest > FARTHEST:
        return UvReport(f"texture coordinates up to {farthest:.3g}", keepable=False)
    # once over is 1; far beyond, counting texels would take long and say nothing new
    crossed = lengths / MOST_CROSSED
    keepable = max(crossed / MOST_REPEATS, boxes / MOST_BOXES, widest / LARGEST_KEPT_SPAN) <= 1
    if max(areas, crossed) > MOST_REPEATS:
        repeats = f"the faces repeat the texture {max(areas, crossed):,.0f} times"
        return UvReport(repeats, overlap=1.0, keepable=keepable)
    if widest > LARGEST_SPAN:
        problem = f"a face runs over the texture {widest:,.0f} times"
        return UvReport(problem, overlap=1.0, keepable=keepable)
    if boxes > MOST_BOXES:
        problem = f"thin faces cross the texture over {boxes:,.0f} times its area"
        return UvReport(problem, keepable=False)
    degenerate = flat / max(surface, 1e-300)
    coverage = uv_coverage(coordinates[faces])
    problem = None
    if degenerate > MOST_DEGENERATE:
        problem = f"{degenerate:.0%} of the surface has no area in the texture"
    elif coverage.fill < LEAST_FILL:
        problem = f"the faces use {coverage.fill:.1%} of the texture"
    elif coverage.overlap > MOST_OVERLAP:
        problem = f"faces overlap on {coverage.overlap:.0%} of the covered texture"
    return UvReport(problem, coverage.overlap, coverage.fill, degenerate)


def unwrap(
    positions: Floats, faces: Indices, progress: Callable[[float], None] | None = None
) -> Unwrapped:
    """Cuts the surface into charts without overlap, by xatlas; kept on disk between runs.

    Args:
        positions: [v, 3], within [−1, 1].
        faces: [f, 3], none degenerate.
        progress: called with a share in [0, 1] some times a second, from this thread. xatlas tells
            nothing, so the share is 1 − exp(−t/τ) with τ the time that a mesh of this size usually
            takes.

    Raises:
        UserError: xatlas fails on the mesh.
    """
    vertices = torch.from_numpy(positions.astype(np.float32))
    corners = torch.from_numpy(faces.astype(np.int64))
    tensors = cached_tensors(
        "unwrap",
        content_hash(VERSION, vertices, corners),
        lambda: _run_xatlas(vertices.numpy(), faces, progress),
    )
    source, new_faces, uv, charts = (
        tensors[name].numpy() for name in ("source", "faces", "uv", "charts")
    )
    if progress is not None:
        progress(1.0)
    # vertices of no face are kept; then the order is the one given, each followed by its copies
    unused = np.setdiff1d(np.arange(len(positions)), source)
    source = np.concatenate([source, unused])
    uv = np.concatenate([uv, np.zeros((len(unused), 2))])
    order = np.argsort(source, kind="stable")
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    new_faces, uv = rank[new_faces], uv[order]
    return Unwrapped(
        source[order], new_faces, uv, int(charts[0]), uv_coverage(uv[new_faces]).fill
    )  # fmt: skip


def _run_xatlas(
    positions: np.ndarray, faces: Indices, progress: Callable[[float], None] | None
) -> dict[str, torch.Tensor]:
    usual_s = 0.5 + len(faces) * 1e-4
    started = time.monotonic()
    command = [sys.executable, "-m", xatlas_process.__name__]
    with tempfile.TemporaryFile() as request:
        request.write(xatlas_process.pack_arrays(positions, faces.astype(np.uint32)))
        request.seek(0)
        process = subprocess.Popen(
            command, stdin=request, stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        try:
            while True:
                try:
                    answer, complaints = process.communicate(timeout=0.1)
                    break
                except subprocess.TimeoutExpired:
                    if progress is not None:
                        progress(1 - math.exp((started - time.monotonic()) / usual_s))
        finally:
            process.kill()
            process.communicate()
    if process.returncode:
        last = complaints.decode("utf-8", "replace").strip().splitlines()[-1:]
        raise _cannot_unwrap("".join(last) or f"xatlas ended with code {process.returncode}")
    source, new_faces, uv, charts = xatlas_process.unpack_arrays(answer, 4)
    if new_faces.shape != faces.shape or not np.array_equal(source[new_faces], faces):
        raise _cannot_unwrap("xatlas changed the faces")
    arrays = {"source": source, "faces": new_faces, "uv": uv.clip(0, 1), "charts": charts}
    return {name: torch.from_numpy(np.ascontiguousarray(a)) for name, a in arrays.items()}


def _cannot_unwrap(reason: str) -> UserError:
    return UserError(
        f"mesh must be one that can be unwrapped, got {reason}; unwrap it in a modelling program"
    )


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
