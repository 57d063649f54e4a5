"""A material without any optimisation: a photograph projected along the axes, bumps guessed."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sdslab.exemplar_texturing.exemplars import ExemplarSet
from sdslab.meshes.material import (
    ALBEDO,
    METALLIC,
    NORMAL,
    ROUGHNESS,
    encode_normals,
)
from sdslab.meshes.mesh import Mesh
from sdslab.rendering.cpu_backend import CpuBackend
from sdslab.rendering.texels import rasterize_texels

LUMINANCE = (0.2126, 0.7152, 0.0722)
ROUGH = 0.8  # what most photographed surfaces are: stone, plaster, bark, cloth
GLOSS_OF_LIGHT = 0.25  # how much less rough the brightest places are taken to be
RELIEF = 0.6  # slope of the steepest places: normals lean by up to 30°


def estimate_material(maps: Tensor, covered: Tensor, feature: float) -> Tensor:
    """Fills in roughness, metallic and normal from the albedo.

    Bright is taken for high (dark joints and gaps lie deep) and for slightly worn; metal for none.

    Args:
        maps: [h, w, 8]; its albedo is used.
        covered: [h, w] bool, texels that a face covers; the others must hold dilated colours.
        feature: size in texels of what counts as relief; larger shapes are taken for paint.

    Returns:
        A new [h, w, 8].
    """
    result = maps.clone()
    weights = maps.new_tensor(LUMINANCE)
    luminance = (maps[..., ALBEDO] * weights).sum(-1)
    height = luminance - _blur(luminance, feature)
    scale = height[covered].std().clamp_min(1e-4) if covered.any() else height.new_tensor(1.0)
    relief = _blur(height / (3 * scale), 1.0).clamp(-1, 1)
    result[..., ROUGHNESS] = (ROUGH - GLOSS_OF_LIGHT * relief.clamp_min(0)).clamp(0, 1)
    result[..., METALLIC] = 0
    along_u = (relief.roll(-1, 1) - relief.roll(1, 1)) / 2
    along_v = (relief.roll(-1, 0) - relief.roll(1, 0)) / 2  # row 0 lies at v = 0
    steepest = torch.quantile(torch.hypot(along_u, along_v)[covered][:1_000_000], 0.99)
    slope = RELIEF / steepest.clamp_min(1e-4)
    normal = torch.stack((-slope * along_u, -slope * along_v, torch.ones_like(along_u)), -1)
    normal[..., :2] = normal[..., :2].clamp(-RELIEF, RELIEF)
    result[..., NORMAL] = encode_normals(normal)
    return result


def _blur(picture: Tensor, sigma: float) -> Tensor:
    """Gaussian, wrapping around as a texture does."""
    radius = max(1, min(round(3 * sigma), min(picture.shape) - 1))
    offsets = torch.arange(-radius, radius + 1, dtype=picture.dtype, device=picture.device)
    taps = torch.exp(-offsets.square() / (2 * sigma**2))
    taps = taps / taps.sum()
    padded = F.pad(picture[None, None], (radius,) * 4, mode="circular")
    rows = F.conv2d(padded, taps.view(1, 1, 1, -1))
    return F.conv2d(rows, taps.view(1, 1, -1, 1))[0, 0]


SHARPNESS = 8.0  # power of the normal's components: how narrow the blends are
# Axis that is projected along, and those that the photograph's right and up run along, seen from
# that axis's positive end.
PLANES = ((0, (0.0, 0.0, -1.0), (0.0, 1.0, 0.0)),
          (1, (1.0, 0.0, 0.0), (0.0, 0.0, -1.0)),
          (2, (1.0, 0.0, 0.0), (0.0, 1.0, 0.0)))  # fmt: skip


def triplanar(
    mesh: Mesh, maps: Tensor, exemplars: ExemplarSet, scale: float, texels_per_unit: float
) -> Tensor:
    """Lays the first photograph on the object from right and left, above and below, front and back.

    Args:
        mesh: whose texture it is.
        maps: [h, w, 8], the material where the photograph says nothing.
        exemplars: their first is used; beyond its borders it is mirrored.
        scale: world size of its height; the object's largest extent is 2.
        texels_per_unit: of the maps; the photograph is made no finer.

    Returns:
        A new [h, w, 8].
    """
    photo, guided = exemplars.exemplars[0], exemplars.guided
    height = min(photo.channels.shape[1], max(1, round(scale * texels_per_unit)))
    picture = (photo.at_height(height, 1)[0] + 1) / 2
    corners = mesh.faces.long()
    attributes = torch.cat(
        (mesh.uv[corners], mesh.render_positions[corners], mesh.render_normals[corners],
         mesh.render_tangents[corners]), -1
    )  # fmt: skip
    size = (maps.shape[0], maps.shape[1])
    texels = rasterize_texels(mesh, size, CpuBackend(), attributes)
    _, place, normal, tangent = texels.attributes.split((2, 3, 3, 4), 1)
    normal = F.normalize(normal, dim=1)
    weights = normal.abs() ** SHARPNESS
    weights = weights / weights.sum(1, keepdim=True)
    values = torch.zeros(len(place), len(guided))
    for axis, right, up in PLANES:
        side = torch.where(normal[:, axis] < 0, -1.0, 1.0)[:, None]
        across, along = normal.new_tensor(right) * side, normal.new_tensor(up).expand_as(normal)
        uv = torch.stack(((place * across).sum(1), (place * along).sum(1)), 1) / scale
        shown = _mirrored(picture, uv)
        if NORMAL.start in guided:
            first = guided.index(NORMAL.start)
            shown[:, first : first + 3] = _in_tangent_frame(
                2 * shown[:, first : first + 3] - 1, across, along, normal, tangent
            )
        values += weights[:, axis : axis + 1] * shown
    result = maps.clone()
    flat = result.view(-1, maps.shape[2])
    for channel, column in zip(guided, values.unbind(1), strict=True):
        flat[texels.pixel, channel] = column
    return result


def _mirrored(picture: Tensor, uv: Tensor) -> Tensor:
    """A picture [c, h, w] at places [n, 2] in units of its height, (0, 0) its middle; [n, c]."""
    height, width = picture.shape[1:]
    grid = torch.stack((2 * uv[:, 0] * height / width, -2 * uv[:, 1]), 1)[None, None]
    sampled = F.grid_sample(
        picture[None], grid.to(picture), padding_mode="reflection", align_corners=False
    )
    return sampled[0, :, 0].T.contiguous()


def _in_tangent_frame(
    bump: Tensor, right: Tensor, up: Tensor, normal: Tensor, tangent: Tensor
) -> Tensor:
    """Encoded normals [n, 3] of the mesh's frame, from those of a frame (right, up)."""
    side = tangent[:, 3:]
    bitangent = side * torch.linalg.cross(normal, tangent[:, :3])
    leaning = bump[:, :1] * right + bump[:, 1:2] * up
    x, y = (leaning * tangent[:, :3]).sum(1), (leaning * bitangent).sum(1)
    return encode_normals(torch.stack((x, y, bump[:, 2].clamp_min(0.1)), 1))
