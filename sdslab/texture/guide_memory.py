"""What a guide carries from step to step, kept so that a checkpoint can hold it."""

from collections.abc import Mapping
from typing import final

from torch import Tensor

from sdslab.kernels import SDSResult
from sdslab.optimization.material_optimization import Guide
from sdslab.rendering.renderer import Surface
from sdslab.rendering.scene import Scene

PREFIX = "memory."  # of their names in a checkpoint


@final
class GuideMemory:
    """A guide whose memory can be told as it was before a step that will be taken again.

    A checkpoint is written while a step is under way: θ has not moved, but the guide was called.
    A run that goes on from it takes that step again, and calls the guide for it once more.

    Args:
        guide: called once or more a step.
        tensors: by name; the guide changes them in place, and nothing else of itself.
    """

    def __init__(self, guide: Guide, tensors: Mapping[str, Tensor]) -> None:
        self._guide = guide
        self._tensors = tensors
        self._index = -1
        self._before: dict[str, Tensor] = {}

    def __call__(self, z: Tensor, index: int, scene: Scene, surface: Surface) -> SDSResult:
        if index != self._index:
            self._before = {name: tensor.clone() for name, tensor in self._tensors.items()}
            self._index = index
        return self._guide(z, index, scene, surface)

    def snapshot(self, index: int) -> dict[str, Tensor]:
        """The tensors as they were before step ``index``, the next one or the one under way."""
        tensors = self._before if index == self._index else self._tensors
        return {PREFIX + name: tensor.detach().cpu() for name, tensor in tensors.items()}

    def restore(self, saved: Mapping[str, Tensor]) -> None:
        """Puts back what a `snapshot` holds, in place."""
        for name, tensor in self._tensors.items():
            tensor.copy_(saved[PREFIX + name])
