"""A denoiser whose launches are recorded once as a CUDA graph, and replayed at every step."""

from dataclasses import fields, replace
from typing import final

import torch
from torch import Tensor

from sdslab.cuda_graph import Recorded
from sdslab.denoisers.denoiser import Condition, Denoiser, Prediction
from sdslab.errors import UserError
from sdslab.tensor_types import Diffused, Timesteps


@final
class GraphedDenoiser(Denoiser):
    """The same predictions, from buffers that stay where they are.

    x_t, t and everything in the condition are copied into buffers, which the recorded launches
    read; the host then launches one graph instead of a few thousand kernels. Guidance is recorded
    with its model. What no graph can hold stays outside: the rasteriser, and the list of covered
    pixels, whose length depends on the view.

    Shapes, and which fields the condition has, are those of the first call. The output is
    overwritten by the next call.

    Args:
        denoiser: what is recorded; nothing in it may wait for the GPU.
        device: where it runs; a CPU records nothing, but takes the same path through the buffers.

    Raises:
        UserError: a call unlike the first.
    """

    def __init__(self, denoiser: Denoiser, device: torch.device) -> None:
        self.denoiser, self.schedule, self.device = denoiser, denoiser.schedule, device
        self._inputs: dict[str, Tensor] = {}
        self._condition: Condition | None = None
        self._prediction: Prediction | None = None
        self._recorded: Recorded | None = None

    @torch.no_grad()
    def predict(
        self, x_t: Diffused, t: Timesteps, condition: Condition | None = None
    ) -> Prediction:
        given = {"x_t": x_t, "t": t, **_tensors_of(condition)}
        if self._recorded is None:
            self._hold(given, condition)
            self._recorded = Recorded(self._run, self.device)
        shapes, got = (
            {name: list(value.shape) for name, value in tensors.items()}
            for tensors in (self._inputs, given)
        )
        if shapes != got:
            raise UserError(
                f"a recorded model must be given what it was recorded with, {shapes}, got {got}; "
                f"leave --graph out"
            )
        for name, value in given.items():
            self._inputs[name].copy_(value)
        self._recorded()
        assert self._prediction is not None
        return self._prediction

    def _hold(self, given: dict[str, Tensor], condition: Condition | None) -> None:
        self._inputs = {name: value.to(self.device, copy=True) for name, value in given.items()}
        if condition is not None:
            held = {name: self._inputs[name] for name in _tensors_of(condition)}
            self._condition = replace(condition, **held)

    def _run(self) -> None:
        self._prediction = self.denoiser.predict(
            self._inputs["x_t"], self._inputs["t"], self._condition
        )


def _tensors_of(condition: Condition | None) -> dict[str, Tensor]:
    if condition is None:
        return {}
    values = {field.name: getattr(condition, field.name) for field in fields(condition)}
    return {name: value for name, value in values.items() if value is not None}
