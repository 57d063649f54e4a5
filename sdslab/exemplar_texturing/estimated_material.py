"""Roughness and bumps guessed from an albedo, where a photo is all there is. They are estimates."""

import torch
import torch.nn.functional as F
from torch import Tensor

from sdslab.meshes.material import (
    ALBEDO,
    METALLIC,
    NORMAL,
    ROUGHNESS,
    encode_normals,
)

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
