"""The only optimisation loop of the project."""

import math
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from sdslab.errors import UserError
from sdslab.interrupts import interrupts_held
from sdslab.kernels import SDSResult
from sdslab.optimizer_state import OptimizerState

Optimizer = Literal["adam", "sgd", "lbfgs"]
LearningRateSchedule = Literal["constant", "cosine", "step"]


@dataclass(frozen=True)
class OptimizeConfig:
    """How θ is moved along the gradient."""

    steps: int
    """Steps at most."""
    optimizer: Optimizer = "adam"
    """Adam, plain gradient descent, or L-BFGS with strong Wolfe line search."""
    learning_rate: float = 0.01
    """At the first step."""
    learning_rate_schedule: LearningRateSchedule = "constant"
    """"constant", "cosine" (to zero at the last step) or "step" (×0.9 every 100, as CasTex)."""
    gradient_norm_limit: float = math.inf
    """θ's gradient is scaled down to this norm where it is longer."""
    converged_below: float = 0.0
    """Stop when the norm of θ's gradient is at most this: 0 stops at the exact optimum only."""
    adam_betas: tuple[float, float] = (0.9, 0.999)
    """Decay of Adam's running means of the gradient and of its square."""
    adam_eps: float = 1e-8
    """Gradients much smaller than this move θ little: Adam scales all others alike."""
    nonfinite_limit: int = 10
    """Stop when the model's output is not finite in so many steps in a row; fewer are skipped."""

    def __post_init__(self) -> None:
        for name, choices in (
            ("optimizer", get_args(Optimizer)),
            ("learning_rate_schedule", get_args(LearningRateSchedule)),
        ):
            if getattr(self, name) not in choices:
                raise UserError(
                    f"{name} must be one of {', '.join(choices)}, got {getattr(self, name)!r}"
                )
        if self.steps < 1:
            raise UserError(f"steps must be a positive number, got {self.steps}")
        if not (math.isfinite(self.learning_rate) and self.learning_rate > 0):
            raise UserError(f"learning_rate must be a positive number, got {self.learning_rate}")
        if not self.gradient_norm_limit > 0:
            raise UserError(
                f"gradient_norm_limit must be a positive number, got {self.gradient_norm_limit}"
            )
        if self.optimizer == "lbfgs" and math.isfinite(self.gradient_norm_limit):
            raise UserError(
                f"lbfgs must have no gradient_norm_limit, got {self.gradient_norm_limit}: its line "
                f"search needs the true gradient"
            )
        if not 0 <= self.converged_below < math.inf:
            raise UserError(
                f"converged_below must be a number of at least 0, got {self.converged_below}"
            )
        if not all(0 <= beta < 1 for beta in self.adam_betas):
            raise UserError(f"adam_betas must be within [0, 1), got {self.adam_betas}")
        if not 0 <= self.adam_eps < math.inf:
            raise UserError(f"adam_eps must be a number of at least 0, got {self.adam_eps}")
        if self.nonfinite_limit < 1:
            raise UserError(
                f"nonfinite_limit must be a positive number of steps, got {self.nonfinite_limit}"
            )


@dataclass(frozen=True)
class Step:
    """What happened in one step, before θ moved.

    Attributes:
        index: from 0; the first step sees the initial θ.
        loss: the distillation objective, summed over the batch.
        gradient_norm: L2 norm of θ's gradient.
        z: what was distilled, detached.
        nonfinite: NaN and infinite values that the model or the gradient held.
        seconds: since the loop began, earlier processes included.
        skipped: θ does not move, as the model's output is not finite; `loss` may be NaN then.
    """

    index: int
    loss: float
    gradient_norm: float
    z: Tensor
    nonfinite: int
    seconds: float
    skipped: bool = False


def optimize(
    theta: Iterable[Tensor],
    diffused: Callable[[int], Tensor],
    gradient: Callable[[Tensor, int], SDSResult],
    config: OptimizeConfig,
    project: Callable[[], None] | None = None,
    state: OptimizerState | None = None,
) -> Iterator[Step]:
    """Moves θ along a distillation gradient, step by step.

    Args:
        theta: the parameters.
        diffused: from the step index to z = encode(render(g(θ))), attached to θ's graph.
        gradient: from (z detached, step index) to the gradient with respect to z.
        config: optimiser, learning rate and when to stop.
        project: moves θ, in place, back into its valid range after each update.
        state: what to go on from, θ included; it follows the loop, so that its ``snapshot()`` can
            be saved after any step, at the end or after an exception. None starts anew.

    Yields:
        One `Step` before each update of θ; the loop ends after ``config.steps`` of them or on
        convergence. A caller may stop after any of them: θ is whole then, also on Ctrl-C and
        SIGTERM, which are held back to the end of the step.

    Raises:
        FloatingPointError: z or the gradient of θ is not finite, or the model's output was not in
            ``config.nonfinite_limit`` steps in a row; θ is left as it was.
        KeyboardInterrupt: Ctrl-C, or as `sdslab.interrupts.Terminated` SIGTERM, after the step.
    """
    parameters = list(theta)
    optimizer = _optimizer(parameters, config)
    state = state or OptimizerState()
    state.attach(parameters, optimizer)
    latest: tuple[SDSResult, Tensor] | None = None

    def backward() -> float:
        nonlocal latest
        optimizer.zero_grad()
        z = diffused(index)
        result = gradient(z.detach(), index)
        z.backward(result.gradient)
        latest = result, z.detach()
        return result.loss.sum().item()

    start = time.perf_counter() - state.seconds
    with interrupts_held() as raise_if_interrupted:
        for index in range(state.index, config.steps):
            raise_if_interrupted()
            for group in optimizer.param_groups:
                group["lr"] = learning_rate_at(config, index)
            loss = backward()
            assert latest is not None
            result, z = latest
            nonfinite = int(result.nonfinite.sum())
            gradients = [p.grad for p in parameters if p.grad is not None]
            norm = torch.nn.utils.get_total_norm(gradients).item()
            skipped = nonfinite > 0 or not math.isfinite(norm)
            if skipped:
                _raise_if_diverged(result, z, norm, index, config)
                if state.skipped_in_a_row + 1 >= config.nonfinite_limit:
                    raise FloatingPointError(
                        f"the model's output must be finite, got NaN or infinite values in "
                        f"{state.skipped_in_a_row + 1} steps in a row ({nonfinite} at step "
                        f"{index}, where |z| is up to {z.abs().max():.3g}); compute in float32 or "
                        f"bfloat16, or lower the guidance scale or the learning rate "
                        f"({config.learning_rate:g})"
                    )
            state.seconds = time.perf_counter() - start - state.idle_seconds
            yield Step(index, loss, norm, z, nonfinite, state.seconds, skipped)
            if norm <= config.converged_below and not skipped:
                break
            if not skipped:
                if norm > config.gradient_norm_limit:
                    torch._foreach_mul_(gradients, config.gradient_norm_limit / norm)
                # L-BFGS evaluates again along its search direction.
                optimizer.step(backward if config.optimizer == "lbfgs" else None)
                if project is not None:
                    project()
            state.skipped += skipped
            state.skipped_in_a_row = state.skipped_in_a_row + 1 if skipped else 0
            state.index = index + 1
        raise_if_interrupted()


def _raise_if_diverged(
    result: SDSResult, z: Tensor, norm: float, index: int, config: OptimizeConfig
) -> None:
    """Tells θ's own failure, which no other step mends, from the model's."""
    if not z.isfinite().all():
        what = "z = encode(render(g(θ))) must be finite, got NaN or infinite values"
    elif result.gradient.isfinite().all() and not math.isfinite(norm):
        what = f"the gradient of θ must be finite, got a norm of {norm}"
    else:
        return
    raise FloatingPointError(
        f"{what} at step {index}; lower the learning rate ({config.learning_rate:g}) or use float64"
    )


def _optimizer(parameters: list[Tensor], config: OptimizeConfig) -> torch.optim.Optimizer:
    match config.optimizer:
        case "adam":
            return torch.optim.Adam(
                parameters,
                lr=config.learning_rate,
                betas=config.adam_betas,
                eps=config.adam_eps,
                fused=True,
            )
        case "sgd":
            return torch.optim.SGD(parameters, lr=config.learning_rate)
        case "lbfgs":
            return torch.optim.LBFGS(
                parameters, lr=config.learning_rate, max_iter=1, line_search_fn="strong_wolfe"
            )


def learning_rate_at(config: OptimizeConfig, index: int) -> float:
    """Of step ``index``, from 0."""
    return config.learning_rate * _decay(config, index)


def _decay(config: OptimizeConfig, index: int) -> float:
    match config.learning_rate_schedule:
        case "constant":
            return 1.0
        case "cosine":
            return 0.5 + 0.5 * math.cos(math.pi * index / config.steps)
        case "step":
            return 0.9 ** (index // 100)
