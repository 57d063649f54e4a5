"""Maps at another resolution."""

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
