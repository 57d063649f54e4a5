"""What one step renders: views, lights and backgrounds, drawn from counters."""

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from sdslab.rendering.backgrounds import Background, sample_background
from sdslab.rendering.cameras import Cameras, CameraSampler
from sdslab.rendering.lighting import Lighting, LightSampler


@dataclass(frozen=True, eq=False)
class Scene:
    """Everything but the object, for b pictures.

    Attributes:
        cameras: b views.
        lighting: their light, or None for unlit pictures of the albedo.
        background: [b, 3, h, w], sRGB-encoded. Every render of a step uses the same one: stage I
            and its condition, θ and its target.
    """

    cameras: Cameras
    lighting: Lighting | None
    background: Tensor


class Scenes(Protocol):
    """Draws the scene of each step."""

    @property
    def resolution(self) -> int:
        """Height and width of the pictures, in pixels."""
        ...

    def sample(self, step: int, batch: int, points: Tensor) -> Scene:
        """Draws ``batch`` views of an object whose vertices are ``points`` [k, 3]."""
        ...


@dataclass(frozen=True)
class SceneSampler:
    """Draws scenes: sample i of step s depends on (seed, s, i) alone."""

    cameras: CameraSampler
    lights: LightSampler | None
    """None renders unlit."""
    background: Background
    resolution: int
    """Height and width of the pictures, in pixels."""
    seed: int
    device: torch.device | str = "cpu"
    """Where backgrounds are made: copying large ones there would take long."""

    def sample(self, step: int, batch: int, points: Tensor) -> Scene:
        """Draws ``batch`` views of an object whose vertices are ``points`` [k, 3]."""
        size = (self.resolution, self.resolution)
        return Scene(
            cameras=self.cameras.sample(self.seed, step, batch, points),
            lighting=self.lights.sample(step, batch) if self.lights else None,
            background=sample_background(
                self.background, self.seed, step, batch, size, self.device
            ),
        )
