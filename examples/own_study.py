"""A parameterization, a denoiser and an objective of one's own, in a study like Figure 2.

    cd examples
    python -m sdslab.study own_study.toml

The picture is given by its spectrum, the denoiser knows it only to some deviation, and the
objective takes each noise with both signs, which halves the variance of the gradient, and here,
where the denoiser is linear in x_t, removes it.
"""

import torch
from torch import Tensor, nn

from sdslab import Condition, Denoiser, Parameterization, Prediction, SDSResult, sds_gradient
from sdslab.kernels import philox_normal
from sdslab.study.own_objects import CellSetup

DEVIATION = 0.1  # of the pixels, in [−1, 1]


class Spectrum(Parameterization):
    """θ is the real Fourier transform, divided by 1/f as photographs' spectra fall off."""

    def __init__(self, image: Tensor) -> None:
        super().__init__()
        height, width = image.shape[-2:]
        frequency = torch.hypot(torch.fft.fftfreq(height)[:, None], torch.fft.rfftfreq(width))
        self.register_buffer("fall_off", 1 / frequency.clamp_min(1 / height))
        self.size = (height, width)
        self.spectrum = nn.Parameter(torch.zeros(*image.shape[:2], *frequency.shape, 2))

    def forward(self) -> Tensor:
        scaled = torch.view_as_complex(self.spectrum) * self.get_buffer("fall_off")
        return 0.5 + torch.fft.irfft2(scaled, s=self.size, norm="ortho")


class NormalAround(Denoiser):
    """x_0 ~ N(x*, s²): x̂_0 = (s² √ᾱ x_t + (1 − ᾱ) x*) / (ᾱ s² + 1 − ᾱ); s = 0 is Eq. 3."""

    def __init__(self, setup: CellSetup) -> None:
        self.schedule, self.x_star = setup.schedule, setup.z_star

    def predict(self, x_t: Tensor, t: Tensor, condition: Condition | None = None) -> Prediction:
        del condition
        alpha_bar = self.schedule.alpha_bar(t).to(x_t).view(-1, 1, 1, 1)
        kept = DEVIATION**2 * alpha_bar.sqrt() * x_t + (1 - alpha_bar) * self.x_star
        return Prediction(kept / (DEVIATION**2 * alpha_bar + 1 - alpha_bar), "x0")


def spectrum(setup: CellSetup) -> Parameterization:
    """The parameterization that the study file names."""
    return Spectrum(setup.image)


def antithetic_sds(z: Tensor, denoiser: Denoiser, t: Tensor, noise, *, weighting) -> SDSResult:
    """The mean of `sds_gradient` under ε and under −ε."""
    eps = philox_normal(noise, tuple(z.shape[1:]), dtype=z.dtype, device=z.device)
    one, other = (sds_gradient(z, denoiser, t, e, weighting=weighting) for e in (eps, -eps))
    gradient, loss = (one.gradient + other.gradient) / 2, (one.loss + other.loss) / 2
    return SDSResult(gradient, loss, one.nonfinite + other.nonfinite)
