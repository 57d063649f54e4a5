import itertools
import json
import math
import os
import signal
import threading

import pytest
import safetensors.torch
import torch
from torch import Tensor

from sdslab.errors import UserError
from sdslab.kernels import SDSResult
from sdslab.optimization.optimize import optimize
from sdslab.optimization.optimizer_state import OptimizeConfig, OptimizerState
from sdslab.shell.process import Terminated, exit_code
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


def poisoned(quadratic: Quadratic, at: range, value: float):
    """The gradient of ``quadratic``, with one bad value at some steps."""

    def gradient(z: Tensor, index: int) -> SDSResult:
        result = quadratic.gradient(z, index)
        if index in at:
            result.gradient[0, 1, 2, 3] = value
            return SDSResult(result.gradient, result.loss, torch.tensor([1]))
        return result

    return gradient


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("optimizer", ["sgd", "adam", "lbfgs"])
def test_a_step_whose_model_output_is_not_finite_is_skipped(optimizer, value: float):
    quadratic, config = Quadratic(), OptimizeConfig(9, optimizer, 0.5, nonfinite_limit=3)
    state = OptimizerState()
    bad = poisoned(quadratic, range(3, 5), value)
    loop = optimize([quadratic.theta], lambda _: quadratic.theta * 1, bad, config, None, state)
    steps = list(loop)
    assert [step.index for step in steps if step.skipped] == [3, 4]
    assert [step.nonfinite for step in steps] == [0, 0, 0, 1, 1, 0, 0, 0, 0]
    assert (state.index, state.skipped, state.skipped_in_a_row) == (9, 2, 0)
    seven_steps = Quadratic()
    list(seven_steps.run(OptimizeConfig(7, optimizer, 0.5)))
    assert quadratic.theta.equal(seven_steps.theta)


def test_non_finite_values_that_a_clamp_hid_are_skipped_as_well():
    quadratic = Quadratic()

    def gradient(z: Tensor, index: int) -> SDSResult:
        return quadratic.gradient(z, index)._replace(nonfinite=torch.tensor([int(index == 1)]))

    config = OptimizeConfig(3, "sgd", 0.5)
    steps = list(optimize([quadratic.theta], lambda _: quadratic.theta * 1, gradient, config))
    assert [step.skipped for step in steps] == [False, True, False]
    assert steps[1].z.equal(steps[2].z)


def test_too_many_bad_steps_in_a_row_stop_with_theta_untouched():
    quadratic, config = Quadratic(), OptimizeConfig(99, "sgd", 0.5, nonfinite_limit=4)
    state, seen = OptimizerState(), []
    bad = poisoned(quadratic, range(3, 99), math.nan)
    loop = optimize([quadratic.theta], lambda _: quadratic.theta * 1, bad, config, None, state)
    with pytest.raises(
        FloatingPointError, match=r"in 4 steps in a row \(1 at step 6, where \|z\| is"
    ):
        seen.extend(step.skipped for step in loop)
    assert seen == [False, False, False, True, True, True]
    assert (state.index, state.skipped, state.skipped_in_a_row) == (6, 3, 3)
    three_steps = Quadratic()
    list(three_steps.run(OptimizeConfig(3, "sgd", 0.5)))
    assert quadratic.theta.equal(three_steps.theta)


def test_bad_steps_apart_do_not_stop_it():
    quadratic, config = Quadratic(), OptimizeConfig(60, "sgd", 0.5, nonfinite_limit=2)
    state = OptimizerState()
    bad = poisoned(quadratic, range(0, 60, 2), math.nan)
    list(optimize([quadratic.theta], lambda _: quadratic.theta * 1, bad, config, None, state))
    assert state.skipped == 30
    assert quadratic.error() < 1e-8


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_a_material_that_is_not_finite_stops_at_once(value: float):
    quadratic = Quadratic()

    def break_material() -> None:
        quadratic.theta.detach()[0, 0, 0, 0] = value

    config = OptimizeConfig(9, "sgd", 0.5)
    loop = optimize(
        [quadratic.theta], lambda _: quadratic.theta * 1, quadratic.gradient, config, break_material
    )
    next(loop)
    with pytest.raises(FloatingPointError, match=r"z = .* must be finite, .* at step 1; lower the"):
        next(loop)


def test_a_diverging_theta_stops_at_once():
    quadratic = Quadratic()
    seen = []
    with pytest.raises(FloatingPointError, match="lower the learning rate"):
        seen.extend(step.skipped for step in quadratic.run(OptimizeConfig(99, "sgd", 1e20)))
    assert seen
    assert not any(seen)


def interrupting(quadratic: Quadratic, at: int, *numbers: int):
    def gradient(z: Tensor, index: int) -> SDSResult:
        if index == at:
            for number in numbers:
                os.kill(os.getpid(), number)
        return quadratic.gradient(z, index)

    return gradient


@pytest.mark.parametrize("at", [0, 4, 8], ids=["first", "middle", "last"])
@pytest.mark.parametrize(
    ("number", "interrupt", "code"),
    [(signal.SIGINT, KeyboardInterrupt, 130), (signal.SIGTERM, Terminated, 143)],
    ids=["ctrl_c", "sigterm"],
)
def test_an_interrupt_waits_for_the_end_of_the_step(number: int, interrupt, code: int, at: int):
    quadratic, state = Quadratic(), OptimizerState()
    handlers = [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)]
    loop = optimize(
        [quadratic.theta],
        lambda _index: quadratic.theta * 1,
        interrupting(quadratic, at, number),
        OptimizeConfig(9, "sgd", 0.5),
        None,
        state,
    )
    with pytest.raises(KeyboardInterrupt) as caught:
        list(loop)
    assert caught.type is interrupt
    assert exit_code(caught.value) == code
    uninterrupted = Quadratic()
    list(uninterrupted.run(OptimizeConfig(at + 1, "sgd", 0.5)))
    assert quadratic.theta.equal(uninterrupted.theta)
    assert state.index == at + 1
    assert [signal.getsignal(n) for n in (signal.SIGINT, signal.SIGTERM)] == handlers


def test_a_second_interrupt_does_not_wait():
    quadratic, state = Quadratic(), OptimizerState()
    bad = interrupting(quadratic, 2, signal.SIGINT, signal.SIGTERM)
    config = OptimizeConfig(9, "sgd", 0.5)
    loop = optimize([quadratic.theta], lambda _: quadratic.theta * 1, bad, config, None, state)
    with pytest.raises(Terminated):
        list(loop)
    assert state.index == 2


class Network:
    """A small convolutional θ under noise and views that the step index alone decides."""

    def __init__(self, config: OptimizeConfig) -> None:
        self.config = config
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.net = torch.nn.Sequential(
                torch.nn.Conv2d(3, 8, 3, padding=1),
                torch.nn.BatchNorm2d(8),
                torch.nn.Tanh(),
                torch.nn.Conv2d(8, 3, 1),
            )
        if config.optimizer != "lbfgs":  # torch's own cannot take this layout
            for p in self.net.parameters():
                if p.ndim == 4:
                    p.data = p.data.contiguous(memory_format=torch.channels_last)
        self.input = random_image(1, 3, 8, 8)
        self.z_star = random_image(1, 3, 8, 8, seed=1)

    def loop(self, state: OptimizerState):
        def gradient(z: Tensor, index: int) -> SDSResult:
            noise = random_image(1, 3, 8, 8, seed=index)
            if index == 2:
                noise = noise * math.nan
            difference = z - self.z_star - 0.1 * noise
            loss = 0.5 * difference.square().flatten(1).sum(1)
            return SDSResult(difference, loss, (~difference.isfinite()).sum().view(1))

        return optimize(
            self.net.parameters(),
            lambda _: self.net(self.input),
            gradient,
            self.config,
            None,
            state,
        )


def kept_on_disk(state: OptimizerState) -> OptimizerState:
    tensors, numbers = state.snapshot()
    return OptimizerState(
        safetensors.torch.load(safetensors.torch.save(tensors)), json.loads(json.dumps(numbers))
    )


@pytest.mark.parametrize(
    "config",
    [
        OptimizeConfig(7, "adam", 0.1, "cosine", gradient_norm_limit=0.5),
        OptimizeConfig(7, "sgd", 0.01, "step"),
        OptimizeConfig(7, "lbfgs", 0.5),
    ],
    ids=lambda config: config.optimizer,
)
def test_a_resumed_run_is_the_uninterrupted_one_bit_for_bit(config: OptimizeConfig):
    straight = Network(config)
    expected = [(s.index, s.loss, s.skipped) for s in straight.loop(OptimizerState())]
    for stop in range(8):
        state = OptimizerState()
        steps = Network(config).loop(state)
        seen = [next(steps) for _ in range(stop)]
        if stop:  # at a yielded step, which is taken again
            assert state.index == stop - 1
            state = kept_on_disk(state)
        second = Network(config)
        seen = [*seen[:-1], *second.loop(state)]
        assert json.dumps([(s.index, s.loss, s.skipped) for s in seen]) == json.dumps(expected)
        for a, b in zip(second.net.parameters(), straight.net.parameters(), strict=True):
            assert a.equal(b)
        assert (state.index, state.skipped) == (7, 1)


def test_the_state_at_the_end_takes_no_further_step():
    config, state = OptimizeConfig(4, "adam"), OptimizerState()
    list(Network(config).loop(state))
    assert list(Network(config).loop(kept_on_disk(state))) == []


def test_the_state_counts_the_seconds_of_all_processes():
    quadratic, state = Quadratic(), OptimizerState()
    state.seconds = 1000.0
    config = OptimizeConfig(3, "sgd")
    steps = optimize(
        [quadratic.theta], lambda _: quadratic.theta * 1, quadratic.gradient, config, None, state
    )
    assert 1000 < next(steps).seconds < 1100


def test_the_time_that_the_caller_holds_the_loop_up_does_not_count(
    monkeypatch: pytest.MonkeyPatch,
):
    now = [0.0]
    monkeypatch.setattr("sdslab.optimization.optimize.time.perf_counter", lambda: now[0])
    quadratic, state, seconds = Quadratic(), OptimizerState(), []
    loop = optimize(
        [quadratic.theta],
        lambda _: quadratic.theta * 1,
        quadratic.gradient,
        OptimizeConfig(3, "sgd"),
        None,
        state,
    )
    for step in loop:
        seconds.append(step.seconds)
        now[0] += 7.0  # a step takes two seconds, and the caller five more
        state.idle_seconds += 5.0
    assert seconds == [0.0, 2.0, 4.0]


def test_bad_steps_in_a_row_are_counted_on_after_a_resume():
    quadratic, config = Quadratic(), OptimizeConfig(9, "sgd", 0.5, nonfinite_limit=4)
    bad = poisoned(quadratic, range(1, 99), math.nan)

    def loop(state: OptimizerState):
        return optimize([quadratic.theta], lambda _: quadratic.theta * 1, bad, config, None, state)

    state = OptimizerState()
    steps = loop(state)
    for _ in range(4):
        next(steps)
    assert (state.index, state.skipped_in_a_row) == (3, 2)
    again, seen = kept_on_disk(state), []
    with pytest.raises(FloatingPointError, match=r"in 4 steps in a row \(1 at step 4"):
        seen.extend(step.index for step in loop(again))
    assert seen == [3]


def test_a_state_of_other_parameters_is_refused():
    state = OptimizerState()
    list(Network(OptimizeConfig(1)).loop(state))
    quadratic = Quadratic()
    loop = optimize(
        [quadratic.theta],
        lambda _: quadratic.theta * 1,
        quadratic.gradient,
        OptimizeConfig(3),
        None,
        kept_on_disk(state),
    )
    with pytest.raises(ValueError, match="saved state must be of parameters of shapes"):
        next(loop)


def test_a_state_that_was_not_taken_up_is_still_what_was_saved():
    state = OptimizerState()
    list(Network(OptimizeConfig(2)).loop(state))
    tensors, numbers = state.snapshot()
    again = OptimizerState(tensors, numbers).snapshot()
    assert again == (tensors, numbers)


def test_a_state_cannot_be_saved_before_the_loop_began():
    with pytest.raises(RuntimeError, match="must have begun"):
        OptimizerState().snapshot()


def test_adam_uses_the_betas_that_it_is_given():
    quadratic = Quadratic()
    beta_1, beta_2, rate = 0.7, 0.95, 0.03
    list(quadratic.run(OptimizeConfig(5, "adam", rate, adam_betas=(beta_1, beta_2))))
    theta = torch.zeros_like(quadratic.z_star)
    mean, square = torch.zeros_like(theta), torch.zeros_like(theta)
    for step in range(1, 6):  # Kingma & Ba 2015, Algorithm 1
        gradient = theta - quadratic.z_star
        mean = beta_1 * mean + (1 - beta_1) * gradient
        square = beta_2 * square + (1 - beta_2) * gradient**2
        root = (square / (1 - beta_2**step)).sqrt() + 1e-8
        theta = theta - rate * (mean / (1 - beta_1**step)) / root
    assert (quadratic.theta - theta).abs().max().item() < 1e-14


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
        ({"adam_betas": (0.9, 1.0)}, "adam_betas must be within"),
        ({"nonfinite_limit": 0}, "nonfinite_limit must be a positive number"),
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
