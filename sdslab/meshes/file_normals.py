"""Normals that a file brings: kept at the corners where they fit, computed at the others."""

from dataclasses import dataclass

import numpy as np
import torch

from sdslab.meshes.mesh_file import Floats, Indices
from sdslab.meshes.mesh_repair import RepairedFaces
from sdslab.meshes.surface_frame import vertex_normals

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
