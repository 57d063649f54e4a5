"""Vertex normals and tangents that do not see how a file splits its vertices."""

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sdslab.meshes import mesh_kernels


@dataclass(frozen=True, eq=False)
class TangentFrame:
    """Tangents in the order of the vertices.

    Attributes:
        tangents: [v, 4], unit xyz orthogonal to the normal, and the handedness w = ±1.
        torn: vertices that faces of both handednesses share; they have the majority's.
    """

    tangents: Tensor
    torn: int


@dataclass(frozen=True, eq=False)
class FaceFrames:
    """What normals and tangents of vertices are added up from.

    Attributes:
        normals: [f, 3] unit; zero where a face is a line or a point, at any scale.
        angles: [f, 3] at the corners, in radians; zero where a side has no length.
    """

    normals: Tensor
    angles: Tensor

    @classmethod
    def of(cls, positions: Tensor, faces: Tensor) -> "FaceFrames":
        """Measures faces [f, 3] of positions [v, 3]."""
        normals, angles = (torch.empty(len(faces), 3, dtype=torch.float64) for _ in range(2))
        mesh_kernels.face_frames(
            _array(positions), _array(faces, torch.int64), normals.numpy(), angles.numpy()
        )
        return cls(normals, angles)


def weld(*columns: Tensor) -> Tensor:
    """Numbers vertices so that those equal in all columns share a number.

    Args:
        columns: each [v, k].

    Returns:
        [v] int64, in 0 … number of different ones − 1, by first occurrence.
    """
    rows = torch.cat([c.to("cpu", torch.float64) for c in columns], dim=1).numpy()
    rows = np.ascontiguousarray(rows) + 0.0  # −0 becomes 0
    return torch.from_numpy(mesh_kernels.number_rows(rows.view(np.int64))[0])


def vertex_normals(
    positions: Tensor,
    faces: Tensor,
    frames: FaceFrames | None = None,
    place: Tensor | None = None,
) -> Tensor:
    """Angle-weighted normals, shared by all vertices at the same place.

    Args:
        positions: [v, 3] float64, at any finite scale.
        faces: [f, 3], counter-clockwise seen from outside.
        frames: of the faces, where they have been measured.
        place: [v] from `weld`, where it is known.

    Returns:
        [v, 3] unit, in the type of `positions`; +Z where no face gives a direction.

    Source: Thürmer and Wüthrich, "Computing vertex normals from polygonal facets", 1998.
    """
    frames = FaceFrames.of(positions, faces) if frames is None else frames
    place = weld(positions) if place is None else place
    sums = torch.zeros(len(positions), 3, dtype=torch.float64)
    mesh_kernels.add_normals(
        _array(faces, torch.int64), place.numpy(), frames.normals.numpy(), frames.angles.numpy(),
        sums.numpy(),
    )  # fmt: skip
    length = sums.norm(dim=-1, keepdim=True)
    up = sums.new_tensor([0.0, 0.0, 1.0])
    return torch.where(length > 1e-9, sums / length.clamp_min(1e-300), up)[place].to(positions)


def vertex_tangents(
    positions: Tensor,
    faces: Tensor,
    uv: Tensor,
    normals: Tensor,
    frames: FaceFrames | None = None,
    place: Tensor | None = None,
) -> TangentFrame:
    """Tangents along increasing u, as baking tools and glTF viewers compute them.

    Each corner contributes its face's ∂position/∂u, projected to the plane of the vertex normal,
    by the corner's angle. Corners add up where position, uv, normal and handedness are equal: seams
    and mirrored charts stay apart, however the file splits its vertices.

    Args:
        positions: [v, 3] float64.
        faces: [f, 3].
        uv: [v, 2].
        normals: [v, 3], unit.
        frames: of the faces, where they have been measured.
        place: [v] from `weld`, where it is known.

    Returns:
        Tangents in the type of `positions`. Where uv gives no direction: any that is orthogonal to
        the normal, with w = +1.

    Source: Mikkelsen, "Simulation of wrinkled surfaces revisited", 2008 (MikkTSpace).
    """
    frames = FaceFrames.of(positions, faces) if frames is None else frames
    place = weld(positions) if place is None else place
    alone = int(place.max()) + 1 == len(place)
    group = (place if alone else weld(place[:, None], uv, normals)).numpy()
    directions = _array(normals)
    sums, weights = np.zeros((len(positions), 2, 3)), np.zeros((len(positions), 2))
    mesh_kernels.add_tangents(
        _array(positions), _array(faces, torch.int64), _array(uv), directions, group,
        frames.normals.numpy(), frames.angles.numpy(), sums, weights,
    )  # fmt: skip
    # the majority is that of the vertex as the file has it: its corners only
    tangents = torch.empty(len(positions), 4, dtype=torch.float64)
    torn = mesh_kernels.settle_tangents(group, directions, sums, weights, tangents.numpy())
    return TangentFrame(tangents.to(positions), int(torn))


def _array(tensor: Tensor, dtype: torch.dtype = torch.float64) -> np.ndarray:
    return tensor.to("cpu", dtype).contiguous().numpy()
