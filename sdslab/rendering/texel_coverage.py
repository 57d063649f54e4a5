"""Which texels belong to the surface, and what lies on them: the mesh rasterised in UV space."""

import itertools
from dataclasses import fields, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from sdslab.meshes.material import NORMAL, encode_normals
from sdslab.meshes.mesh import Mesh
from sdslab.rendering.render_backend import Fragments, RenderBackend


def rasterize_texels(
    mesh: Mesh, resolution: tuple[int, int], backend: RenderBackend, attributes: Tensor
) -> Fragments:
    """Interpolates per-corner attributes at the centres of the texels that a face covers.

    Faces that cross the border of [0, 1]² come in on the other side, as look-ups that wrap do.

    Args:
        mesh: its `uv` place the faces.
        resolution: (height, width) of the texture.
        backend: any; the CPU's is exact.
        attributes: [f, 3, k] float32 per face corner, k ≥ 2.

    Returns:
        One picture of texels; its rows run as the texture's, row 0 at v = 0. Where faces overlap,
        the first one counts.
    """
    height, width = resolution
    corner_uv = mesh.uv[mesh.faces.long()]  # [f, 3, 2]
    corner_uv = corner_uv - corner_uv.amin(1, keepdim=True).floor()
    free = torch.ones(height * width, dtype=torch.bool)
    pictures = []
    for column, row in itertools.product(*(range(int(n)) for n in corner_uv.amax((0, 1)).ceil())):
        # What reaches beyond 1 is drawn again, shifted back, by the faces that reach there.
        shift = corner_uv.new_tensor([column, row])
        reaching = (corner_uv.amax(1) > shift).all(1).nonzero()[:, 0]
        if not len(reaching):
            continue
        x, y = (2 * (corner_uv[reaching].flatten(0, 1) - shift) - 1).unbind(-1)
        # A picture's top is y = +1 and a texture's first row v = 0.
        clip = torch.stack((x, -y, torch.zeros_like(x), torch.ones_like(x)), -1)[None]
        faces = torch.arange(len(x), dtype=torch.int32).view(-1, 3)
        ids = backend.visibility(clip, faces, resolution) * free.view(1, height, width)
        free &= ids.view(-1) == 0
        seen = backend.resolve(clip, faces, ids.int(), attributes[reaching].flatten(0, 1))
        pictures.append(replace(seen, face=reaching[seen.face]))
    order = torch.cat([picture.pixel for picture in pictures]).argsort()  # each texel occurs once

    def joined(name: str) -> Tensor:
        return torch.cat([getattr(picture, name) for picture in pictures])[order]

    names = [field.name for field in fields(Fragments) if field.name != "shape"]
    return Fragments((1, height, width), **{name: joined(name) for name in names})


def covered_texels(mesh: Mesh, resolution: tuple[int, int], backend: RenderBackend) -> Tensor:
    """[height, width] bool: texels whose centre lies in a face."""
    fragments = rasterize_texels(mesh, resolution, backend, mesh.uv[mesh.faces.long()])
    covered = torch.zeros(resolution, dtype=torch.bool)
    covered.view(-1)[fragments.pixel] = True
    return covered


def transfer_maps(
    maps: Tensor,
    corner_uv: Tensor,
    mesh: Mesh,
    resolution: tuple[int, int],
    backend: RenderBackend,
) -> Tensor:
    """Moves a material from other texture coordinates of the same faces to the mesh's own.

    Args:
        maps: [h, w, 8] in the other coordinates.
        corner_uv: [f, 3, 2], the other coordinates.
        mesh: whose `uv` the result is for.
        resolution: of the result.
        backend: any.

    Returns:
        [*resolution, 8]; texels that no face covers repeat the mean of those that one does.
    """
    fragments = rasterize_texels(mesh, resolution, backend, corner_uv)
    derivatives = fragments.uv_derivatives
    values = backend.sample_texture(maps, fragments.attributes[:, :2], derivatives)
    values[:, NORMAL] = _turn_normals(values[:, NORMAL], derivatives)
    result = values.mean(0).expand(resolution[0] * resolution[1], -1).clone()
    result[fragments.pixel] = values
    return result.view(*resolution, -1)


def _turn_normals(normal: Tensor, derivatives: Tensor) -> Tensor:
    """Carries encoded tangent-space normals from one unwrapping's tangent frame to another's.

    Args:
        normal: [n, 3] in the frame of the coordinates (u, v).
        derivatives: [n, 4] ∂u/∂X, ∂u/∂Y, ∂v/∂X, ∂v/∂Y along the new frame's own (X, Y). Exact where
            both unwrappings keep angles.
    """
    x, y, z = (2 * normal - 1).unbind(-1)
    # Columns of the inverse Jacobian: where u and v increase, seen in the new frame.
    u_x, u_y, v_x, v_y = derivatives.unbind(-1)
    orientation = (u_x * v_y - u_y * v_x).sign()[:, None]
    along_u = F.normalize(torch.stack((v_y, -v_x), -1) * orientation, dim=-1)
    along_v = F.normalize(torch.stack((-u_y, u_x), -1) * orientation, dim=-1)
    turned = x[:, None] * along_u + y[:, None] * along_v
    return encode_normals(torch.cat((turned, z[:, None]), -1))
