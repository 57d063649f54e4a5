"""A denoiser of one's own: pictures whose pixels are normally distributed around one colour.

    cd examples
    python -m sdslab.texture sphere --guidance own_denoiser:terracotta --unlit --steps 60
    python -m sdslab.texture sphere --target moon --steps 99 --parameterization own_denoiser:ripples

The denoiser's posterior mean is in closed form, so that the result can be checked: the texels end
around the colour. Below it a parameterization of one's own: a material made of plane waves.
"""

import torch
from torch import Tensor, nn

from sdslab import Condition, Denoiser, NoiseSchedule, Parameterization, Prediction
from sdslab.parameterizations.parameterization import MaterialSetup

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


class Ripples(Parameterization):
    """θ is the amplitudes of `count` plane waves in each of the eight maps."""

    def __init__(self, size: int, seed: int, count: int = 64) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        direction = torch.randint(-8, 9, (count, 2), generator=generator)
        phase = 2 * torch.pi * torch.rand(count, 1, 1, generator=generator)
        place = torch.arange(size) / size
        angle = (
            2
            * torch.pi
            * (direction[:, :1, None] * place[:, None] + direction[:, 1:, None] * place)
        )
        self.register_buffer("waves", torch.sin(angle + phase))
        self.amplitudes = nn.Parameter(torch.zeros(8, count))
        self.mean = nn.Parameter(torch.zeros(8, 1, 1))

    def forward(self) -> Tensor:
        waves = torch.einsum("cn,nhw->chw", self.amplitudes, self.get_buffer("waves"))
        return (self.mean + waves / 8).sigmoid()[None]


def ripples(setup: MaterialSetup) -> Parameterization:
    """What ``--parameterization own_denoiser:ripples`` names: smooth, and it tiles."""
    return Ripples(len(setup.initial), setup.seed)
