"""Keeps the contrast of a posterior mean, which averages it away, at a photograph's own."""

from typing import final

import torch
import torch.nn.functional as F
from torch import Tensor

BANDS = 4
SCALE_LIMITS = (0.5, 2.5)
RATE = 0.2  # of the running mean of the scales


@final
class BandEnergy:
    """Scales four Laplacian bands of x̂_0 so that each varies as much as the photograph's.

    The scales are running means over the calls: make one for each level of resolution.

    Args:
        exemplar: [c, h, w], at the resolution of the pictures to come.
        mask: [1, h, w] bool, what of it counts; None is all.
    """

    def __init__(self, exemplar: Tensor, mask: Tensor | None = None) -> None:
        bands, _ = laplacian_bands(exemplar[None])
        inside = None if mask is None else mask[None].to(exemplar)
        self.deviations = torch.stack([_deviation(band, inside) for band in bands])
        self.scales = torch.ones_like(self.deviations)
        self._calls = torch.zeros((), dtype=torch.int64)

    @property
    def memory(self) -> dict[str, Tensor]:
        """State carried from call to call, changed in place, for a checkpoint to hold."""
        return {"band_scales": self.scales, "band_calls": self._calls}

    def __call__(self, x0_hat: Tensor, foreground: Tensor | None) -> Tensor:
        """Scales pictures [b, c, h, w]; in their deviations pixels count as the foreground says.

        Args:
            x0_hat: the pictures.
            foreground: [b, 1, h, w] in [0, 1], or None where all count alike.
        """
        bands, rest = laplacian_bands(x0_hat)
        deviations = torch.stack([_deviation(band, foreground) for band in bands])
        wanted = (self.deviations / deviations.clamp_min(1e-6)).clamp(*SCALE_LIMITS)
        self.scales.lerp_(wanted, RATE if self._calls else 1.0)
        self._calls += 1
        return rest + sum(scale * band for scale, band in zip(self.scales, bands, strict=True))


def laplacian_bands(x: Tensor) -> tuple[list[Tensor], Tensor]:
    """Splits pictures [b, c, h, w] into four bands, fine to coarse, and a low-pass rest."""
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
