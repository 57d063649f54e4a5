"""Faces, and normals of the file, that cannot be drawn as they are: dropped, turned or computed."""

from dataclasses import dataclass

import numpy as np
import torch

from sdslab.meshes import mesh_kernels
from sdslab.meshes.mesh_file import Floats, Indices, counted
from sdslab.meshes.surface_frame import FaceFrames, vertex_normals, weld


@dataclass(frozen=True, eq=False)
class RepairedFaces:
    """The outcome of `repair_faces`.

    Attributes:
        faces: [f, 3], those kept, wound alike within every connected piece.
        kept: [n] bool, which of the n given ones.
        turned: [f] bool, which have their corners in reverse order.
        piece: [f], its connected piece, by a face of it.
        place: [v], equal for vertices at the same place.
        frames: of the faces.
        closed: whether every edge has two faces and all faces can agree: an inside exists.
        notes: phrases on what was found.
    """

    faces: Indices
    kept: np.ndarray
    turned: np.ndarray
    piece: Indices
    place: Indices
    frames: FaceFrames
    closed: bool
    notes: tuple[str, ...]


def repair_faces(positions: Floats, faces: Indices) -> RepairedFaces:
    """Drops degenerate faces and turns faces so that neighbours agree.

    Pieces without borders end with their faces outward by signed volume; others keep the winding of
    most of their area. Vertices at the same place count as one, and none is moved.

    Args:
        positions: [v, 3], finite.
        faces: [n, 3].
    """
    notes = []
    points = torch.from_numpy(positions)
    place = weld(points).numpy()
    frames = FaceFrames.of(points, torch.from_numpy(faces))
    a, b, c = place[faces].T
    kept = frames.normals.any(1).numpy() & (a != b) & (b != c) & (c != a)
    if not kept.all():
        notes.append(f"{counted((~kept).sum(), 'degenerate triangle')} dropped")
        faces = faces[kept]
    edge, uses = _edges(place[faces])
    # Pieces of faces that hang together along edges of exactly two, named by their lowest face.
    piece = np.arange(len(faces))
    against, torn, bordered = np.zeros((3, len(faces)), bool)
    mesh_kernels.join_faces(place[faces], edge, uses, piece, against, torn)
    torn = torn[piece]
    (area, wound, volume), centre = np.zeros((3, len(faces))), np.zeros((len(faces), 3))
    mesh_kernels.measure_pieces(
        positions, faces, piece, against & ~torn, area, wound, centre, volume
    )
    bordered[piece[(uses != 2)[edge].any(1)]] = True
    solid = ~bordered & (np.abs(volume) > 6e-6 * area**1.5)
    inside_out = np.where(solid, volume < 0, wound < 0)[piece]
    turned = (against ^ inside_out) & ~torn
    if turned.any():
        notes.append(f"winding of {counted(turned.sum(), 'triangle')} turned")
        faces = np.where(turned[:, None], faces[:, ::-1], faces)
    if turned.any() or not kept.all():
        frames = FaceFrames.of(points, torch.from_numpy(faces))
    if (uses == 1).any():
        notes.append(f"open surface ({counted((uses == 1).sum(), 'border edge')})")
    if (uses > 2).any():
        notes.append(f"{counted((uses > 2).sum(), 'edge')} of more than two triangles")
    if torn.any():
        notes.append("one-sided surface")
    closed = bool((uses == 2).all() and not torn.any())
    return RepairedFaces(faces, kept, turned, piece, place, frames, closed, tuple(notes))


def _edges(faces: Indices) -> tuple[Indices, Indices]:
    """The number [f, 3] of the edge from each corner to the next, and each edge's faces."""
    following = faces[:, [1, 2, 0]]
    keys = np.minimum(faces, following)
    keys *= faces.max(initial=0) + 1
    keys += np.maximum(faces, following, out=following)
    edge, count = mesh_kernels.number_rows(keys.reshape(-1, 1))
    return edge.reshape(-1, 3), np.bincount(edge, minlength=count)


LEAST_AGREEMENT = 0.6  # of corners whose normal points to the face's front; of random ones, a half
FLAT = 1e-6  # 1 − cosine: a dense smooth mesh differs by more, four written digits by less
_KEPT, _TURNED, _COMPUTED = range(3)


def settle_normals(
    normals: Floats | None, positions: Floats, repaired: RepairedFaces, notes: list[str]
) -> tuple[Indices, Indices, Floats]:
    """Brings normals to unit length, turns those of turned faces, and computes what does not fit.

    Faces that were turned have their normals turned too where, in their connected piece, most of
    those belong to the winding that the file had.

    Args:
        normals: [v, 3] of any length, NaN or 0 where there is none; or None.
        positions: [v, 3].
        repaired: the faces.
        notes: gets phrases on what was found.

    Returns:
        The given vertex that each vertex comes from [n], non-decreasing: one is split where its
        normal fits some of its faces only; the faces [f, 3], and unit normals [n, 3].
    """
    faces, same = repaired.faces, np.arange(len(positions))
    points, place = torch.from_numpy(positions), torch.from_numpy(repaired.place)

    def computed() -> Floats:
        return vertex_normals(points, torch.from_numpy(faces), repaired.frames, place).numpy()

    if normals is None:
        return same, faces, computed()
    with np.errstate(all="ignore"):
        scaled = normals / np.abs(normals).max(1, keepdims=True)
        unit = scaled / np.linalg.norm(scaled, axis=1, keepdims=True)
    sane = np.isfinite(unit).all(1)
    unit[~sane] = 0
    front = repaired.frames.normals.numpy()
    along = np.stack([(unit[faces[:, k]] * front).sum(1) for k in range(3)], 1)  # [f, corner]
    turned = _belong_to_old_winding(along, repaired)
    along[turned] *= -1
    fits, has_one = along > 0, sane[faces]
    if (fits.sum() < LEAST_AGREEMENT * has_one.sum()) or not has_one.any():
        notes.append(f"normals computed: {1 - fits.mean():.0%} of the file's do not fit")
        return same, faces, computed()
    if turned.any():
        notes.append(f"normals of {turned.sum():,} triangles turned with them")
    if along.min() > 1 - FLAT:
        notes.append("flat-shaded: the file's normals are those of its faces")
    if fits.all() and not turned.any():
        unit[~sane] = (0, 0, 1)  # of no face
        return same, faces, unit
    if not fits.all():
        notes.append(
            f"normals computed at {1 - fits.mean():.2g} of the corners: the file's do not fit there"
        )
    kind = np.where(fits, np.where(turned, _TURNED, _KEPT)[:, None], _COMPUTED)
    key = 3 * faces + kind
    present = np.zeros((len(positions), 3), bool)
    present.reshape(-1)[key] = True
    present[~present.any(1), _COMPUTED] = True
    number = present.reshape(-1).cumsum() - 1
    source, kind = np.nonzero(present)
    settled = np.where((kind == _TURNED)[:, None], -unit[source], unit[source])
    settled = np.where((kind == _COMPUTED)[:, None], computed()[source], settled)
    return source, number[key], settled


def _belong_to_old_winding(along: Floats, repaired: RepairedFaces) -> np.ndarray:
    """Which turned faces [f] lie in a piece where most normals of such faces point to the back."""
    turned, piece = repaired.turned, repaired.piece
    if not turned.any():
        return turned
    votes = np.sign(along[turned]).sum(1)
    return turned & (np.bincount(piece[turned], votes, len(piece)) < 0)[piece]
