"""Keeps the contrast of a posterior mean, which averages it away, at a photograph's own."""

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

BANDS = 3
SCALE_LIMITS = (0.5, 2.5)
RATE = 0.2  # of the running mean of the scales


@final
class BandEnergy:
    """Scales three Laplacian bands of x̂_0 so that each varies as much as the photograph's.

    The scales are running means over the calls: make one for each level of resolution.

    Args:
        exemplar: [c, h, w], at the resolution of the pictures to come.
    """

    def __init__(self, exemplar: Tensor) -> None:
        bands, _ = laplacian_bands(exemplar[None])
        self.deviations = torch.stack([_deviation(band, None) for band in bands])
        self.scales = torch.ones_like(self.deviations)
        self._calls = 0

    def __call__(self, x0_hat: Tensor, foreground: Tensor | None) -> Tensor:
        """Scales pictures [b, c, h, w]; the deviations are those of the foreground [b, 1, h, w]."""
        bands, rest = laplacian_bands(x0_hat)
        deviations = torch.stack([_deviation(band, foreground) for band in bands])
        wanted = (self.deviations / deviations.clamp_min(1e-6)).clamp(*SCALE_LIMITS)
        self.scales = torch.lerp(self.scales, wanted, RATE if self._calls else 1.0)
        self._calls += 1
        return rest + sum(scale * band for scale, band in zip(self.scales, bands, strict=True))


def laplacian_bands(x: Tensor) -> tuple[list[Tensor], Tensor]:
    """Splits pictures [b, c, h, w] into three bands, fine to coarse, and a low-pass rest."""
    taps = x.new_tensor([1, 4, 6, 4, 1]) / 16
    kernel = (taps[:, None] * taps).expand(x.shape[1], 1, 5, 5)
    bands = []
    for level in range(BANDS):
        step = 2**level  # à trous: the picture keeps its size
        margin = min(2 * step, min(x.shape[-2:]) - 1)
        padded = F.pad(x, (margin,) * 4, mode="reflect")
        if margin < 2 * step:
            padded = F.pad(padded, (2 * step - margin,) * 4, mode="replicate")
        blurred = F.conv2d(padded, kernel, dilation=step, groups=x.shape[1])
        bands.append(x - blurred)
        x = blurred
    return bands, x


def _deviation(band: Tensor, foreground: Tensor | None) -> Tensor:
    """The root mean square of a band, over the foreground."""
    if foreground is None:
        return band.square().mean().sqrt()
    weight = foreground.expand_as(band)
    return ((band.square() * weight).sum() / weight.sum().clamp_min(1)).sqrt()
