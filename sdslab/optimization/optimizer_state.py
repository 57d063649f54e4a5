"""Where a run of the loop is, in tensors and JSON-able numbers that a checkpoint can hold."""

from collections.abc import Sequence
from typing import Any, final

import torch
from torch import Tensor

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

    Attributes:
        index: the step to take next; while the loop yields a step, that one.
        skipped: steps so far whose gradient was not finite.
        skipped_in_a_row: how many of them are the latest steps.
        seconds: that the loop ran, earlier processes included.
        idle_seconds: of this process, that the caller held the loop up for: they do not count.
    """

    def __init__(self, tensors: Tensors | None = None, numbers: Numbers | None = None) -> None:
        numbers = numbers or {}
        self.index: int = numbers.get("index", 0)
        self.skipped: int = numbers.get("skipped", 0)
        self.skipped_in_a_row: int = numbers.get("skipped_in_a_row", 0)
        self.seconds: float = numbers.get("seconds", 0.0)
        self.idle_seconds = 0.0
        self._saved = (tensors, numbers) if tensors is not None else None
        self._parameters: Sequence[Tensor] = ()
        self._optimizer: torch.optim.Optimizer | None = None

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
        self._saved = None

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
        memory = _split(self._optimizer.state_dict()["state"], "optimizer", tensors)
        numbers = {
            "index": self.index,
            "skipped": self.skipped,
            "skipped_in_a_row": self.skipped_in_a_row,
            "seconds": self.seconds,
            "optimizer": memory,
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
