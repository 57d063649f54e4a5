"""A denoiser whose launches are recorded once as a CUDA graph, and replayed at every step."""

from dataclasses import fields, replace
from typing import final

import torch
from torch import Tensor

from sdslab.denoisers.denoiser import Condition, Denoiser, Prediction
from sdslab.errors import UserError
from sdslab.tensor_types import Diffused, Timesteps

WARM_UPS = 3  # calls before the capture, in which libraries choose their kernels and allocate


@final
class GraphedDenoiser(Denoiser):
    """The same predictions, from buffers that stay where they are.

    x_t, t and everything in the condition are copied into buffers, which the recorded launches
    read; the host then launches one graph instead of a few thousand kernels. Guidance is recorded
    with its model. What the graph cannot hold stays outside: the rasteriser, and the list of
    covered pixels, whose length depends on the view.

    Shapes, and which fields the condition has, are those of the first call. The output is
    overwritten by the next call.

    Args:
        denoiser: what is recorded; nothing in it may wait for the GPU.
        device: where it runs; a CPU records nothing, but takes the same path through the buffers.

    Raises:
        UserError: another call than the first.
    """

    def __init__(self, denoiser: Denoiser, device: torch.device) -> None:
        self.denoiser, self.schedule, self.device = denoiser, denoiser.schedule, device
        self._inputs: dict[str, Tensor] = {}
        self._condition: Condition | None = None
        self._prediction: Prediction | None = None
        self._graph: torch.cuda.CUDAGraph | None = None

    @torch.no_grad()
    def predict(
        self, x_t: Diffused, t: Timesteps, condition: Condition | None = None
    ) -> Prediction:
        given = {"x_t": x_t, "t": t, **_tensors_of(condition)}
        if self._prediction is None:
            self._record(given, condition)
        shapes = {name: list(value.shape) for name, value in self._inputs.items()}
        got = {name: list(value.shape) for name, value in given.items()}
        if shapes != got:
            raise UserError(
                f"a recorded step must be given what it was recorded with, {shapes}, got {got}; "
                f"leave --graph out"
            )
        for name, value in given.items():
            self._inputs[name].copy_(value)
        if self._graph is None:
            self._prediction = self._run()
        else:
            self._graph.replay()
        assert self._prediction is not None
        return self._prediction

    def _record(self, given: dict[str, Tensor], condition: Condition | None) -> None:
        self._inputs = {
            name: torch.empty_like(value, device=self.device).copy_(value)
            for name, value in given.items()
        }
        if condition is not None:
            held = {name: self._inputs[name] for name in _tensors_of(condition)}
            self._condition = replace(condition, **held)
        # ᾱ goes to the GPU at its first use: before the capture, which copies nothing from a CPU.
        self.schedule.alpha_bar(self._inputs["t"])
        if self.device.type != "cuda":
            return
        stream = torch.cuda.Stream(self.device)
        stream.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(stream):
            for _ in range(WARM_UPS):
                self._run()
        torch.cuda.current_stream(self.device).wait_stream(stream)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._prediction = self._run()
        self._graph = graph

    def _run(self) -> Prediction:
        return self.denoiser.predict(self._inputs["x_t"], self._inputs["t"], self._condition)


def _tensors_of(condition: Condition | None) -> dict[str, Tensor]:
    if condition is None:
        return {}
    values = {field.name: getattr(condition, field.name) for field in fields(condition)}
    return {name: value for name, value in values.items() if value is not None}
