"""How θ is moved: which optimiser, how far, and for how long."""

import math
from dataclasses import dataclass
from typing import Literal, get_args

from sdslab.errors import UserError

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
    """Learning rate at the first step."""
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


def learning_rate_at(config: OptimizeConfig, index: int) -> float:
    """Learning rate at step ``index``, from 0."""
    return config.learning_rate * _decay(config, index)


def _decay(config: OptimizeConfig, index: int) -> float:
    match config.learning_rate_schedule:
        case "constant":
            return 1.0
        case "cosine":
            return 0.5 + 0.5 * math.cos(math.pi * index / config.steps)
        case "step":
            return 0.9 ** (index // 100)
