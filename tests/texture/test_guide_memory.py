"""A guide with a memory goes on where it was, whichever moment its checkpoint is of."""

from typing import Any

import pytest
import torch
from torch import Tensor

from sdslab.kernels import SDSResult
from sdslab.optimization.optimize import optimize
from sdslab.optimization.optimize_config import OptimizeConfig
from sdslab.optimization.optimizer_state import OptimizerState
from sdslab.texture.guide_memory import GuideMemory

STEPS = 8
NOTHING: Any = None  # the guide here looks at neither scene nor surface


class RunningMean:
    """Pulls z to the running mean of all the z that it was ever shown."""

    def __init__(self) -> None:
        self.mean, self.calls = torch.zeros(()), torch.zeros((), dtype=torch.int64)

    def __call__(self, z: Tensor, *_: object) -> SDSResult:
        self.mean.lerp_(z.mean(), 0.3 if self.calls else 1.0)
        self.calls += 1
        gradient = z - self.mean + 0.1
        count = torch.zeros(len(z), dtype=torch.int64)
        return SDSResult(gradient, gradient.square().flatten(1).sum(1), count)

    def memory(self) -> GuideMemory:
        return GuideMemory(self, {"mean": self.mean, "calls": self.calls})


def steps(theta: Tensor, guide: GuideMemory, state: OptimizerState, optimizer: str):
    def gradient(z: Tensor, index: int) -> SDSResult:
        return guide(z, index, NOTHING, NOTHING)

    config = OptimizeConfig(STEPS, optimizer, 0.1)  # type: ignore[arg-type]
    return optimize([theta], lambda _: theta.square(), gradient, config, state=state)


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
@pytest.mark.parametrize("stop", range(STEPS))
def test_it_ends_as_one_that_was_never_stopped(stop: int, optimizer: str):
    whole = torch.linspace(0.5, 2, 6).view(2, 3).requires_grad_()
    list(steps(whole, RunningMean().memory(), OptimizerState(), optimizer))

    theta = torch.linspace(0.5, 2, 6).view(2, 3).requires_grad_()
    guide, state = RunningMean().memory(), OptimizerState()
    for step in steps(theta, guide, state, optimizer):
        if step.index == stop:
            break
    tensors, numbers = state.snapshot()
    saved = {name: tensor.clone() for name, tensor in (tensors | guide.snapshot(stop)).items()}

    theta = torch.zeros(2, 3, requires_grad=True)
    guide = RunningMean().memory()
    guide.restore(saved)
    list(steps(theta, guide, OptimizerState(saved, numbers), optimizer))
    assert theta.equal(whole)


def test_between_two_steps_it_is_what_the_last_one_left():
    source = RunningMean()
    guide = source.memory()
    guide(torch.full((1, 2), 3.0), 4, NOTHING, NOTHING)
    assert guide.snapshot(4) == {"memory.mean": torch.tensor(0.0), "memory.calls": torch.tensor(0)}
    assert guide.snapshot(5)["memory.mean"] == 3
    assert guide.snapshot(5)["memory.calls"] == 1
