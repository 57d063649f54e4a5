"""Which way the photograph's up points on a surface: a field of tangent directions."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sdslab.meshes.material import dilate_seams
from sdslab.meshes.mesh import Mesh
from sdslab.meshes.surface_frame import weld
from sdslab.rendering.cpu_backend import CpuBackend
from sdslab.rendering.render_backend import RenderBackend
from sdslab.rendering.renderer import Surface
from sdslab.rendering.texels import rasterize_texels

FIELD_SIZE = 256  # height and width of the map that pixels look the field up in
SOLVES = 12  # steps of inverse iteration
SHIFT = 1e-4  # keeps the connection Laplacian invertible where a field without bends exists
Y = (0.0, 1.0, 0.0)


@dataclass(frozen=True, eq=False)
class TangentField:
    """A direction along the surface, everywhere.

    Attributes:
        vertices: [v, 3] unit tangent vectors at the mesh's vertices.
        picture: [h, w, 3], the same as a map.
        backend: that looks it up.
    """

    vertices: Tensor
    picture: Tensor
    backend: RenderBackend

    @classmethod
    def of(
        cls, mesh: Mesh, orient: Literal["up", "flow"], backend: RenderBackend
    ) -> "TangentField":
        """The object's own up along the surface, or the field that bends least ("flow")."""
        normals = F.normalize(mesh.render_normals.double(), dim=1)
        vertices = (_up(normals) if orient == "up" else _smoothest(mesh, normals)).float()
        corners = vertices[mesh.faces.long()]
        size = (FIELD_SIZE, FIELD_SIZE)
        attributes = torch.cat((mesh.uv[mesh.faces.long()], corners), -1)
        cpu = CpuBackend()
        texels = rasterize_texels(mesh, size, cpu, attributes)
        picture = torch.zeros(FIELD_SIZE**2, 3)
        picture[texels.pixel] = texels.attributes[:, 2:]
        covered = torch.zeros(FIELD_SIZE**2, dtype=torch.bool)
        covered[texels.pixel] = True
        return cls(vertices, dilate_seams(picture.view(*size, 3), covered.view(size)), backend)

    def at(self, surface: Surface) -> Tensor:
        """Unit tangent vectors [n, 3] at the pixels of a surface; 0 where the field has none."""
        picture = self.picture.to(surface.uv)
        field = self.backend.sample_texture(picture, surface.uv, surface.uv_derivatives)
        along = field - (field * surface.normal).sum(1, keepdim=True) * surface.normal
        return F.normalize(along, dim=1)


def on_screen(vectors: Tensor, surface: Surface, world_to_camera: Tensor) -> Tensor:
    """World vectors [n, 3] at a surface's pixels as unit vectors (right, up), [n, 2]."""
    axes = world_to_camera.to(vectors)[surface.view, :2, :3]
    return F.normalize((axes @ vectors[..., None])[..., 0], dim=1)


def _up(normals: Tensor) -> Tensor:
    """+Y along the surface; where that has no direction, −Z, as `Cameras.look_at` has it."""
    up = normals.new_tensor(Y).expand_as(normals)
    along = up - (up * normals).sum(1, keepdim=True) * normals
    vertical = along.norm(dim=1, keepdim=True) < 1e-3
    return F.normalize(torch.where(vertical, normals.new_tensor([0.0, 0.0, -1.0]), along), dim=1)


def _smoothest(mesh: Mesh, normals: Tensor) -> Tensor:
    """The field that bends least over the whole surface, turned so that it mostly points up.

    The least eigenvector of the connection Laplacian: each vertex has a complex number in a frame
    of its own, and neighbours are compared after one frame is carried to the other.

    Source: Knöppel et al. 2013, "Globally optimal direction fields", with unit edge weights.
    """
    from scipy import sparse
    from scipy.sparse.csgraph import connected_components
    from scipy.sparse.linalg import splu

    place = weld(mesh.positions)
    count = int(place.max()) + 1
    # A welded vertex has the mean normal of those that lie there.
    normal = torch.zeros(count, 3, dtype=torch.double).index_add(0, place, normals)
    normal = F.normalize(normal, dim=1)
    up = _up(normal)
    right = torch.linalg.cross(up, normal)
    faces = place[mesh.faces.long()]
    edges = torch.cat((faces[:, :2], faces[:, 1:], faces[:, [2, 0]]))
    i, j = torch.cat((edges, edges.flip(1))).unique(dim=0).T
    kept = i != j
    i, j = i[kept], j[kept]
    # The frame of j is turned into the plane of i about the line where both planes meet.
    carried = _turned(right[j], normal[j], normal[i])
    angle = torch.atan2((carried * up[i]).sum(1), (carried * right[i]).sum(1)).numpy()
    rows, columns = i.numpy(), j.numpy()
    degree = np.bincount(rows, minlength=count)
    values = np.concatenate((-np.exp(1j * angle), degree + SHIFT))
    diagonal = np.arange(count)
    laplacian = sparse.csc_matrix(
        (values, (np.concatenate((rows, diagonal)), np.concatenate((columns, diagonal)))),
        shape=(count, count),
    )
    solver = splu(laplacian)
    piece = connected_components(abs(laplacian), directed=False)[1]  # each has a field of its own
    field = np.full(count, 1j)  # up
    for _ in range(SOLVES):
        field = solver.solve(field)
        field /= np.sqrt(np.bincount(piece, np.abs(field) ** 2))[piece]
    unit = field / np.maximum(np.abs(field), 1e-12)
    mean = np.bincount(piece, unit.real) + 1j * np.bincount(piece, unit.imag)
    mean = np.where(np.abs(mean) > 1e-9, mean, 1j)
    direction = torch.from_numpy(unit * (1j * np.abs(mean) / mean)[piece])
    vectors = direction.real[:, None] * right + direction.imag[:, None] * up
    return vectors[place]


def _turned(vectors: Tensor, from_normal: Tensor, to_normal: Tensor) -> Tensor:
    """Vectors [n, 3] under the least rotation that brings one unit normal to the other."""
    axis = torch.linalg.cross(from_normal, to_normal)
    cosine = (from_normal * to_normal).sum(1, keepdim=True)
    along = (axis * vectors).sum(1, keepdim=True) * axis / (1 + cosine).clamp_min(1e-6)
    return cosine * vectors + torch.linalg.cross(axis, vectors) + along
