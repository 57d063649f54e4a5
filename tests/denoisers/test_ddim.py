import pytest
import torch

from sdslab.denoisers.degenerate import DegenerateDenoiser
from sdslab.denoisers.denoiser import Condition, Denoiser, Prediction, ddim_sample
from sdslab.denoisers.exemplar import ExemplarDenoiser, cosine_schedule
from sdslab.denoisers.patch_bank import PatchBank
from tests.conftest import random_image

TIMESTEPS = range(999, 0, -4)


class GaussianDenoiser(Denoiser):
    """The optimal denoiser of N(0, s² I): x̂_0 = √ᾱ s² x_t / (ᾱ s² + 1 − ᾱ)."""

    def __init__(self, deviation: float) -> None:
        self.schedule, self.deviation = cosine_schedule(), deviation

    def predict(
        self, x_t: torch.Tensor, t: torch.Tensor, condition: Condition | None = None
    ) -> Prediction:
        del condition
        alpha_bar = self.schedule.alpha_bar(t).view(-1, 1)
        variance = self.deviation**2
        gain = alpha_bar.sqrt() * variance / (alpha_bar * variance + 1 - alpha_bar)
        return Prediction(gain * x_t, "x0")


@pytest.mark.parametrize("deviation", [0.3, 1.0, 2.0])
def test_noise_becomes_a_sample_of_the_distribution(deviation):
    # The flow of a Gaussian multiplies: noise n ends at s n.
    noise = torch.randn(5, 40, generator=torch.Generator().manual_seed(0)).double()
    sample = ddim_sample(GaussianDenoiser(deviation), noise, TIMESTEPS)
    torch.testing.assert_close(sample, deviation * noise, rtol=0.02, atol=0)


def test_errors_fall_with_the_first_power_of_the_step():
    noise = torch.ones(1, 1).double()
    steps = [10, 20, 40, 80]
    errors = []
    for count in steps:
        timesteps = torch.linspace(999, 0, count).round().long().tolist()
        sample = ddim_sample(GaussianDenoiser(0.3), noise, timesteps)
        errors.append((sample - 0.3).abs().item())
    order = torch.tensor(errors).log().diff() / torch.tensor(steps).double().log().diff()
    torch.testing.assert_close(order.double(), torch.full((3,), -1.0).double(), atol=0.35, rtol=0)


def test_of_one_image_the_sample_is_that_image():
    x_star = random_image(1, 3, 6, 5).double()
    noise = torch.randn(2, 3, 6, 5, generator=torch.Generator().manual_seed(0)).double()
    sample = ddim_sample(DegenerateDenoiser(x_star, cosine_schedule()), noise, TIMESTEPS[::10])
    torch.testing.assert_close(sample, x_star.expand(2, -1, -1, -1))


def test_of_a_photo_s_whole_pictures_the_sample_is_one_of_them():
    photos = [random_image(3, 6, 6, seed=seed).double() * 2 - 1 for seed in range(4)]
    denoiser = ExemplarDenoiser(PatchBank.of(photos, patch=6))
    noise = torch.randn(8, 3, 6, 6, generator=torch.Generator().manual_seed(0)).double()
    samples = ddim_sample(denoiser, noise, TIMESTEPS[::5])
    distances = torch.cdist(samples.flatten(1), torch.stack(photos).flatten(1))
    torch.testing.assert_close(distances.amin(1), torch.zeros(8).double(), atol=1e-3, rtol=0)
    assert len(distances.argmin(1).unique()) > 1
