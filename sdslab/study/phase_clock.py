"""Tells how a step's time is split into phases."""

import torch

from sdslab.study.timing import seconds_now

PHASES: tuple[str, ...] = ("render", "condition", "unet", "gradient", "optimizer")
"""What a texture step does: views, pictures and their shading; resizing, noising and the condition
of stage II; the UNet; guidance, x̂_0, the gradient and its way back to θ; Adam and projection."""
WHOLE = "step"
"""All of them at once, where they are one recording."""


class PhaseClock:
    """Collects marks between phases; on a GPU they are events, which wait for nothing.

    Args:
        device: where the phases compute.
    """

    def __init__(self, device: torch.device) -> None:
        self._on_gpu = device.type == "cuda"
        self._marks: list[tuple[str | None, float | torch.cuda.Event]] = []

    def mark(self, phase: str | None) -> None:
        """From here on the time is ``phase``'s; None ends the last one."""
        if not self._on_gpu:
            self._marks.append((phase, seconds_now()))
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append((phase, event))

    def milliseconds(self) -> dict[str, float]:
        """The phases' times since the last call; a phase may have had several turns."""
        if self._on_gpu:
            torch.cuda.synchronize()
        total = dict.fromkeys(PHASES, 0.0)
        for (phase, start), (_, end) in zip(self._marks, self._marks[1:], strict=False):
            if phase is not None:
                total[phase] = total.get(phase, 0.0) + _between(start, end)
        self._marks.clear()
        return total


def _between(start: float | torch.cuda.Event, end: float | torch.cuda.Event) -> float:
    if isinstance(start, torch.cuda.Event):
        assert isinstance(end, torch.cuda.Event)
        return start.elapsed_time(end)
    assert isinstance(end, float)
    return (end - start) * 1000
