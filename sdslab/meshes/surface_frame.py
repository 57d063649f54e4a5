"""Vertex normals and tangents that do not see how a file splits its vertices."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

DEGENERATE = 1e-12  # sine of the angle below which a triangle counts as a line


@dataclass(frozen=True, eq=False)
class TangentFrame:
    """Tangents in the order of the vertices.

    Attributes:
        tangents: [v, 4], unit xyz orthogonal to the normal, and the handedness w = ±1.
        torn: vertices that faces of both handednesses share; they have the majority's.
    """

    tangents: Tensor
    torn: int


def weld(*columns: Tensor) -> Tensor:
    """Numbers vertices so that those equal in all columns share a number.

    Args:
        columns: each [v, k].

    Returns:
        [v] int64, in 0 … number of different ones − 1.
    """
    rows = torch.cat([c.double() for c in columns], dim=1).cpu().numpy() + 0.0  # −0 becomes 0
    keys = np.ascontiguousarray(rows).view(np.dtype((np.void, 8 * rows.shape[1]))).reshape(-1)
    return torch.from_numpy(np.unique(keys, return_inverse=True)[1].reshape(-1).astype(np.int64))


def face_normals(positions: Tensor, faces: Tensor) -> Tensor:
    """[f, 3] unit normals of the faces; zero where a face is a line or a point, at any scale."""
    a, b, c = positions[faces.long()].unbind(1)
    sides = torch.stack([b - a, c - b, a - c], dim=1)  # [f, side, 3]
    largest = sides.abs().amax((1, 2), keepdim=True)
    sides = sides / torch.where(largest > 0, largest, 1)
    cross = torch.linalg.cross(sides[:, 0], sides[:, 1])
    lengths, _ = sides.norm(dim=-1).sort(dim=1)
    area = cross.norm(dim=-1)
    valid = area > DEGENERATE * lengths[:, 1] * lengths[:, 2]
    return torch.where(valid[:, None], cross / area.clamp_min(1e-300)[:, None], 0)


def corner_angles(positions: Tensor, faces: Tensor) -> Tensor:
    """[f, 3] angles at the corners, in radians; zero where a side has no length."""
    corners = positions[faces.long()]
    to_next = _unit(corners.roll(-1, 1) - corners)
    to_previous = _unit(corners.roll(1, 1) - corners)
    # accurate for flat and for sharp angles alike (Kahan)
    angles = 2 * torch.atan2(
        (to_next - to_previous).norm(dim=-1), (to_next + to_previous).norm(dim=-1)
    )
    present = (to_next.abs().sum(-1) > 0) & (to_previous.abs().sum(-1) > 0)
    return torch.where(present, angles, 0)


def vertex_normals(positions: Tensor, faces: Tensor) -> Tensor:
    """Angle-weighted normals, shared by all vertices at the same place.

    Args:
        positions: [v, 3] float64, at any finite scale.
        faces: [f, 3], counter-clockwise seen from outside.

    Returns:
        [v, 3] unit, in the type of `positions`; +Z where no face gives a direction.

    Source: Thürmer and Wüthrich, "Computing vertex normals from polygonal facets", 1998.
    """
    group = weld(positions)
    angles = corner_angles(positions, faces)
    weighted = angles[..., None] * face_normals(positions, faces)[:, None]
    sums = positions.new_zeros(len(positions), 3)
    sums.index_add_(0, group[faces.long()].reshape(-1), weighted.reshape(-1, 3))
    length = sums.norm(dim=-1, keepdim=True)
    up = positions.new_tensor([0.0, 0.0, 1.0])
    return torch.where(length > 1e-9, sums / length.clamp_min(1e-300), up)[group]


def vertex_tangents(positions: Tensor, faces: Tensor, uv: Tensor, normals: Tensor) -> TangentFrame:
    """Tangents along increasing u, as baking tools and glTF viewers compute them.

    Each corner contributes its face's ∂position/∂u, projected to the plane of the vertex normal,
    by the corner's angle. Corners add up where position, uv, normal and handedness are equal: seams
    and mirrored charts stay apart, however the file splits its vertices.

    Args:
        positions: [v, 3] float64.
        faces: [f, 3].
        uv: [v, 2].
        normals: [v, 3], unit.

    Returns:
        Tangents in the type of `positions`. Where uv gives no direction: any that is orthogonal to
        the normal, with w = +1.

    Source: Mikkelsen, "Simulation of wrinkled surfaces revisited", 2008 (MikkTSpace).
    """
    faces = faces.long()
    uv, normals = uv.to(positions), normals.to(positions)
    group = weld(positions, uv, normals)
    along_u, handedness = _uv_directions(positions, faces, uv)
    corner_normals = normals[faces]
    projected = _project(along_u[:, None], corner_normals)
    weights = corner_angles(positions, faces) * (handedness != 0)[:, None]
    # slot 2g is for right-handed corners of welded vertex g, 2g + 1 for left-handed ones
    slot = 2 * group[faces] + (handedness < 0)[:, None]
    sums = positions.new_zeros(2 * len(positions), 3)
    sums.index_add_(0, slot.reshape(-1), (weights[..., None] * projected).reshape(-1, 3))
    # the majority is that of the vertex as the file has it: its corners only
    own = positions.new_zeros(2 * len(positions))
    own_slot = 2 * faces + (handedness < 0)[:, None]
    own.index_add_(0, own_slot.reshape(-1), weights.reshape(-1))
    right, left = own.view(-1, 2).unbind(1)
    mirrored = left > right
    chosen = _project(sums[2 * group + mirrored.long()], normals)
    given = chosen.abs().sum(-1, keepdim=True) > 0
    tangents = torch.where(given, chosen, _any_orthogonal(normals))
    w = torch.where(mirrored & given[:, 0], -1.0, 1.0).to(positions)
    torn = int(((right > 1e-9) & (left > 1e-9)).sum())
    return TangentFrame(torch.cat([tangents, w[:, None]], dim=1), torn)


def _uv_directions(positions: Tensor, faces: Tensor, uv: Tensor) -> tuple[Tensor, Tensor]:
    """Unit ∂position/∂u [f, 3] and the sign of the uv area [f]; zeros where degenerate."""
    a, b, c = uv[faces].unbind(1)
    (du1, dv1), (du2, dv2) = (b - a).unbind(1), (c - a).unbind(1)
    determinant = du1 * dv2 - dv1 * du2
    scale = torch.stack([b - a, c - b, a - c], 1).square().sum(-1).amax(1)
    valid = determinant.abs() > 1e-10 * scale
    valid &= face_normals(positions, faces).abs().sum(-1) > 0
    handedness = torch.where(valid, determinant.sign(), 0)
    p, q, r = positions[faces].unbind(1)
    sides = torch.stack([q - p, r - p], dim=1)
    sides = sides / sides.abs().amax((1, 2), keepdim=True).clamp_min(1e-300)
    direction = handedness[:, None] * (dv2[:, None] * sides[:, 0] - dv1[:, None] * sides[:, 1])
    return _unit(direction), handedness


def _unit(vectors: Tensor) -> Tensor:
    """Zero stays zero; lengths from 1e-150 to 1e150 of the largest component are safe."""
    largest = vectors.abs().amax(-1, keepdim=True)
    scaled = vectors / torch.where(largest > 0, largest, 1)
    length = scaled.norm(dim=-1, keepdim=True)
    return scaled / torch.where(length > 0, length, 1)


def _project(vectors: Tensor, normals: Tensor) -> Tensor:
    """Unit parts orthogonal to the normals, or zero where there is next to none."""
    rest = vectors - (vectors * normals).sum(-1, keepdim=True) * normals
    kept = rest.norm(dim=-1, keepdim=True) > 1e-6 * vectors.norm(dim=-1, keepdim=True)
    return torch.where(kept, _unit(rest), 0)


def _any_orthogonal(normals: Tensor) -> Tensor:
    """The world axis least along the normal, made orthogonal to it."""
    axis = torch.nn.functional.one_hot(normals.abs().argmin(-1), 3).to(normals)
    return _unit(axis - (axis * normals).sum(-1, keepdim=True) * normals)
