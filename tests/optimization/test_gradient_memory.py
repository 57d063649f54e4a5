"""A gradient with a memory goes on where it was, whichever moment its checkpoint is of."""

import pytest
import torch
from torch import Tensor

from sdslab.kernels import SDSResult
from sdslab.optimization.optimize import optimize
from sdslab.optimization.optimizer_state import OptimizeConfig, OptimizerState

STEPS = 8


class RunningMean:
    """Pulls z to the running mean of all the z that it was ever shown."""

    def __init__(self) -> None:
        self.mean, self.calls = torch.zeros(()), torch.zeros((), dtype=torch.int64)
        self.memory = {"mean": self.mean, "calls": self.calls}

    def __call__(self, z: Tensor, _: int) -> SDSResult:
        self.mean.lerp_(z.mean(), 0.3 if self.calls else 1.0)
        self.calls += 1
        gradient = z - self.mean + 0.1
        count = torch.zeros(len(z), dtype=torch.int64)
        return SDSResult(gradient, gradient.square().flatten(1).sum(1), count)


def steps(theta: Tensor, gradient: RunningMean, state: OptimizerState, optimizer: str):
    config = OptimizeConfig(STEPS, optimizer, 0.1)  # type: ignore[arg-type]
    return optimize([theta], lambda _: theta.square(), gradient, config, state=state)


@pytest.mark.parametrize("optimizer", ["adam", "lbfgs"])
@pytest.mark.parametrize("stop", range(STEPS))
def test_it_ends_as_one_that_was_never_stopped(stop: int, optimizer: str):
    whole, gradient = torch.linspace(0.5, 2, 6).view(2, 3).requires_grad_(), RunningMean()
    list(steps(whole, gradient, OptimizerState(memory=gradient.memory), optimizer))

    theta, gradient = torch.linspace(0.5, 2, 6).view(2, 3).requires_grad_(), RunningMean()
    state = OptimizerState(memory=gradient.memory)
    for step in steps(theta, gradient, state, optimizer):
        if step.index == stop:
            break
    tensors, numbers = state.snapshot()
    saved = {name: tensor.clone() for name, tensor in tensors.items()}

    theta, gradient = torch.zeros(2, 3, requires_grad=True), RunningMean()
    list(steps(theta, gradient, OptimizerState(saved, numbers, gradient.memory), optimizer))
    assert theta.equal(whole)


def test_a_checkpoint_holds_what_the_step_to_come_begins_with():
    theta, gradient = torch.full((1, 2), 3.0, requires_grad=True), RunningMean()
    state = OptimizerState(memory=gradient.memory)
    loop = steps(theta, gradient, state, "adam")
    next(loop)
    during = {name: value.clone() for name, value in state.snapshot()[0].items()}
    assert (during["memory.mean"], during["memory.calls"]) == (0, 0)
    next(loop)
    during = {name: value.clone() for name, value in state.snapshot()[0].items()}
    assert (during["memory.mean"], during["memory.calls"]) == (9, 1)
    list(loop)
    assert state.snapshot()[0]["memory.calls"] == STEPS
