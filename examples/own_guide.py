"""A guide of one's own: no diffusion model, but any gradient of the pictures of a step.

    cd examples
    python -m sdslab.texture apple --guidance own_guide:moss_and_stone --unlit --steps 100

This one moves each pixel to the nearest colour of a palette, all the more the later the step is,
and pulls neighbouring pixels together: a posterised texture.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from sdslab import SDSResult
from sdslab.texture.own_guide import GuideSetup

PALETTE = ((0.33, 0.42, 0.22), (0.55, 0.60, 0.35), (0.45, 0.43, 0.40))  # sRGB, in [0, 1]


class Posterise:
    """z ↦ the gradient of ½ |z − nearest colour|² plus that of ½ |Δz|², over the pictures."""

    def __init__(self, palette: Tensor, steps: int) -> None:
        self.palette, self.steps = 2 * palette - 1, steps

    def __call__(self, z: Tensor, index: int, scene: object, surface: object) -> SDSResult:
        """Gradient of z [b, 3, h, w], the pictures of step ``index`` in [−1, 1]."""
        del scene, surface
        palette = self.palette.to(z)
        flat = z.movedim(1, -1).reshape(-1, 3)
        nearest = palette[torch.cdist(flat, palette).argmin(1)]
        away = z - nearest.view(*z.shape[:1], *z.shape[2:], 3).movedim(-1, 1)
        smooth = z - F.avg_pool2d(F.pad(z, (1, 1, 1, 1), mode="replicate"), 3, 1)
        gradient = (index + 1) / self.steps * away + smooth
        loss = 0.5 * gradient.square().sum((1, 2, 3))
        return SDSResult(gradient, loss, gradient.isfinite().logical_not().sum((1, 2, 3)))


def moss_and_stone(setup: GuideSetup) -> Posterise:
    """The guide that ``--guidance`` names."""
    return Posterise(torch.tensor(PALETTE), setup.steps)
