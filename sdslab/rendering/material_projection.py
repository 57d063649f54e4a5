"""Keeps a material valid while it is optimised."""

import math
from functools import cache

import numpy as np
import torch
from torch import Tensor

from sdslab.kernels.compiled import njit
from sdslab.machine import run_all, split, worker_count
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
        _project_on_cpu(maps.view(-1, CHANNELS))
        return
    maps[..., NORMAL] = encode_normals(2 * maps[..., NORMAL] - 1)
    maps.clamp_(*material_bounds(maps.device, maps.dtype))


@njit(nogil=True, cache=True)
def _project(texels, lower, upper, first, last):
    for n in range(first, last):
        x, y, z = 2 * texels[n, 5] - 1, 2 * texels[n, 6] - 1, 2 * texels[n, 7] - 1
        scale = np.float32(0.5) / max(math.sqrt(x * x + y * y + z * z), np.float32(1e-12))
        texels[n, 5] = x * scale + np.float32(0.5)
        texels[n, 6] = y * scale + np.float32(0.5)
        texels[n, 7] = z * scale + np.float32(0.5)
        for c in range(8):
            texels[n, c] = min(max(texels[n, c], lower[c]), upper[c])


def _project_on_cpu(texels: Tensor) -> None:
    """Projects [n, 8] contiguous float32 texels in place, in one pass instead of ten."""
    lower, upper = (np.array(bound, dtype=np.float32) for bound in (LOWER_BOUND, UPPER_BOUND))
    parts = split(len(texels), worker_count())
    run_all(_project, [(texels.numpy(), lower, upper, part.start, part.stop) for part in parts])
