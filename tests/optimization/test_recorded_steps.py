"""Recorded steps are the loop's; captured where there is a GPU."""

import pytest
import torch
from torch import Tensor

from sdslab.denoisers.degenerate import DegenerateDenoiser
from sdslab.denoisers.noise_schedule import NoiseSchedule, UniformTimesteps, weighting_named
from sdslab.diffusion_space import PixelSpace
from sdslab.distillation.sds import exact_sds_gradient
from sdslab.errors import UserError
from sdslab.kernels import NoiseKey, SDSResult
from sdslab.optimization.optimize import optimize
from sdslab.optimization.optimizer_state import OptimizeConfig
from sdslab.parameterizations.pixel import PixelGrid
from tests.recorded_calls import watch_recorded_calls

NEEDS_GPU = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device"),
]
DEVICES = ["cpu", pytest.param("cuda", marks=NEEDS_GPU)]
STEPS = 12
CONFIGS = {
    "sgd": OptimizeConfig(STEPS, "sgd", 0.1),
    "adam": OptimizeConfig(STEPS, "adam", 0.05, adam_betas=(0.8, 0.95)),
    "adam, cosine": OptimizeConfig(STEPS, "adam", 0.05, "cosine"),
    "adam, a limit": OptimizeConfig(STEPS, "adam", 0.05, gradient_norm_limit=1.0),
}


def pixel_cell(device: str, config: OptimizeConfig, *, record: bool):
    """The toy study's pixel cell, with a weight that depends on t; its θ and its steps."""
    space, schedule = PixelSpace(), NoiseSchedule.deepfloyd_if()
    image = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)).to(device)
    theta = PixelGrid.uniform_noise((1, 3, 8, 8), seed=1).to(device)
    denoiser = DegenerateDenoiser(space.encode(image), schedule)
    weighting = weighting_named("x0_castex")
    t = torch.zeros(1, dtype=torch.int64, device=device)

    def inputs(index: int) -> Tensor:
        key = NoiseKey(0, index, torch.zeros(1, dtype=torch.int64))
        return t.copy_(UniformTimesteps()(key, index / config.steps))

    def gradient(z: Tensor, t: Tensor) -> SDSResult:
        return exact_sds_gradient(z, denoiser, t, weighting=weighting)

    steps = optimize(
        theta.parameters(),
        lambda _: space.encode(theta()),
        gradient,
        config,
        inputs=inputs,
        record=record,
    )
    return theta, steps


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CONFIGS)
def test_they_are_the_loop_s(name: str, device: str):
    theta, steps = pixel_cell(device, CONFIGS[name], record=False)
    before = theta.values.detach().clone()
    losses = [step.loss for step in steps]
    recorded, recorded_steps = pixel_cell(device, CONFIGS[name], record=True)
    recorded_losses = [step.loss for step in recorded_steps]
    # The rate is a float32 tensor here, and a float64 number in the loop.
    torch.testing.assert_close(recorded.values, theta.values, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(recorded_losses, losses, rtol=1e-5, atol=1e-6)
    assert not theta.values.allclose(before)


def test_nothing_that_is_recorded_needs_the_host(monkeypatch: pytest.MonkeyPatch):
    calls = watch_recorded_calls(monkeypatch)
    list(pixel_cell("cpu", CONFIGS["adam, cosine"], record=True)[1])
    assert len(calls) == 2 * (STEPS - 1)
    assert min(calls) > 0


def test_a_line_search_is_refused():
    _, steps = pixel_cell("cpu", OptimizeConfig(STEPS, "lbfgs"), record=True)
    with pytest.raises(UserError, match="must be adam's or sgd's, got lbfgs"):
        next(steps)
