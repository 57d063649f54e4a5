"""Work on a GPU that is recorded once, as a CUDA graph, and then launched by one call."""

from collections.abc import Callable
from typing import final

import torch

WARM_UPS = 3  # calls before the capture, in which libraries choose their kernels and allocate


@final
class Recorded:
    """A function without arguments whose launches are replayed.

    What it reads and writes must be the same memory at every call, and nothing in it may wait for
    the GPU or decide by what the GPU computed.

    Args:
        body: the function. It is called a few times before it is recorded: what it changes besides
            its outputs must be put back by ``restore``.
        device: on a CPU nothing is recorded, and each call is an ordinary one.
        restore: called after the warm-up and after the capture.
    """

    def __init__(
        self,
        body: Callable[[], None],
        device: torch.device,
        restore: Callable[[], None] = lambda: None,
    ) -> None:
        self._body, self._graph = body, None
        if device.type != "cuda":
            return
        with torch.cuda.device(device):
            side = torch.cuda.Stream()
            side.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(side):
                for _ in range(WARM_UPS):
                    body()
            torch.cuda.current_stream().wait_stream(side)
            restore()
            self._graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(self._graph):
                body()
            restore()

    def __call__(self) -> None:
        """Does it once more."""
        if self._graph is None:
            self._body()
        else:
            self._graph.replay()
