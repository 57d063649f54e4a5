"""What SDS does where the score is exact to the last digit: pictures that are single patches.

Of a whole picture the posterior means of overlapping patches are averaged; here nothing is.
"""

from typing import Literal

import pytest
import torch
from torch import Tensor

from sdslab.denoisers.denoiser import ddim_sample
from sdslab.denoisers.exemplar import ExemplarDenoiser, timestep
from sdslab.denoisers.noise_schedule import WEIGHTINGS, UniformTimesteps
from sdslab.denoisers.patch_bank import PatchBank
from sdslab.distillation.sds import sds_gradient
from sdslab.kernels import NoiseKey, SDSResult, philox_normal
from sdslab.optimization.optimize import optimize
from sdslab.optimization.optimizer_state import OptimizeConfig
from sdslab.parameterizations.pixel import PixelGrid
from sdslab.pictures.image_io import load_image
from sdslab.pictures.metrics import contrast, fidelity, sliced_wasserstein

COUNT, PATCH, STEPS = 128, 7, 100
SAMPLES = torch.arange(COUNT)


@pytest.fixture(scope="module")
def photo() -> Tensor:
    return load_image("gravel", 64)


@pytest.fixture(scope="module")
def denoiser(photo: Tensor) -> ExemplarDenoiser:
    return ExemplarDenoiser(PatchBank.of([2 * photo[0] - 1], PATCH, rank=3 * PATCH**2))


def distilled(
    denoiser: ExemplarDenoiser,
    noise: Literal["fresh", "fixed"],
    timesteps: Literal["random", "annealed"],
) -> Tensor:
    """[COUNT, 3, 7, 7] in [0, 1], from grey."""
    theta = PixelGrid.grey((COUNT, 3, PATCH, PATCH))
    between = UniformTimesteps(timestep(0.02), timestep(0.98))

    def gradient(z: Tensor, index: int) -> SDSResult:
        t = between(NoiseKey(0, index, SAMPLES), index / STEPS)
        if timesteps == "annealed":
            t = torch.full((COUNT,), timestep(0.98 - 0.95 * index / (STEPS - 1)))
        key = NoiseKey(0, index if noise == "fresh" else 0, SAMPLES)
        return sds_gradient(z, denoiser, t, key, weighting=WEIGHTINGS["x0_unit"])

    config = OptimizeConfig(
        STEPS, learning_rate=0.07, learning_rate_schedule="cosine", adam_betas=(0.9, 0.99)
    )
    for _ in optimize(theta.parameters(), lambda _: 2 * theta() - 1, gradient, config):
        pass
    return theta().detach()


@pytest.fixture(scope="module")
def collapsed(denoiser: ExemplarDenoiser) -> Tensor:
    return distilled(denoiser, "fresh", "random")


def test_samples_are_patches_of_the_photo(photo: Tensor, denoiser: ExemplarDenoiser):
    noise = philox_normal(NoiseKey(0, 0, SAMPLES), (3, PATCH, PATCH))
    samples = ddim_sample(denoiser, noise, range(timestep(0.98), 0, -10))
    pictures = (samples + 1) / 2
    assert contrast(pictures) / contrast(photo) == pytest.approx(1, abs=0.1)
    assert fidelity(pictures, photo) < 0.01
    assert sliced_wasserstein(pictures, photo) < 0.02


def test_sds_with_fresh_noise_and_random_timesteps_ends_at_the_mean(
    photo: Tensor, denoiser: ExemplarDenoiser, collapsed: Tensor
):
    assert contrast(collapsed) / contrast(photo) < 0.3
    mean = (denoiser.bank.mean + 1) / 2
    assert (collapsed.mean(0) - mean).abs().max() < 0.02


def test_sds_with_fixed_noise_and_falling_timesteps_ends_at_patches_of_the_photo(
    photo: Tensor, denoiser: ExemplarDenoiser, collapsed: Tensor
):
    pictures = distilled(denoiser, "fixed", "annealed")
    assert contrast(pictures) / contrast(photo) > 0.8
    distances = [sliced_wasserstein(p, photo) for p in (pictures, collapsed)]
    assert distances[0] < 0.4 * distances[1]
