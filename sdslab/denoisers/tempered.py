"""A denoiser that trusts what it sees more, or less, than it should."""

from typing import final

import torch

from sdslab.denoisers.denoiser import Condition, Denoiser, Prediction
from sdslab.tensor_types import Diffused, Timesteps


@final
class TemperedDenoiser(Denoiser):
    """Divides the log-likelihood of ``model``'s posterior by a temperature T.

    −‖x_t − √ᾱ x_0‖² / 2(1−ᾱ)T is what x_t √(ᾱ'/ᾱ) has at the timestep t' whose signal-to-noise
    ratio ᾱ'/(1−ᾱ') is T times smaller, so the model is asked there. T = 1 is the model itself;
    T → 0 ends at the nearest sample, T → ∞ at the mean of all. Nothing else that the model knows
    (a prompt, a low-resolution picture) is tempered.

    Args:
        model: any denoiser.
        temperature: T, positive.
    """

    def __init__(self, model: Denoiser, temperature: float) -> None:
        if not temperature > 0:
            raise ValueError(f"temperature must be positive, got {temperature}; 1 changes nothing")
        self.model, self.temperature = model, temperature
        self.schedule = model.schedule

    def predict(
        self, x_t: Diffused, t: Timesteps, condition: Condition | None = None
    ) -> Prediction:
        alpha_bar = self.schedule.alpha_bar(t)
        ratio = alpha_bar / (1 - alpha_bar) / self.temperature
        wanted = ratio / (1 + ratio)
        there = (self.schedule.alpha_bars - wanted[:, None]).abs().argmin(1)
        rescaling = (self.schedule.alpha_bar(there) / alpha_bar).sqrt().to(x_t)
        x_there = x_t * rescaling.view(-1, *[1] * (x_t.ndim - 1))
        if torch.equal(there, t):
            x_there = x_t
        return Prediction(self.model.x0_hat(x_there, there, condition), "x0")
