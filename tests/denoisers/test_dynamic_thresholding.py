import pytest
import torch
from diffusers import DDPMScheduler
from torch import Tensor

from sdslab.denoisers.degenerate import DegenerateDenoiser
from sdslab.denoisers.noise_schedule import NoiseSchedule
from sdslab.denoisers.wrappers import DynamicThresholding

SCHEDULE = NoiseSchedule.deepfloyd_if()


def thresholded(x0_hat: Tensor) -> Tensor:
    denoiser = DynamicThresholding(DegenerateDenoiser(x0_hat, SCHEDULE, "x0"))
    return denoiser.x0_hat(torch.zeros_like(x0_hat), torch.full((len(x0_hat),), 500))


@pytest.mark.parametrize("scale", [0.5, 1.2, 4.0], ids=["within", "a little out", "far out"])
def test_it_does_what_diffusers_sampler_does(scale: float):
    x0_hat = scale * torch.randn(3, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    scheduler = DDPMScheduler(
        thresholding=True, dynamic_thresholding_ratio=0.95, sample_max_value=1.5
    )
    torch.testing.assert_close(thresholded(x0_hat), scheduler._threshold_sample(x0_hat))


def test_pictures_within_the_range_stay_and_samples_are_bounded_apart():
    inside = torch.linspace(-1, 1, 48).view(1, 3, 4, 4)
    both = thresholded(torch.cat((inside, 10 * inside)))
    torch.testing.assert_close(both[:1], inside)
    assert both[1].abs().max() == 1
