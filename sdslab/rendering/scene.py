"""What one step renders: views, lights and backgrounds, drawn from counters."""

from dataclasses import dataclass
from typing import Literal, Protocol

import torch
from torch import Tensor

from sdslab.kernels.philox import BACKGROUND_STREAM, NoiseKey, philox_uniform
from sdslab.rendering.cameras import Cameras, CameraSampler
from sdslab.rendering.lighting import Lighting, LightSampler

Background = Literal["white", "black", "grey", "random", "shared", "checker"]
_SOLID = {"white": 1.0, "black": 0.0, "grey": 0.5}


def sample_background(
    kind: Background,
    seed: int,
    step: int,
    batch: int,
    resolution: tuple[int, int],
    device: torch.device | str = "cpu",
) -> Tensor:
    """Draws backgrounds, sRGB-encoded: sample i of step s depends on (seed, s, i) alone.

    Args:
        kind: a solid colour, "random" (one colour a view), "shared" (one colour for all views, as
            CasTex has it) or "checker" (two colours a view, squares of a random size).
        seed: of the run.
        step: of the optimisation.
        batch: number of views.
        resolution: (height, width).
        device: of the result; the few numbers that are drawn are copied there, not the pictures.

    Returns:
        [batch, 3, height, width] in [0, 1].
    """
    if kind in _SOLID:
        solid = torch.full((1, 3, 1, 1), _SOLID[kind], device=device)
        return solid.expand(batch, 3, *resolution)
    sample = torch.zeros(batch, dtype=torch.int64) if kind == "shared" else torch.arange(batch)
    key = NoiseKey(seed, step, sample, BACKGROUND_STREAM)
    numbers = philox_uniform(key, 7).float().to(device)
    first, second = numbers[:, :3, None, None], numbers[:, 3:6, None, None]
    if kind in ("random", "shared"):
        return first.expand(batch, 3, *resolution)
    squares = 4 + (12 * numbers[:, 6]).floor().view(-1, 1, 1, 1)  # 4 to 15 along the picture's side
    rows, columns = (
        (torch.arange(size, device=device) + 0.5) / max(resolution) for size in resolution
    )
    parity = (rows[:, None] * squares).floor() + (columns * squares).floor()
    return torch.where(parity.remainder(2) == 0, first, second)


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
