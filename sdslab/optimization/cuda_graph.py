"""Functions whose launches on a GPU are captured once, as CUDA graphs, and then replayed."""

import warnings
from collections.abc import Callable, Hashable
from dataclasses import fields, is_dataclass, replace
from typing import Any, Generic, TypeVar, final

import torch
from torch import Tensor

WARM_UPS = 3  # calls before the first capture, in which libraries choose their kernels and allocate

T = TypeVar("T")


@final
class GraphedFunction(Generic[T]):
    """A function that is captured once for each argument, and replayed from then on.

    The argument is memory that the function reads: the same object means the same memory, whose
    values the caller overwrites between the calls. Nothing in the function may wait for the GPU or
    decide by what the GPU computed.

    Args:
        function: it is called a few times before it is captured.
        device: on a CPU nothing is captured, and each call is an ordinary one.
        save: called before the warm-up, for a function that changes more than its result; what it
            returns puts that back, after the warm-up and after the capture.
    """

    def __init__(
        self,
        function: Callable[..., T],
        device: torch.device,
        save: Callable[[], Callable[[], None]] = lambda: lambda: None,
    ) -> None:
        self._function, self._device, self._save = function, device, save
        # The graphs share memory, for no two of them are replayed at once.
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
        self._graphs: dict[tuple[Hashable, ...], tuple[torch.cuda.CUDAGraph, T]] = {}

    def __call__(self, *argument: Hashable) -> T:
        """Calls it once more; on a GPU the result is the same memory each time."""
        if self._device.type != "cuda":
            return self._function(*argument)
        if argument not in self._graphs:
            self._graphs[argument] = self._captured(argument)
        graph, result = self._graphs[argument]
        graph.replay()
        return result

    def _captured(self, argument: tuple[Hashable, ...]) -> tuple[torch.cuda.CUDAGraph, T]:
        restore = self._save()
        with torch.cuda.device(self._device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side), warnings.catch_warnings():
                # What is to be captured warns of not being captured.
                warnings.filterwarnings("ignore", ".*capturable=True.*")
                # Kernels are chosen and compiled once there is a graph.
                for _ in range(1 if self._graphs else WARM_UPS):
                    self._function(*argument)
            torch.cuda.current_stream().wait_stream(side)
            restore()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                result = self._function(*argument)
            restore()
        return graph, result


def static_copy(value: T, device: torch.device) -> T:
    """A copy on a device that graphs may read: of a tensor, or of a dataclass of tensors."""
    if isinstance(value, Tensor):
        copied: Any = value.to(device, copy=True, memory_format=torch.contiguous_format)
        return copied
    if is_dataclass(value) and not isinstance(value, type):
        parts = {
            field.name: static_copy(getattr(value, field.name), device) for field in fields(value)
        }
        return replace(value, **parts)
    return value


def copy_into(static: T, value: T) -> None:
    """Overwrites what `static_copy` made of an earlier value with one like it.

    Raises:
        ValueError: they are of different shapes, or differ in what is no tensor.
    """
    if isinstance(static, Tensor) and isinstance(value, Tensor):
        if static.shape != value.shape:
            raise ValueError(
                f"a captured function must be given {list(static.shape)} as at first, got "
                f"{list(value.shape)}; capture it anew"
            )
        static.copy_(value)
    elif is_dataclass(static) and type(static) is type(value):
        for field in fields(static):
            copy_into(getattr(static, field.name), getattr(value, field.name))
    elif static != value:
        raise ValueError(f"a captured function must be given {static!r} as at first, got {value!r}")
