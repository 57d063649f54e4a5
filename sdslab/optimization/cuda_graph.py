"""Work on a GPU that is recorded once, as a CUDA graph, and then launched by one call."""

import warnings
from collections.abc import Callable, Hashable
from dataclasses import fields, is_dataclass, replace
from typing import Any, Generic, TypeVar, final

import torch
from torch import Tensor

WARM_UPS = 3  # calls before the capture, in which libraries choose their kernels and allocate

T = TypeVar("T")


@final
class Recorded(Generic[T]):
    """A function without arguments whose launches are replayed.

    What it reads must be the same memory at every call, and nothing in it may wait for the GPU or
    decide by what the GPU computed.

    Args:
        body: the function. It is called a few times before it is recorded: what it changes besides
            its result must be put back by ``restore``.
        device: on a CPU nothing is recorded, and each call is an ordinary one.
        restore: called after the warm-up and after the capture.
        warm_ups: calls before the capture.
        pool: of memory, that recordings may share which are never replayed at once.
    """

    def __init__(
        self,
        body: Callable[[], T],
        device: torch.device,
        restore: Callable[[], None] = lambda: None,
        *,
        warm_ups: int = WARM_UPS,
        pool: Any = None,
    ) -> None:
        self._body, self._graph = body, None
        if device.type != "cuda":
            return
        with torch.cuda.device(device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side), warnings.catch_warnings():
                # What is to be captured warns of not being captured.
                warnings.filterwarnings("ignore", ".*capturable=True.*")
                for _ in range(warm_ups):
                    body()
            torch.cuda.current_stream().wait_stream(side)
            restore()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph, pool=pool):
                self._result = body()
            restore()

    def __call__(self) -> T:
        """Does it once more; on a GPU the result is the same memory each time."""
        if self._graph is None:
            return self._body()
        self._graph.replay()
        return self._result


@final
class Recordings(Generic[T]):
    """The same work recorded for each shape of what it reads.

    Args:
        body: as `Recorded` takes it; it changes nothing but its result.
        device: as `Recorded` takes it.
    """

    def __init__(self, body: Callable[[], T], device: torch.device) -> None:
        self._body, self._device = body, device
        self._pool = torch.cuda.graph_pool_handle() if device.type == "cuda" else None
        self._recorded: dict[Hashable, Recorded[T]] = {}

    def __call__(self, shape: Hashable) -> T:
        """Does it once more, for inputs of a shape."""
        if shape not in self._recorded:
            # Kernels are chosen and compiled by then.
            warm_ups = 1 if self._recorded else WARM_UPS
            self._recorded[shape] = Recorded(
                self._body, self._device, warm_ups=warm_ups, pool=self._pool
            )
        return self._recorded[shape]()


def held(value: T, device: torch.device) -> T:
    """A copy on a device, for recorded work to read: of a tensor, or of a dataclass of such."""
    if isinstance(value, Tensor):
        copied: Any = value.to(device, copy=True, memory_format=torch.contiguous_format)
        return copied
    if is_dataclass(value) and not isinstance(value, type):
        parts = {field.name: held(getattr(value, field.name), device) for field in fields(value)}
        return replace(value, **parts)
    return value


def refill(memory: T, value: T) -> None:
    """Copies a value into what `held` made of an earlier one like it.

    Raises:
        ValueError: they are of different shapes, or differ in what is no tensor.
    """
    if isinstance(memory, Tensor) and isinstance(value, Tensor):
        if memory.shape != value.shape:
            raise ValueError(
                f"recorded work must be given {list(memory.shape)} as at first, got "
                f"{list(value.shape)}; record it anew"
            )
        memory.copy_(value)
    elif is_dataclass(memory) and type(memory) is type(value):
        for field in fields(memory):
            refill(getattr(memory, field.name), getattr(value, field.name))
    elif memory != value:
        raise ValueError(f"recorded work must be given {memory!r} as at first, got {value!r}")
