"""A denoiser of one's own: pictures whose pixels are normally distributed around one colour.

    cd examples
    python -m sdslab.texture sphere --guidance own_denoiser:terracotta --unlit --steps 60

Its posterior mean is in closed form, so that the result can be checked: the texels end around
the colour.
"""

import torch
from torch import Tensor

from sdslab import Condition, Denoiser, NoiseSchedule, Prediction

COLOUR = (0.72, 0.38, 0.26)  # sRGB-encoded, in [0, 1]
DEVIATION = 0.05  # of the pixels, in [−1, 1]


class NormalPixels(Denoiser):
    """x_0 ~ N(μ, s²) at each pixel: x̂_0 = (s² √ᾱ x_t + (1 − ᾱ) μ) / (ᾱ s² + 1 − ᾱ)."""

    def __init__(self, colour: tuple[float, float, float], deviation: float) -> None:
        self.schedule = NoiseSchedule.deepfloyd_if()
        self.mean = 2 * torch.tensor(colour).view(1, 3, 1, 1) - 1
        self.variance = deviation**2

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Prediction:
        del condition  # one colour, whatever is asked for
        alpha_bar = self.schedule.alpha_bar(t).to(x_t).view(-1, 1, 1, 1)
        kept = self.variance * alpha_bar.sqrt() * x_t
        output = (kept + (1 - alpha_bar) * self.mean.to(x_t)) / (
            alpha_bar * self.variance + 1 - alpha_bar
        )
        return Prediction(output, "x0")


def terracotta(setup: object) -> Denoiser:
    """The denoiser that ``--guidance`` names; it needs nothing of the run."""
    del setup
    return NormalPixels(COLOUR, DEVIATION)
