"""How θ is moved, and the optimiser: made, saved with all else that a run depends on, restored."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, final, get_args

import torch
from torch import Tensor

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
        for name, holds, what in (
            ("steps", self.steps >= 1, "a positive number"),
            ("learning_rate", 0 < self.learning_rate < math.inf, "a positive number"),
            ("gradient_norm_limit", self.gradient_norm_limit > 0, "a positive number"),
            ("converged_below", 0 <= self.converged_below < math.inf, "a number of at least 0"),
            ("adam_betas", all(0 <= beta < 1 for beta in self.adam_betas), "within [0, 1)"),
            ("adam_eps", 0 <= self.adam_eps < math.inf, "a number of at least 0"),
            ("nonfinite_limit", self.nonfinite_limit >= 1, "a positive number of steps"),
        ):
            if not holds:
                raise UserError(f"{name} must be {what}, got {getattr(self, name)}")
        if self.optimizer == "lbfgs" and math.isfinite(self.gradient_norm_limit):
            raise UserError(
                f"lbfgs must have no gradient_norm_limit, got {self.gradient_norm_limit}: its line "
                f"search needs the true gradient"
            )


def learning_rate_at(config: OptimizeConfig, index: int) -> float:
    """Learning rate at step ``index``, from 0."""
    match config.learning_rate_schedule:
        case "constant":
            return config.learning_rate
        case "cosine":
            return config.learning_rate * (0.5 + 0.5 * math.cos(math.pi * index / config.steps))
        case "step":
            return config.learning_rate * 0.9 ** (index // 100)


MEMORY = "memory."  # prefix of the names of a gradient's tensors in a checkpoint

Tensors = dict[str, Tensor]
Numbers = dict[str, Any]  # JSON-able


@final
class OptimizerState:
    """θ, the optimiser's memory and the counters of one run of `optimize`.

    Whole whenever the loop is left: between two steps, at its end, and after an exception. A run
    that goes on from it takes the same steps as one that never stopped, on the CPU bit for bit.

    Args:
        tensors: of an earlier `snapshot`, to go on from; None starts anew.
        numbers: of the same `snapshot`.
        memory: tensors by name that the gradient changes in place, and nothing else of itself.

    Attributes:
        index: the step to take next; while the loop yields a step, that one.
        skipped: steps so far whose gradient was not finite.
        skipped_in_a_row: how many of them are the latest steps.
        seconds: that the loop ran, earlier processes included.
        idle_seconds: of this process, that the caller held the loop up for: they do not count.
    """

    def __init__(
        self,
        tensors: Tensors | None = None,
        numbers: Numbers | None = None,
        memory: Mapping[str, Tensor] | None = None,
    ) -> None:
        numbers = numbers or {}
        self.index: int = numbers.get("index", 0)
        self.skipped: int = numbers.get("skipped", 0)
        self.skipped_in_a_row: int = numbers.get("skipped_in_a_row", 0)
        self.seconds: float = numbers.get("seconds", 0.0)
        self.idle_seconds = 0.0
        self._saved = (tensors, numbers) if tensors is not None else None
        self._parameters: Sequence[Tensor] = ()
        self._optimizer: torch.optim.Optimizer | None = None
        self._memory = memory or {}
        self._memory_before: tuple[int, Tensors] = -1, {}

    def attach(self, parameters: Sequence[Tensor], optimizer: torch.optim.Optimizer) -> None:
        """Called by the loop: puts back what was saved, if anything was, and follows both from now.

        Raises:
            ValueError: what was saved is of other parameters.
        """
        self._parameters, self._optimizer = parameters, optimizer
        if self._saved is None:
            return
        tensors, numbers = self._saved
        saved = [tensors[name] for name in sorted(tensors) if name.startswith("theta.")]
        shapes = [[list(tensor.shape) for tensor in group] for group in (saved, parameters)]
        if shapes[0] != shapes[1]:
            raise ValueError(
                f"the saved state must be of parameters of shapes {shapes[1]}, got {shapes[0]}; "
                f"was it saved by another configuration?"
            )
        with torch.no_grad():
            for parameter, value in zip(parameters, saved, strict=True):
                parameter.copy_(value)
        state = {
            int(number): _joined(value, tensors) for number, value in numbers["optimizer"].items()
        }
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})
        for parameter in parameters:
            memory = optimizer.state[parameter]
            for name, value in memory.items():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    # Fused optimisers walk through both in the order of memory.
                    memory[name] = torch.empty_like(parameter).copy_(value)
        for name, tensor in self._memory.items():
            tensor.copy_(tensors[MEMORY + name])
        self._saved = None

    def begin_step(self, index: int) -> None:
        """Called by the loop before step ``index`` asks for its gradient.

        A checkpoint may be written while a step is under way: θ has not moved, but the gradient has
        changed its memory. A run that goes on from there takes that step again, from what the
        memory was before it.
        """
        self._memory_before = index, {name: old.clone() for name, old in self._memory.items()}

    @property
    def begun(self) -> bool:
        """Whether there is anything to save: the loop has begun, or it goes on from before."""
        return self._saved is not None or self._optimizer is not None

    def snapshot(self) -> tuple[Tensors, Numbers]:
        """Returns everything that the run's next steps depend on, for a checkpoint.

        The tensors on the CPU are θ's own memory: save them before the loop goes on.
        """
        if self._saved is not None:  # stopped before the loop took it up
            return self._saved
        if self._optimizer is None:
            raise RuntimeError("the loop must have begun before its state can be saved")
        tensors = {
            f"theta.{number:04}": parameter.detach().cpu().contiguous()
            for number, parameter in enumerate(self._parameters)
        }
        before, memory = self._memory_before
        for name, tensor in (memory if self.index == before else self._memory).items():
            tensors[MEMORY + name] = tensor.detach().cpu()
        optimizer = _split(self._optimizer.state_dict()["state"], "optimizer", tensors)
        numbers = {
            "index": self.index,
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "seconds": self.seconds,
            "optimizer": optimizer,
        }
        return tensors, numbers


def _split(value: Any, name: str, tensors: Tensors) -> Any:
    """Moves the tensors of a nested value to ``tensors``, leaving their names behind."""
    match value:
        case Tensor():
            tensors[name] = value.detach().cpu().contiguous()
            return {"tensor": name}
        case dict():
            return {str(key): _split(v, f"{name}.{key}", tensors) for key, v in value.items()}
        case list():
            return [_split(v, f"{name}.{i}", tensors) for i, v in enumerate(value)]
        case _:
            return value


def _joined(value: Any, tensors: Tensors) -> Any:
    """Undoes `_split`."""
    match value:
        case {"tensor": str() as name}:
            return tensors[name]
        case dict():
            return {key: _joined(v, tensors) for key, v in value.items()}
        case list():
            return [_joined(v, tensors) for v in value]
        case _:
            return value


def make_optimizer(
    parameters: Sequence[Tensor], config: OptimizeConfig, rate: Tensor | None = None
) -> torch.optim.Optimizer:
    """Optimiser of θ.

    Args:
        parameters: θ.
        config: which one, and its settings.
        rate: the learning rate in memory that recorded steps read; None is ``config``'s number.

    Raises:
        UserError: L-BFGS cannot be recorded.
    """
    learning_rate = config.learning_rate if rate is None else rate
    match config.optimizer:
        case "adam":
            return torch.optim.Adam(
                parameters,
                lr=learning_rate,
                betas=config.adam_betas,
                eps=config.adam_eps,
                fused=True,
                capturable=rate is not None and rate.is_cuda,
            )
        case "sgd":
            return torch.optim.SGD(parameters, lr=learning_rate, fused=rate is not None)
        case "lbfgs":
            if rate is not None:
                raise UserError(
                    "a recorded step must be adam's or sgd's, got lbfgs, whose line search decides "
                    "by what it computes"
                )
            return torch.optim.LBFGS(
                parameters, lr=learning_rate, max_iter=1, line_search_fn="strong_wolfe"
            )


def save_in_place(
    parameters: Sequence[Tensor], optimizer: torch.optim.Optimizer
) -> Callable[[], None]:
    """Saves θ and the optimiser's memory, and returns what restores them in place."""
    values = [parameter.detach().clone() for parameter in parameters]
    memories = [
        {name: tensor.clone() for name, tensor in _memory_of(parameter, optimizer).items()}
        for parameter in parameters
    ]

    @torch.no_grad()
    def restore() -> None:
        for parameter, value, memory in zip(parameters, values, memories, strict=True):
            parameter.copy_(value)
            for name, tensor in _memory_of(parameter, optimizer).items():
                if name in memory:
                    tensor.copy_(memory[name])
                else:  # what the first step makes begins at zero
                    tensor.zero_()

    return restore


def _memory_of(parameter: Tensor, optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    memory = optimizer.state.get(parameter, {})
    return {name: value for name, value in memory.items() if isinstance(value, Tensor)}
