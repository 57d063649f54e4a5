"""Keeps a material valid while it is optimised."""

from functools import cache

import torch
from torch import Tensor

from sdslab.meshes.material import CHANNELS, NORMAL, encode_normals

# How far a normal may lean, as CasTex bounds it: |x|, |y| ≤ 1/2 and z ≥ 1/2.
LOWER_BOUND = (0.0, 0.0, 0.0, 0.0, 0.0, 0.25, 0.25, 0.75)
UPPER_BOUND = (1.0, 1.0, 1.0, 1.0, 1.0, 0.75, 0.75, 1.0)


@cache
def material_bounds(device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The least and the largest value of each channel, [8]; copied to a device only once."""
    lower, upper = (torch.tensor(bound, dtype=dtype) for bound in (LOWER_BOUND, UPPER_BOUND))
    return lower.to(device), upper.to(device)


@torch.no_grad()
def project_material_(maps: Tensor) -> None:
    """Moves every texel to the nearest valid one, in place: normals to unit length, then bounds.

    Args:
        maps: [..., 8].

    Source: CasTex's projection after each step (arXiv 2504.06856), in encoded values.
    """
    if maps.device.type == "cpu" and maps.dtype == torch.float32 and maps.is_contiguous():
        from sdslab.rendering.cpu_projection import project_texels

        project_texels(maps.view(-1, CHANNELS))
        return
    maps[..., NORMAL] = encode_normals(2 * maps[..., NORMAL] - 1)
    maps.clamp_(*material_bounds(maps.device, maps.dtype))
