"""Bounds x̂_0 as Imagen's samplers do, without the flat spots of a clamp."""

from typing import final

import torch

from sdslab.denoisers.denoiser import Condition, Denoiser, Prediction
from sdslab.tensor_types import Diffused, Timesteps


@final
class DynamicThresholding(Denoiser):
    """Clamps each sample's x̂_0 to [−s, s] and divides it by s, the given quantile of |x̂_0|.

    s is at least 1 and at most ``largest``: pictures within [−1, 1] stay as they are.

    Args:
        model: guidance included, for guided pictures are the ones that leave the range.
        ratio: the quantile; DeepFloyd IF's schedulers say 0.95.
        largest: of s; DeepFloyd IF's say 1.5.

    Source: Saharia et al. 2022 (arXiv 2205.11487), section 2.3.
    """

    def __init__(self, model: Denoiser, ratio: float = 0.95, largest: float = 1.5) -> None:
        self.model, self.ratio, self.largest = model, ratio, largest
        self.schedule = model.schedule

    def predict(
        self, x_t: Diffused, t: Timesteps, condition: Condition | None = None
    ) -> Prediction:
        x0_hat = self.model.x0_hat(x_t, t, condition)
        magnitude = x0_hat.float().abs().flatten(1)
        bound = torch.quantile(magnitude, self.ratio, dim=1).clamp(1, self.largest).to(x0_hat)
        bound = bound.view(-1, *[1] * (x0_hat.ndim - 1))
        return Prediction(x0_hat.clamp(-bound, bound) / bound, "x0")
