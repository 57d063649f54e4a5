"""SDS against Eq. 3's denoiser is the gradient of the squared error: CasTex Eq. 4–5."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from sdslab.denoisers.degenerate import DegenerateDenoiser
from sdslab.denoisers.noise_schedule import (
    WEIGHTINGS,
    NoiseSchedule,
    Weighting,
)
from sdslab.diffusion_space import DiffusionSpace, LatentSpace, PixelSpace
from sdslab.distillation.sds import exact_sds_gradient, sds_gradient
from sdslab.kernels import NoiseKey
from sdslab.parameterizations.deep_image_prior import DeepImagePrior
from sdslab.parameterizations.latent import LatentGrid
from sdslab.parameterizations.parameterization import Parameterization
from sdslab.parameterizations.pixel import PixelGrid
from tests.conftest import random_image

SIZE = 64
SCHEDULE = NoiseSchedule.deepfloyd_if()
TOLERANCE = {torch.float64: 1e-10, torch.float32: 1e-5}
UNIT = WEIGHTINGS["x0_unit"]


@pytest.fixture(params=["pixel-space", "latent-space"])
def space(request: pytest.FixtureRequest, dtype: torch.dtype, tiny_vae_folder) -> DiffusionSpace:
    if request.param == "pixel-space":
        return PixelSpace()
    return LatentSpace.load(tiny_vae_folder, dtype=dtype)


@pytest.fixture(params=[torch.float64, torch.float32], ids=["float64", "float32"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    return request.param


@pytest.fixture(params=["pixel", "latent", "dip-paint-it", "dip-original"])
def theta(request: pytest.FixtureRequest, dtype: torch.dtype, tiny_vae_folder) -> Parameterization:
    shape = (2, 3, SIZE, SIZE)
    match request.param:
        case "pixel":
            return PixelGrid.uniform_noise(shape, seed=0, dtype=dtype)
        case "latent":
            decode = LatentSpace.load(tiny_vae_folder, dtype=dtype).decode
            return LatentGrid(random_image(2, 4, 8, 8, dtype=dtype), decode)
        case name:
            return DeepImagePrior(shape, 0, name.removeprefix("dip-"), width=8).to(dtype)


def gradients(theta: Parameterization) -> Tensor:
    return torch.cat([p.grad.flatten() for p in theta.parameters() if p.grad is not None])


def autograd_of_squared_error(
    theta: Parameterization, space: DiffusionSpace, z_star: Tensor
) -> Tensor:
    theta.zero_grad()
    (space.encode(theta()) - z_star).square().sum().backward()
    return gradients(theta)


def assert_close_to_largest(actual: Tensor, expected: Tensor, tolerance: float) -> None:
    error = (actual - expected).abs().max() / expected.abs().max()
    assert error <= tolerance, f"relative error {error:.2e} exceeds {tolerance:.0e}"


@pytest.mark.parametrize("t", [[0, 979], [20, 999], [500, 500]], ids=str)
@pytest.mark.parametrize("clamp", [None, 1e6], ids=["unclamped", "clamped"])
def test_twice_the_sds_gradient_is_the_gradient_of_the_squared_error(
    theta: Parameterization, space: DiffusionSpace, dtype: torch.dtype, t: list[int], clamp
):
    z_star = space.encode(random_image(1, 3, SIZE, SIZE, seed=5, dtype=dtype)).detach()
    expected = autograd_of_squared_error(theta, space, z_star)

    theta.zero_grad()
    z = space.encode(theta())
    denoiser = DegenerateDenoiser(z_star, SCHEDULE)
    result = exact_sds_gradient(z.detach(), denoiser, torch.tensor(t), weighting=UNIT, clamp=clamp)
    z.backward(2 * result.gradient)
    assert_close_to_largest(gradients(theta), expected, TOLERANCE[dtype])


def test_the_same_through_sampled_noise_and_the_printed_epsilon_hat(
    theta: Parameterization, tiny_vae_folder
):
    space = LatentSpace.load(tiny_vae_folder, dtype=torch.float64)
    theta = theta.double()
    if isinstance(theta, LatentGrid):
        theta = LatentGrid(theta.latents, space.decode)
    z_star = space.encode(random_image(1, 3, SIZE, SIZE, seed=5, dtype=torch.float64)).detach()
    expected = autograd_of_squared_error(theta, space, z_star)

    theta.zero_grad()
    z = space.encode(theta())
    key = NoiseKey(seed=3, step=4, sample=torch.arange(2))
    result = sds_gradient(
        z.detach(),
        DegenerateDenoiser(z_star, SCHEDULE),
        torch.tensor([100, 900]),
        key,
        weighting=UNIT,
    )
    z.backward(2 * result.gradient)
    assert_close_to_largest(gradients(theta), expected, 1e-10)


@settings(max_examples=40, deadline=None)
@given(
    t=st.lists(st.integers(0, 990), min_size=1, max_size=4),
    seed=st.integers(0, 2**64 - 1),
    step=st.integers(0, 2**32 - 1),
)
def test_no_timestep_seed_or_batch_changes_it(t: list[int], seed: int, step: int):
    batch = len(t)
    z = random_image(batch, 3, 5, 7, dtype=torch.float64)
    z_star = random_image(1, 3, 5, 7, seed=1, dtype=torch.float64)
    key = NoiseKey(seed, step, torch.arange(batch))
    denoiser = DegenerateDenoiser(z_star, SCHEDULE)
    sampled = sds_gradient(z, denoiser, torch.tensor(t), key, weighting=UNIT).gradient
    exact = exact_sds_gradient(z, denoiser, torch.tensor(t), weighting=UNIT).gradient
    assert_close_to_largest(sampled, z - z_star, 1e-10)
    assert exact.equal(z - z_star)


@pytest.mark.parametrize("t", [1, 20, 500, 979])
def test_the_epsilon_form_is_sqrt_snr_times_the_x0_form(t: int):
    z, z_star = (random_image(1, 3, 8, 8, seed=s, dtype=torch.float64) for s in (0, 1))
    denoiser = DegenerateDenoiser(z_star, SCHEDULE)
    key = NoiseKey(0, 0, torch.arange(1))
    alpha_bar = SCHEDULE.alpha_bars[t]
    epsilon_form = sds_gradient(
        z, denoiser, torch.tensor([t]), key, weighting=WEIGHTINGS["epsilon_unit"]
    )
    expected = (alpha_bar / (1 - alpha_bar)).sqrt() * (z - z_star)
    assert_close_to_largest(epsilon_form.gradient, expected, 1e-10)


@pytest.mark.parametrize("t", [1, 20, 500, 979])
@pytest.mark.parametrize("clamp", [None, 0.5], ids=["unclamped", "clamped"])
def test_castex_in_x0_form_is_dreamfusion_in_epsilon_form(t: int, clamp: float | None):
    z, z_star = (2 * random_image(2, 3, 8, 8, seed=s, dtype=torch.float64) - 1 for s in (0, 1))
    denoiser = DegenerateDenoiser(z_star, SCHEDULE)
    key = NoiseKey(0, 0, torch.arange(2))
    one, other = (
        sds_gradient(
            z, denoiser, torch.full((2,), t), key, weighting=WEIGHTINGS[name], clamp=clamp
        ).gradient
        for name in ("x0_castex", "epsilon_dreamfusion")
    )
    assert_close_to_largest(other, one, 1e-10)


@pytest.mark.parametrize("weighting", WEIGHTINGS.values(), ids=WEIGHTINGS)
def test_the_gradient_does_not_depend_on_the_sampled_noise(weighting: Weighting):
    z, z_star = (random_image(2, 3, 8, 8, seed=s, dtype=torch.float64) for s in (0, 1))
    denoiser = DegenerateDenoiser(z_star, SCHEDULE)
    t = torch.tensor([50, 950])
    one, other = (
        sds_gradient(z, denoiser, t, NoiseKey(seed, 0, torch.arange(2)), weighting=weighting)
        for seed in (0, 1)
    )
    assert_close_to_largest(other.gradient, one.gradient, 1e-10)


def test_a_clamp_that_bites_moves_the_mode_into_the_box():
    z = torch.zeros(1, 3, 4, 4, dtype=torch.float64)
    denoiser = DegenerateDenoiser(torch.full_like(z, 3.0), SCHEDULE)
    t = torch.tensor([500])
    exact = exact_sds_gradient(z, denoiser, t, weighting=UNIT, clamp=1.0)
    key = NoiseKey(0, 0, torch.arange(1))
    sampled = sds_gradient(z, denoiser, t, key, weighting=UNIT, clamp=1.0)
    torch.testing.assert_close(exact.gradient, torch.full_like(z, -1.0))
    torch.testing.assert_close(sampled.gradient, exact.gradient)


def test_the_loss_is_the_scalar_whose_derivative_the_gradient_is():
    z = random_image(2, 3, 4, 4, dtype=torch.float64).requires_grad_()
    z_star = random_image(1, 3, 4, 4, seed=1, dtype=torch.float64)
    t = torch.tensor([100, 800])
    for name, weighting in WEIGHTINGS.items():
        result = exact_sds_gradient(
            z.detach(), DegenerateDenoiser(z_star, SCHEDULE), t, weighting=weighting
        )
        alpha_bar = SCHEDULE.alpha_bar(t)
        to_x0 = (alpha_bar / (1 - alpha_bar)).sqrt() if weighting.form == "epsilon" else 1
        w = (weighting(alpha_bar) * to_x0).view(-1, 1, 1, 1)
        objective = 0.5 * (w * (z - z_star).square()).flatten(1).sum(1)
        torch.testing.assert_close(result.loss, objective.detach(), msg=name)
        (expected,) = torch.autograd.grad(objective.sum(), z)
        torch.testing.assert_close(result.gradient, expected, msg=name)
