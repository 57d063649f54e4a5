"""A photograph turned about its middle: what a surface shows that lies askew in the picture."""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sdslab.meshes.material import NORMAL


def turned(
    picture: Tensor, mask: Tensor | None, angle: float, guided: tuple[int, ...]
) -> tuple[Tensor, Tensor | None]:
    """Turns a picture counter-clockwise.

    Args:
        picture: [c, h, w] in [−1, 1].
        mask: [1, h, w] bool, or None for all of it.
        angle: in radians.
        guided: which material channels the c are; normals turn with the picture.

    Returns:
        The picture of the same size, mirrored where it has nothing to show, and a mask of where it
        has; None for all.
    """
    if angle == 0:
        return picture, mask
    height, width = picture.shape[1:]
    cosine, sine = math.cos(angle), math.sin(angle)
    # From a place of the result, y down, to where it is taken from; in units of half the sides.
    back = torch.tensor([[[cosine, -sine * height / width, 0], [sine * width / height, cosine, 0]]])
    grid = F.affine_grid(back.to(picture), [1, 1, height, width], align_corners=False)
    result = F.grid_sample(
        picture[None], grid, mode="bicubic", padding_mode="reflection", align_corners=False
    )[0].clamp(-1, 1)
    known = torch.ones_like(picture[:1]) if mask is None else mask.to(picture)
    shown = F.grid_sample(known[None], grid, padding_mode="zeros", align_corners=False)[0] > 0.99
    if NORMAL.start in guided:
        first = guided.index(NORMAL.start)
        x, y = result[first].clone(), result[first + 1].clone()
        result[first], result[first + 1] = cosine * x - sine * y, sine * x + cosine * y
    return result, shown
