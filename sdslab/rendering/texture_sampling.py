"""Trilinear look-up in a mip pyramid, in plain torch: the reference of every backend's own."""

import torch
import torch.nn.functional as F
from torch import Tensor


def mip_pyramid(maps: Tensor) -> list[Tensor]:
    """Level 0 is the texture; each next one halves both sides (2×2 box) until one texel is left.

    Args:
        maps: [h, w, c], sides powers of two.
    """
    levels = [maps]
    while (size := levels[-1].shape)[0] * size[1] > 1:
        kernel = (min(2, size[0]), min(2, size[1]))
        channels_first = levels[-1].movedim(-1, 0)[None]
        levels.append(F.avg_pool2d(channels_first, kernel)[0].movedim(0, -1))
    return levels


def level_of_detail(uv_derivatives: Tensor, height: int, width: int) -> Tensor:
    """½ log2 of the squared major axis of each pixel's footprint in texels, at least 0.

    The footprint is the ellipse that (du, dv) maps the unit disc of pixels to; its squared axes are
    the eigenvalues of the 2×2 matrix [[A, C], [C, B]].

    Args:
        uv_derivatives: [n, 4] ∂u/∂X, ∂u/∂Y, ∂v/∂X, ∂v/∂Y.
        height: of the texture.
        width: of the texture.
    """
    by_pixel = uv_derivatives.T
    (ux, uy), (vx, vy) = width * by_pixel[:2], height * by_pixel[2:]
    a, b, c = ux.square() + vx.square(), uy.square() + vy.square(), ux * uy + vx * vy
    major = (a + b) / 2 + ((a - b).square() / 4 + c.square()).sqrt()
    return major.clamp_min(1).log2() / 2


def sample_texture(maps: Tensor, uv: Tensor, uv_derivatives: Tensor) -> Tensor:
    """Looks a texture up; differentiable in the texture, any float dtype.

    Args:
        maps: [h, w, c], row 0 at v = 0, sides powers of two; repeats beyond [0, 1].
        uv: [n, 2]; texel (i, j) is centred at u = (j + ½)/w, v = (i + ½)/h.
        uv_derivatives: [n, 4], per pixel.

    Returns:
        [n, c].
    """
    levels = mip_pyramid(maps)
    lod = level_of_detail(uv_derivatives, *maps.shape[:2]).clamp_max(len(levels) - 1)
    lower = lod.long().clamp_max(max(0, len(levels) - 2))
    texels = torch.cat([level.flatten(0, 1) for level in levels])
    heights, widths = (
        torch.tensor([level.shape[axis] for level in levels], device=uv.device) for axis in (0, 1)
    )
    starts = torch.cumsum(heights * widths, 0) - heights * widths
    fraction = (lod - lower)[:, None]
    result = torch.zeros(len(uv), maps.shape[-1], dtype=maps.dtype, device=maps.device)
    for level, share in ((lower, 1 - fraction), ((lower + 1), fraction)):
        level = level.clamp_max(len(levels) - 1)
        height, width = heights[level], widths[level]
        x, y = uv[:, 0] * width - 0.5, uv[:, 1] * height - 0.5
        x0, y0 = x.floor(), y.floor()
        fx, fy = (x - x0)[:, None], (y - y0)[:, None]
        for dx, along_x in ((0, 1 - fx), (1, fx)):
            for dy, along_y in ((0, 1 - fy), (1, fy)):
                column, row = (x0.long() + dx) % width, (y0.long() + dy) % height
                result = (
                    result
                    + share * along_x * along_y * texels[starts[level] + row * width + column]
                )
    return result
