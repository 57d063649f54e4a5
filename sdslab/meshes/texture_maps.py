"""Maps at another resolution, and what lies outside the charts."""

from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sdslab.meshes.material import renormalized


def resize_maps(maps: Tensor, size: int) -> Tensor:
    """Resamples maps with power-of-two sides to [size, size, 8], as a texture that repeats."""
    height, width = maps.shape[:2]
    texels = maps.movedim(-1, 0)[None]
    shrink = (max(1, height // size), max(1, width // size))
    texels = F.avg_pool2d(texels, shrink)
    height, width = texels.shape[-2:]
    if (height, width) != (size, size):
        # One texel of the opposite side all around, of which nothing but the blend is kept.
        texels = F.pad(texels, (1, 1, 1, 1), mode="circular")
        rows, columns = size // height, size // width
        texels = F.interpolate(texels, scale_factor=(rows, columns), mode="bilinear")
        texels = texels[..., rows:-rows, columns:-columns]
    return renormalized(texels[0].movedim(0, -1))


LEAST_WRAP = 16


def dilate_seams(maps: Tensor, covered: Tensor) -> Tensor:
    """Fills each uncovered texel from the nearest covered one, over the borders too.

    Viewers mix texels of both kinds at seams and in their mip pyramids; after this, the fill shows
    nowhere.

    Args:
        maps: [h, w, c].
        covered: [h, w] bool; where nothing is, nothing changes.

    Returns:
        A new [h, w, c]. Texels wrap around the borders as repeating textures do: nearest is exact
        up to a sixteenth of the side (16 texels at least), which is all that a seam needs.
    """
    from scipy.ndimage import distance_transform_edt

    filled = maps.clone(memory_format=torch.contiguous_format)
    holes = ~covered.cpu().numpy()
    if holes.all():
        return filled
    height, width = holes.shape
    y_wrap, x_wrap = (min(max(side // 16, LEAST_WRAP), side) for side in (height, width))
    tiled = np.pad(holes, ((y_wrap, y_wrap), (x_wrap, x_wrap)), mode="wrap")
    nearest: Any = distance_transform_edt(tiled, return_distances=False, return_indices=True)
    rows, columns = nearest
    inner = slice(y_wrap, y_wrap + height), slice(x_wrap, x_wrap + width)
    row, column = rows[inner][holes] - y_wrap, columns[inner][holes] - x_wrap
    source = torch.from_numpy(row % height * width + column % width).long()
    target = torch.from_numpy(np.flatnonzero(holes))
    texels = filled.view(height * width, -1)
    texels[target.to(maps.device)] = texels[source.to(maps.device)]
    return filled
