import pytest
import torch
import torch.nn.functional as F

from sdslab.denoisers.exemplar import ExemplarDenoiser, cosine_schedule
from sdslab.denoisers.patch_bank import PatchBank
from sdslab.denoisers.wrappers import TemperedDenoiser
from tests.denoisers.test_exemplar import T, noisy
from tests.denoisers.test_patch_bank import smooth_photo


@pytest.fixture
def denoiser() -> ExemplarDenoiser:
    photo = smooth_photo(3, 16, 16)
    return ExemplarDenoiser(PatchBank.of([photo], 5, 10**6, 10**6), sigma_floor=1e-5)


@pytest.mark.parametrize("temperature", [0.1, 0.5, 2.0, 10.0])
def test_the_log_likelihood_is_divided_by_the_temperature(denoiser, temperature):
    keys = F.unfold(smooth_photo(3, 16, 16)[None], 5)[0].T
    t = torch.tensor([300, 500, 700])
    x_t = noisy(smooth_photo(3, 5, 5, seed=1), t)
    alpha_bar = cosine_schedule().alpha_bar(t)[:, None]
    squares = (x_t.flatten(1)[:, None] - alpha_bar.sqrt()[..., None] * keys).square().sum(-1)
    expected = (-squares / (2 * (1 - alpha_bar) * temperature)).softmax(1) @ keys
    actual = TemperedDenoiser(denoiser, temperature).x0_hat(x_t, t).flatten(1)
    # t' is one of a thousand: within 0.3 % of the noise level that is wanted.
    torch.testing.assert_close(actual, expected, rtol=0, atol=0.02)


def test_a_temperature_of_1_changes_nothing(denoiser):
    x_t = noisy(smooth_photo(3, 9, 9, seed=1), T)
    assert torch.equal(TemperedDenoiser(denoiser, 1.0).x0_hat(x_t, T), denoiser.x0_hat(x_t, T))


def test_its_ends_are_the_nearest_patch_and_the_mean(denoiser):
    patches = F.unfold(smooth_photo(3, 16, 16)[None], 5)[0].T
    t = torch.tensor([500])
    x_t = noisy(smooth_photo(3, 5, 5, seed=1), t)
    guess = (x_t / denoiser.schedule.alpha_bar(t).sqrt()).view(1, -1)
    nearest = patches[torch.cdist(guess, patches).argmin()]
    cold = TemperedDenoiser(denoiser, 1e-6).x0_hat(x_t, t).flatten()
    torch.testing.assert_close(cold, nearest, rtol=0, atol=1e-6)
    hot = TemperedDenoiser(denoiser, 1e9).x0_hat(x_t, t).flatten()
    torch.testing.assert_close(hot, patches.mean(0), rtol=0, atol=0.01)


def test_a_temperature_of_0_is_refused(denoiser):
    with pytest.raises(ValueError, match=r"temperature must be positive, got 0\.0"):
        TemperedDenoiser(denoiser, 0.0)
