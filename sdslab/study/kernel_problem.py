"""What the kernel study knows of an op at one size."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

# What the eager code of a user would be: few lines, no in-place tricks, results in a tuple.
Eager = Callable[..., tuple[Tensor, ...]]


@dataclass(frozen=True)
class Problem:
    """One op at one size.

    Attributes:
        ours: The op, its inputs bound.
        eager: The same in plain torch, in the precision of its arguments.
        arguments: What ``eager`` takes, noise as a tensor, so that it computes what ours does.
        timed_arguments: What it takes when it is timed: with None for noise it draws its own.
        bytes: What must be read and written once, whatever computes it.
        flops: Of the printed equations; drawing noise is not counted.
        rivals: Other ways to the same result, inputs bound; with any, the row is about arithmetic
            and memory instead of bandwidth, and torch.compile is left out.
    """

    ours: Callable[[], tuple[Tensor, ...]]
    eager: Eager
    arguments: tuple[Tensor, ...]
    timed_arguments: tuple[Tensor | None, ...]
    bytes: int
    flops: int
    rivals: Mapping[str, Callable[[], tuple[Tensor, ...]]] = field(default_factory=dict)

    @property
    def contenders(self) -> dict[str, Callable[[], tuple[Tensor, ...]]]:
        """Ours, eager code and the rivals, inputs bound."""
        return {
            "ours": self.ours,
            "eager": lambda: self.eager(*self.timed_arguments),
            **self.rivals,
        }
