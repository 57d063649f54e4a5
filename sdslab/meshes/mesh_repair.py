"""Faces that cannot be drawn are dropped, and faces that disagree with their neighbours turned."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from sdslab.meshes.mesh_file import Floats, Indices
from sdslab.meshes.surface_frame import face_normals, weld


@dataclass(frozen=True, eq=False)
class RepairedFaces:
    """The outcome of `repair_faces`.

    Attributes:
        faces: [f, 3], those kept, wound alike within every connected piece.
        kept: [n] bool, which of the n given ones.
        closed: whether every edge has two faces and all faces can agree: an inside exists.
        notes: phrases on what was found.
    """

    faces: Indices
    kept: np.ndarray
    closed: bool
    notes: tuple[str, ...]


def repair_faces(positions: Floats, faces: Indices) -> RepairedFaces:
    """Drops degenerate faces and turns faces so that neighbours agree.

    Pieces without borders end with their faces outward by signed volume; others keep the winding of
    most of their area. Vertices at the same place count as one, and none is moved.

    Args:
        positions: [v, 3], within about [−1, 1] (only products of a few are taken).
        faces: [n, 3].
    """
    notes = []
    place = weld(torch.from_numpy(positions)).numpy()
    with_area = face_normals(torch.from_numpy(positions), torch.from_numpy(faces)).any(1).numpy()
    distinct = (place[faces] != place[np.roll(faces, 1, axis=1)]).all(1)
    kept = with_area & distinct
    faces = faces[kept]
    if not kept.all():
        notes.append(f"{_count((~kept).sum(), 'degenerate triangle')} dropped")
    if not len(faces):
        return RepairedFaces(faces, kept, False, tuple(notes))
    edges = _Edges(place[faces])
    turned, torn = _turned(positions, faces, edges)
    faces = np.where(turned[:, None], faces[:, ::-1], faces)
    if turned.any():
        notes.append(f"winding of {_count(turned.sum(), 'triangle')} turned")
    if edges.open:
        notes.append(f"open surface ({_count(edges.open, 'border edge')})")
    if edges.crowded:
        notes.append(f"{_count(edges.crowded, 'edge')} of more than two triangles")
    if torn:
        notes.append("one-sided surface")
    closed = not (edges.open or edges.crowded or torn)
    return RepairedFaces(faces, kept, closed, tuple(notes))


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


class _Edges:
    """Pairs of faces along the edges that exactly two faces share."""

    def __init__(self, faces: Indices) -> None:
        start, end = faces.reshape(-1), np.roll(faces, -1, axis=1).reshape(-1)
        key = np.minimum(start, end) * (faces.max(initial=0) + 1) + np.maximum(start, end)
        order = np.argsort(key, kind="stable")
        first = np.flatnonzero(np.diff(key[order], prepend=-1))
        counts = np.diff(first, append=len(key))
        self.open = int((counts == 1).sum())
        self.crowded = int((counts > 2).sum())
        pairs = first[counts == 2]
        left, right = order[pairs], order[pairs + 1]
        self.left, self.right = left // 3, right // 3
        self.agree = start[left] != start[right]
        bordering = order[np.repeat(counts != 2, counts)] // 3
        self.bordering = np.zeros(len(faces), bool)
        self.bordering[bordering] = True


def _turned(positions: Floats, faces: Indices, edges: _Edges) -> tuple[np.ndarray, bool]:
    """Which faces to turn, and whether there is a piece whose faces cannot agree."""
    # Every face stands twice in a graph, as it is and turned; an edge joins the two states that
    # agree. A piece can be wound consistently if its two copies do not hang together.
    count = len(faces)
    flip = np.where(edges.agree, 0, count)
    links_from = np.concatenate([edges.left, edges.left + count])
    links_to = np.concatenate([edges.right + flip, edges.right + count - flip])
    state = _components(links_from, links_to, 2 * count)
    one_sided = state[:count] == state[count:]
    piece = np.unique(np.minimum(state[:count], state[count:]), return_inverse=True)[1]
    turned = (state[:count] > state[count:]) & ~one_sided
    sign = np.where(turned, -1.0, 1.0)
    a, b, c = positions[faces].swapaxes(0, 1)
    cross = np.cross(b - a, c - a)
    area = np.linalg.norm(cross, axis=1)
    pieces = int(piece.max(initial=-1)) + 1
    borders = np.bincount(piece, edges.bordering, pieces) > 0
    total = np.bincount(piece, area, pieces)
    kept_winding = np.bincount(piece, sign * area, pieces)
    centre = np.stack([np.bincount(piece, area * (a + b + c)[:, k], pieces) for k in range(3)], 1)
    centre /= np.maximum(3 * total, 1e-300)[:, None]
    volume = np.bincount(piece, sign * ((a - centre[piece]) * cross).sum(1), pieces) / 6
    solid = ~borders & (np.abs(volume) > 1e-6 * total**1.5)
    invert = np.where(solid, volume < 0, kept_winding < 0)
    return (turned ^ invert[piece]) & ~one_sided, bool(one_sided.any())


def _components(links_from: Indices, links_to: Indices, count: int) -> Indices:
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    graph: Any = coo_array((np.ones(len(links_from)), (links_from, links_to)), (count, count))
    return connected_components(graph, directed=False)[1].astype(np.int64)
