import pytest
import torch

from sdslab.denoisers.degenerate import DegenerateDenoiser
from sdslab.denoisers.noise_schedule import NoiseSchedule
from tests.conftest import random_image

SCHEDULES = [NoiseSchedule.deepfloyd_if(), NoiseSchedule.stable_diffusion()]


@pytest.mark.parametrize("schedule", SCHEDULES, ids=["deepfloyd", "stable-diffusion"])
@pytest.mark.parametrize("prediction_type", ["epsilon", "x0"])
def test_x0_hat_is_x_star_whatever_the_noise_and_the_timestep(schedule, prediction_type):
    x_star = random_image(1, 3, 6, 5, dtype=torch.float64)
    denoiser = DegenerateDenoiser(x_star, schedule, prediction_type)
    t = torch.tensor([0, 20, 500, 979])
    x_t = torch.randn(4, 3, 6, 5, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(
        denoiser.x0_hat(x_t, t), x_star.expand_as(x_t), rtol=1e-10, atol=1e-10
    )


def test_its_output_is_equation_3():
    x_star = random_image(1, 3, 4, 4, dtype=torch.float64)
    schedule = NoiseSchedule.deepfloyd_if()
    alpha_bar = schedule.alpha_bars[700]
    x_t = random_image(1, 3, 4, 4, seed=1, dtype=torch.float64)
    expected = (x_t - alpha_bar.sqrt() * x_star) / (1 - alpha_bar).sqrt()
    prediction = DegenerateDenoiser(x_star, schedule).predict(x_t, torch.tensor([700]))
    assert prediction.prediction_type == "epsilon"
    torch.testing.assert_close(prediction.output, expected)


def test_it_is_the_score_of_the_noised_point_mass():
    # −√(1−ᾱ) ∇ log N(x_t; √ᾱ x*, (1−ᾱ) I), differentiated by autograd
    x_star = random_image(1, 3, 4, 4, dtype=torch.float64)
    schedule = NoiseSchedule.stable_diffusion()
    alpha_bar = schedule.alpha_bars[400]
    x_t = random_image(1, 3, 4, 4, seed=2, dtype=torch.float64).requires_grad_()
    log_density = torch.distributions.Normal(
        alpha_bar.sqrt() * x_star, (1 - alpha_bar).sqrt()
    ).log_prob(x_t)
    (score,) = torch.autograd.grad(log_density.sum(), x_t)
    denoiser = DegenerateDenoiser(x_star, schedule)
    eps_hat = denoiser.predict(x_t.detach(), torch.tensor([400])).output
    torch.testing.assert_close(eps_hat, -(1 - alpha_bar).sqrt() * score)
