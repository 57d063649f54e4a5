import itertools
import math
import os
import signal
import threading

import pytest
import torch
from torch import Tensor

from sdslab.errors import UserError
from sdslab.kernels import SDSResult
from sdslab.optimize import OptimizeConfig, optimize
from tests.conftest import random_image


class Quadratic:
    """½‖z − z*‖² of z = θ: the toy study in pixel space."""

    def __init__(self) -> None:
        self.z_star = random_image(1, 3, 4, 4, seed=1, dtype=torch.float64)
        self.theta = torch.zeros_like(self.z_star, requires_grad=True)

    def gradient(self, z: Tensor, index: int) -> SDSResult:  # noqa: ARG002
        difference = z - self.z_star
        loss = 0.5 * difference.square().flatten(1).sum(1)
        return SDSResult(difference, loss, torch.zeros(1, dtype=torch.int64))

    def run(self, config: OptimizeConfig):
        return optimize([self.theta], lambda _index: self.theta * 1, self.gradient, config)

    def error(self) -> float:
        return (self.theta - self.z_star).abs().max().item()


def test_gradient_descent_contracts_at_the_rate_of_the_theory():
    quadratic = Quadratic()
    losses = [step.loss for step in quadratic.run(OptimizeConfig(30, "sgd", 0.25))]
    rates = [math.sqrt(b / a) for a, b in itertools.pairwise(losses)]
    assert rates == pytest.approx([0.75] * 29, rel=1e-9)


@pytest.mark.parametrize(
    "config",
    [
        OptimizeConfig(400, "adam", 0.1, "cosine"),
        OptimizeConfig(200, "sgd", 0.5),
        OptimizeConfig(5, "lbfgs", 1.0),
    ],
    ids=lambda config: config.optimizer,
)
def test_every_optimizer_reaches_the_mode(config: OptimizeConfig):
    quadratic = Quadratic()
    steps = list(quadratic.run(config))
    assert quadratic.error() < 1e-4
    assert steps[0].loss > steps[-1].loss
    assert [step.index for step in steps] == list(range(len(steps)))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", {0: 1.0, 199: 1.0}),
        ("cosine", {0: 1.0, 100: 0.5, 199: 0.5 + 0.5 * math.cos(math.pi * 199 / 200)}),
        ("step", {0: 1.0, 99: 1.0, 100: 0.9, 199: 0.9}),
    ],
)
def test_learning_rate_schedules(schedule, expected: dict[int, float]):
    # Plain gradient descent with a gradient of one moves θ by the learning rate.
    theta = torch.zeros(1, 1, dtype=torch.float64, requires_grad=True)
    one = SDSResult(torch.ones(1, 1).double(), torch.zeros(1), torch.zeros(1, dtype=torch.int64))
    config = OptimizeConfig(200, "sgd", 1.0, schedule)
    steps = optimize([theta], lambda _index: theta * 1, lambda _z, _index: one, config)
    positions = [step.z.item() for step in steps] + [theta.item()]
    moves = [a - b for a, b in itertools.pairwise(positions)]
    for index, factor in expected.items():
        assert moves[index] == pytest.approx(factor), index


def test_it_stops_at_the_optimum_and_only_there():
    quadratic = Quadratic()
    with torch.no_grad():
        quadratic.theta.copy_(quadratic.z_star)
    assert len(list(quadratic.run(OptimizeConfig(50, "sgd", 0.5)))) == 1
    loose = Quadratic()
    steps = list(loose.run(OptimizeConfig(500, "sgd", 0.5, converged_below=1e-3)))
    assert steps[-1].gradient_norm <= 1e-3 < steps[-2].gradient_norm


def test_long_gradients_are_scaled_down():
    quadratic = Quadratic()
    list(quadratic.run(OptimizeConfig(1, "sgd", 1.0, gradient_norm_limit=0.125)))
    assert quadratic.theta.norm().item() == pytest.approx(0.125)


def test_a_non_finite_gradient_stops_with_theta_untouched():
    quadratic = Quadratic()

    def poisoned(z: Tensor, index: int) -> SDSResult:
        result = quadratic.gradient(z, index)
        if index == 3:
            return SDSResult(result.gradient * math.nan, result.loss, torch.tensor([48]))
        return result

    loop = optimize(
        [quadratic.theta],
        lambda _index: quadratic.theta * 1,
        poisoned,
        OptimizeConfig(9, "sgd", 0.5),
    )
    with pytest.raises(FloatingPointError, match=r"at step 3 \(48 non-finite"):
        list(loop)
    three_steps = Quadratic()
    list(three_steps.run(OptimizeConfig(3, "sgd", 0.5)))
    assert quadratic.theta.equal(three_steps.theta)


@pytest.mark.parametrize("at", [0, 4, 8], ids=["first", "middle", "last"])
def test_ctrl_c_waits_for_the_end_of_the_step(at: int):
    quadratic = Quadratic()

    def interrupted(z: Tensor, index: int) -> SDSResult:
        if index == at:
            os.kill(os.getpid(), signal.SIGINT)
        return quadratic.gradient(z, index)

    handler = signal.getsignal(signal.SIGINT)
    loop = optimize(
        [quadratic.theta],
        lambda _index: quadratic.theta * 1,
        interrupted,
        OptimizeConfig(9, "sgd", 0.5),
    )
    with pytest.raises(KeyboardInterrupt):
        list(loop)
    uninterrupted = Quadratic()
    list(uninterrupted.run(OptimizeConfig(at + 1, "sgd", 0.5)))
    assert quadratic.theta.equal(uninterrupted.theta)
    assert signal.getsignal(signal.SIGINT) is handler


def test_it_runs_outside_the_main_thread():
    quadratic = Quadratic()
    thread = threading.Thread(target=lambda: list(quadratic.run(OptimizeConfig(60, "sgd", 0.5))))
    thread.start()
    thread.join()
    assert quadratic.error() < 1e-12


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"optimizer": "adamw"}, "optimizer must be one of adam, sgd, lbfgs, got 'adamw'"),
        ({"learning_rate_schedule": "linear"}, "one of constant, cosine, step"),
        ({"steps": 0}, "steps must be a positive number, got 0"),
        ({"learning_rate": -1.0}, "learning_rate must be a positive number"),
        ({"learning_rate": math.nan}, "learning_rate must be a positive number"),
        ({"gradient_norm_limit": -0.1}, "gradient_norm_limit must be a positive number"),
        ({"optimizer": "lbfgs", "gradient_norm_limit": 1.0}, "must have no gradient_norm_limit"),
        ({"converged_below": math.nan}, "converged_below must be a number of at least 0"),
    ],
)
def test_bad_configurations_are_refused(wrong: dict, message: str):
    with pytest.raises(UserError, match=message):
        OptimizeConfig(**{"steps": 10, **wrong})


def test_theta_is_projected_after_each_update():
    theta = torch.nn.Parameter(torch.tensor([0.0]))
    seen = []

    def gradient(z: Tensor, index: int) -> SDSResult:
        seen.append((index, z.item()))
        return SDSResult(torch.full_like(z, -1.0), torch.zeros(1), torch.zeros(1))

    def project() -> None:
        theta.detach().clamp_(max=1.5)

    list(optimize([theta], lambda _: theta * 1, gradient, OptimizeConfig(3, "sgd", 1.0), project))
    assert seen == [(0, 0.0), (1, 1.0), (2, 1.5)]
    assert theta.item() == 1.5
