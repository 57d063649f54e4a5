"""Faces, and normals of the file, that cannot be drawn as they are: dropped, turned or computed."""

from dataclasses import dataclass

import numpy as np
import torch

from sdslab.meshes import mesh_kernels
from sdslab.meshes.mesh_file import Floats, Indices
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
        notes.append(f"{_count((~kept).sum(), 'degenerate triangle')} dropped")
        faces = faces[kept]
    pieces = _Pieces.of(place[faces])
    torn = pieces.torn
    turned = (pieces.against ^ pieces.inside_out(positions, faces)) & ~torn
    if turned.any():
        notes.append(f"winding of {_count(turned.sum(), 'triangle')} turned")
        faces = np.where(turned[:, None], faces[:, ::-1], faces)
    if turned.any() or not kept.all():
        frames = FaceFrames.of(points, torch.from_numpy(faces))
    if pieces.open:
        notes.append(f"open surface ({_count(pieces.open, 'border edge')})")
    if pieces.crowded:
        notes.append(f"{_count(pieces.crowded, 'edge')} of more than two triangles")
    if torn.any():
        notes.append("one-sided surface")
    closed = not (pieces.open or pieces.crowded or torn.any())
    return RepairedFaces(faces, kept, turned, pieces.piece, place, frames, closed, tuple(notes))


def _count(number: int, thing: str) -> str:
    return f"{number:,} {thing}{'' if number == 1 else 's'}"


@dataclass(frozen=True, eq=False)
class _Pieces:
    """Faces [f] that hang together along edges of exactly two.

    Attributes:
        piece: the lowest face of each face's piece.
        against: whether it is wound against that one.
        torn: whether its piece cannot be wound alike.
        bordering: whether it lies at an edge of another number of faces.
        open: edges of one face.
        crowded: edges of more than two.
    """

    piece: Indices
    against: np.ndarray
    torn: np.ndarray
    bordering: np.ndarray
    open: int
    crowded: int

    @classmethod
    def of(cls, faces: Indices) -> "_Pieces":
        following = faces[:, [1, 2, 0]]
        keys = np.minimum(faces, following)
        keys *= faces.max(initial=0) + 1
        keys += np.maximum(faces, following, out=following)
        edge, count = mesh_kernels.number_rows(keys.reshape(-1, 1))
        uses = np.bincount(edge, minlength=count)
        first = np.empty(count, np.int64)
        first[edge] = np.arange(len(edge))
        piece = np.arange(len(faces))
        against, torn = np.zeros(len(faces), bool), np.zeros(len(faces), bool)
        mesh_kernels.join_faces(faces, edge, uses, first, piece, against, torn)
        bordering = (uses != 2)[edge].reshape(-1, 3).any(1)
        return cls(
            piece, against, torn[piece], bordering, int((uses == 1).sum()), int((uses > 2).sum())
        )  # fmt: skip

    def inside_out(self, positions: Floats, faces: Indices) -> np.ndarray:
        """Which faces lie in a piece that is to be turned over once it is wound alike."""
        area, wound, volume = (np.zeros(len(faces)) for _ in range(3))
        centre, border = np.zeros((len(faces), 3)), np.zeros(len(faces), bool)
        inverted = self.against & ~self.torn
        mesh_kernels.measure_pieces(
            positions, faces, self.piece, inverted, area, wound, centre, volume
        )
        border[self.piece[self.bordering]] = True
        solid = ~border & (np.abs(volume) > 6e-6 * area**1.5)
        return np.where(solid, volume < 0, wound < 0)[self.piece]


LEAST_AGREEMENT = 0.6  # of corners whose normal points to the face's front; of random ones, a half
FLAT = 1e-6  # 1 − cosine: a dense smooth mesh differs by more, four written digits by less
_KEPT, _TURNED, _COMPUTED = range(3)


@dataclass(frozen=True, eq=False)
class SettledNormals:
    """Normals that fit the faces.

    Attributes:
        source: [n], non-decreasing: the given vertex that each comes from. A vertex is split where
            its normal fits some of its faces only.
        faces: [f, 3].
        normals: [n, 3], unit.
        notes: phrases on what was found.
    """

    source: Indices
    faces: Indices
    normals: Floats
    notes: tuple[str, ...] = ()


def settle_normals(
    normals: Floats | None, positions: Floats, repaired: RepairedFaces
) -> SettledNormals:
    """Brings normals to unit length, turns those of turned faces, and computes what does not fit.

    Faces that were turned have their normals turned too where, in their connected piece, most of
    those belong to the winding that the file had.

    Args:
        normals: [v, 3] of any length, NaN or 0 where there is none; or None.
        positions: [v, 3].
        repaired: the faces.
    """
    faces, same = repaired.faces, np.arange(len(positions))
    points, place = torch.from_numpy(positions), torch.from_numpy(repaired.place)

    def computed() -> Floats:
        return vertex_normals(points, torch.from_numpy(faces), repaired.frames, place).numpy()

    if normals is None:
        return SettledNormals(same, faces, computed())
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
        share = 1 - fits.mean()
        note = f"normals computed: {share:.0%} of the file's do not fit"
        return SettledNormals(same, faces, computed(), (note,))
    notes = []
    if turned.any():
        notes.append(f"normals of {turned.sum():,} triangles turned with them")
    if along.min() > 1 - FLAT:
        notes.append("flat-shaded: the file's normals are those of its faces")
    if fits.all() and not turned.any():
        unit[~sane] = (0, 0, 1)  # of no face
        return SettledNormals(same, faces, unit, tuple(notes))
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
    return SettledNormals(source, number[key], settled, tuple(notes))


def _belong_to_old_winding(along: Floats, repaired: RepairedFaces) -> np.ndarray:
    """Which turned faces [f] lie in a piece where most normals of such faces point to the back."""
    turned, piece = repaired.turned, repaired.piece
    if not turned.any():
        return turned
    votes = np.sign(along[turned]).sum(1)
    return turned & (np.bincount(piece[turned], votes, len(piece)) < 0)[piece]
