"""Steps from static buffers are the loop's steps; captured where there is a GPU."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from sdslab.denoisers.degenerate import DegenerateDenoiser
from sdslab.denoisers.noise_schedule import (
    NoiseSchedule,
    UniformTimesteps,
    weighting_named,
)
from sdslab.diffusion_space import PixelSpace
from sdslab.distillation.sds import exact_sds_gradient
from sdslab.errors import UserError
from sdslab.kernels import NoiseKey, SDSResult
from sdslab.optimization.optimize import optimize
from sdslab.optimization.optimize_config import OptimizeConfig
from sdslab.optimization.recorded_descent import RecordedDescent
from sdslab.parameterizations.pixel import PixelGrid

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
}


def pixel_cell(
    device: str,
) -> tuple[PixelGrid, Callable[[], Tensor], Callable[[Tensor, Tensor], SDSResult], Tensor]:
    """The toy study's pixel cell, with a weight that depends on t."""
    space = PixelSpace()
    generator = torch.Generator().manual_seed(0)
    image = torch.rand(1, 3, 8, 8, generator=generator).to(device)
    theta = PixelGrid.uniform_noise((1, 3, 8, 8), seed=1).to(device)
    denoiser = DegenerateDenoiser(space.encode(image), NoiseSchedule.deepfloyd_if())
    weighting = weighting_named("x0_castex")

    def gradient(z: Tensor, t: Tensor) -> SDSResult:
        return exact_sds_gradient(z, denoiser, t, weighting=weighting)

    timesteps = torch.stack(
        [
            UniformTimesteps()(NoiseKey(0, step, torch.zeros(1, dtype=torch.int64)), step / STEPS)
            for step in range(STEPS)
        ]
    ).to(device)
    return theta, lambda: space.encode(theta()), gradient, timesteps


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", CONFIGS)
def test_its_steps_are_the_loop_s(name: str, device: str):
    config = CONFIGS[name]
    theta, diffused, gradient, timesteps = pixel_cell(device)
    losses = [
        step.loss
        for step in optimize(
            theta.parameters(),
            lambda _: diffused(),
            lambda z, index: gradient(z, timesteps[index]),
            config,
        )
    ]
    recorded, diffused, gradient, timesteps = pixel_cell(device)
    descent = RecordedDescent(recorded.parameters(), diffused, gradient, timesteps, config)
    for _ in range(STEPS):
        descent.step()
    assert descent.index == STEPS
    # The rate is a float32 tensor here, and a float64 number in the loop.
    torch.testing.assert_close(recorded.values, theta.values, rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(descent.losses.cpu(), torch.tensor(losses), rtol=1e-5, atol=1e-6)
    assert not theta.values.allclose(pixel_cell(device)[0].values)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_a_step_is_one_graph_and_no_call_waits_for_it():
    theta, diffused, gradient, timesteps = pixel_cell("cuda")
    descent = RecordedDescent(
        theta.parameters(), diffused, gradient, timesteps, CONFIGS["adam, cosine"]
    )
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(STEPS):
            descent.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")
    assert descent.index == STEPS


def test_what_the_device_cannot_decide_alone_is_refused():
    theta, diffused, gradient, timesteps = pixel_cell("cpu")
    for config in (
        OptimizeConfig(STEPS, "lbfgs"),
        OptimizeConfig(STEPS, gradient_norm_limit=1.0),
        OptimizeConfig(STEPS, converged_below=1e-3),
    ):
        with pytest.raises(UserError, match="must be adam or sgd without limits"):
            RecordedDescent(theta.parameters(), diffused, gradient, timesteps, config)
    with pytest.raises(ValueError, match="a row for each of 13 steps, got 12"):
        RecordedDescent(
            theta.parameters(), diffused, gradient, timesteps, OptimizeConfig(STEPS + 1)
        )
