"""Takes out of a texture what is finer than the pictures that it was made from."""

import torch
from torch import Tensor

from sdslab.meshes.mesh import Mesh
from sdslab.rendering.cpu_backend import CpuBackend
from sdslab.rendering.texel_coverage import rasterize_texels


def band_limit(maps: Tensor, mesh: Mesh, pixels_per_unit: float, *, whole: bool = False) -> Tensor:
    """Blends the texels that one pixel of a picture covered: it told them nothing apart.

    The gradient of such texels comes from a coarser mip level, in blocks. They take what a look-up
    of that level shows at their place.

    Args:
        maps: [h, w, c] on the CPU, sides powers of two.
        mesh: whose texture it is.
        pixels_per_unit: of the pictures, looking straight at the surface.
        whole: take the finer of the two levels between which the pictures' own lies, which keeps
            the texture as sharp as it was made.

    Returns:
        A new [h, w, c]; texels that a pixel or more show stay as they are.
    """
    cpu = CpuBackend()
    size = (maps.shape[0], maps.shape[1])
    texels = rasterize_texels(mesh, size, cpu, mesh.uv[mesh.faces.long()])
    pitch = (uv_per_unit(mesh) / pixels_per_unit)[texels.face]  # of a pixel, in texture coordinates
    side = float(max(size))
    if whole:
        pitch = torch.exp2((pitch * side).clamp_min(1).log2().floor()) / side
    zero = torch.zeros_like(pitch)
    derivatives = torch.stack((pitch, zero, zero, pitch), 1).float()
    result = maps.clone()
    flat = result.view(-1, maps.shape[2])
    flat[texels.pixel] = cpu.sample_texture(maps, texels.attributes.contiguous(), derivatives)
    return result


def uv_per_unit(mesh: Mesh) -> Tensor:
    """[f] float64, how far a unit along the surface runs in the texture, by each face's areas."""
    corners = mesh.render_positions[mesh.faces.long()].double()
    cross = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
    uv = mesh.uv[mesh.faces.long()].double()
    (ax, ay), (bx, by) = (uv[:, 1] - uv[:, 0]).unbind(1), (uv[:, 2] - uv[:, 0]).unbind(1)
    return ((ax * by - ay * bx).abs() / cross.norm(dim=1).clamp_min(1e-12)).sqrt()
