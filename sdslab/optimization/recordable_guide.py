"""A guide whose work is the same launches at every step."""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import final

from torch import Tensor

from sdslab.kernels import SDSResult
from sdslab.optimization.cuda_graph import held
from sdslab.rendering.cameras import Cameras
from sdslab.rendering.renderer import Surface
from sdslab.rendering.scene import Scene
from sdslab.tensor_types import Timesteps


@dataclass(frozen=True, eq=False)
class Draws:
    """What a guide takes of one step, besides its pictures.

    Attributes:
        step: [1] int64, counts the noise.
        t: [b], the timesteps.
        prompt: [b] int64, rows of the prompts.
    """

    step: Tensor
    t: Timesteps
    prompt: Tensor


class RecordableGuide(ABC):
    """Draws on the host and computes on the device: the second half can be recorded."""

    @abstractmethod
    def draw(self, index: int, cameras: Cameras) -> Draws:
        """Of step ``index``, on the CPU."""

    @abstractmethod
    def gradient(self, z: Tensor, draws: Draws, scene: Scene, surface: Surface) -> SDSResult:
        """The gradient of z; all tensors on its device, but for the cameras, which are not read.

        Args:
            z: detached.
            draws: of the step.
            scene: its light and background.
            surface: what its pixels show.
        """

    @final
    def __call__(self, z: Tensor, index: int, scene: Scene, surface: Surface) -> SDSResult:
        """The gradient of step ``index``: makes it a `Guide`."""
        draws = held(self.draw(index, scene.cameras), z.device)
        return self.gradient(z, draws, scene, surface)
