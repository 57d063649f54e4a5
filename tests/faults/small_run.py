"""A two-stage run small enough to be killed hundreds of times, with everything a real one carries.

Stage I moves a grid of texels by SDS with drawn noise under views that the step alone decides;
stage II starts from its result, which is also its condition, and has an optimiser of its own.
"""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor

from sdslab.denoisers.degenerate import DegenerateDenoiser
from sdslab.denoisers.noise_schedule import (
    NoiseSchedule,
    UniformTimesteps,
    weighting_named,
)
from sdslab.distillation.sds import sds_gradient
from sdslab.files.atomic_write import atomic_write
from sdslab.kernels import NoiseKey, SDSResult
from sdslab.optimization.optimize import Step, optimize
from sdslab.optimization.optimizer_state import OptimizeConfig, OptimizerState
from sdslab.parameterizations.pixel import TexelGrid
from sdslab.runs.checkpoint import Checkpoints
from sdslab.runs.lock import RunLock

STAGES = (
    OptimizeConfig(40, "adam", 0.02, "cosine", adam_betas=(0.9, 0.99)),
    OptimizeConfig(30, "adam", 0.01, gradient_norm_limit=5.0),
)
EVERY = 3  # steps between checkpoints
SCHEDULE = NoiseSchedule.deepfloyd_if()
WEIGHTING = weighting_named("x0_castex")


def identity() -> dict[str, str]:
    return {"stages": repr(STAGES)}


def result_path(folder: Path) -> Path:
    return folder / "maps.safetensors"


def seen(texels: Tensor, index: int) -> Tensor:
    """What step ``index`` looks at: three channels from somewhere else each time."""
    return texels.roll((index % 8, index % 3, index % 5), (0, 1, 2)).movedim(-1, 0)[None, :3]


def gradient_of(stage: int, condition: Tensor) -> Callable[[Tensor, int], SDSResult]:
    """The stage's guidance; stage II's depends on stage I's result."""
    target = torch.rand(8, 8, 8, generator=torch.Generator().manual_seed(stage))
    if stage == 1:
        target = (target + condition) / 2
    timesteps, sample = UniformTimesteps(), torch.arange(1)

    def gradient(z: Tensor, index: int) -> SDSResult:
        key = NoiseKey(7, index, sample, stream=10 + stage)
        t = timesteps(key, index / STAGES[stage].steps)
        denoiser = DegenerateDenoiser(seen(target, index), SCHEDULE)
        result = sds_gradient(z, denoiser, t, key, weighting=WEIGHTING)
        if index in (11, 12):
            return result._replace(gradient=result.gradient * torch.nan)
        return result

    return gradient


def steps_of(
    stage: int, theta: TexelGrid, condition: Tensor, state: OptimizerState
) -> Iterator[Step]:
    def project() -> None:
        theta.texels.detach().clamp_(0, 1)

    return optimize(
        theta.parameters(),
        lambda index: seen(theta.texels, index),
        gradient_of(stage, condition),
        STAGES[stage],
        project,
        state,
    )


def save(checkpoints: Checkpoints, stage: int, condition: Tensor, state: OptimizerState) -> None:
    tensors, numbers = state.snapshot()
    checkpoints.save({**tensors, "condition": condition}, {"stage": stage, "loop": numbers})


def run(folder: Path, reached: Any = None, pause: float = 0.0) -> None:
    """Runs to the end, from the latest checkpoint if there is one.

    Args:
        folder: of the run.
        reached: memory shared with the test, told the stage and the step before each.
        pause: seconds that each step takes longer.

    Raises:
        KeyboardInterrupt: after what was reached has been saved.
    """
    with RunLock(folder):
        checkpoints = Checkpoints(folder, identity())
        saved = checkpoints.latest()
        theta = TexelGrid(torch.full((8, 8, 8), 0.5))
        condition, start, state = theta.texels.detach().clone(), 0, OptimizerState()
        if saved is not None:
            condition, start = saved.tensors["condition"], saved.state["stage"]
            state = OptimizerState(saved.tensors, saved.state["loop"])
        for stage in range(start, len(STAGES)):
            try:
                for step in steps_of(stage, theta, condition, state):
                    if reached is not None:
                        reached[:] = stage, step.index
                    if step.index % EVERY == 0:
                        save(checkpoints, stage, condition, state)
                    time.sleep(pause)
            except KeyboardInterrupt:
                save(checkpoints, stage, condition, state)
                raise
            save(checkpoints, stage, condition, state)
            condition, state = theta.texels.detach().clone(), OptimizerState()
        with atomic_write(result_path(folder)) as temporary:
            safetensors.torch.save_file({"maps": theta.texels.detach()}, temporary)
