"""What one step renders: views, lights and backgrounds, drawn from counters."""

import math
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from sdslab.kernels.philox import BACKGROUND_STREAM, VIEW_STREAM, NoiseKey, philox_uniform
from sdslab.meshes.mesh import Mesh
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


DISTANCE = 8.0  # so far away that pixels are of nearly one size all over the object


@dataclass(frozen=True, eq=False)
class SurfaceViews:
    """Draws unlit scenes whose views are aimed at random points of a surface.

    Every second view looks along the surface's own normal, the others from around the object.

    Attributes:
        points: [f, 3, 3], the faces' corners.
        pixels_per_unit: of the pictures.
        resolution: height and width of a picture.
        background: [c], of the pictures' channels, behind the object.
        seed: of the run.
        turned: whether each view is turned about its axis at random.
        directions: [f, 3, 3] at the faces' corners, what lies upright in the middle of each view;
            None is +Y.
    """

    points: Tensor
    pixels_per_unit: float
    resolution: int
    background: Tensor
    seed: int
    turned: bool = False
    directions: Tensor | None = None

    @classmethod
    def of(
        cls,
        mesh: Mesh,
        pixels_per_unit: float,
        resolution: int,
        background: Tensor,
        seed: int,
        turned: bool = False,
        directions: Tensor | None = None,
    ) -> "SurfaceViews":
        """Views of a mesh; ``directions`` are [v, 3], of its vertices."""
        points = mesh.render_positions[mesh.faces.long()]
        if directions is not None:
            directions = directions[mesh.faces.long()]
        return cls(points, pixels_per_unit, resolution, background, seed, turned, directions)

    def sample(self, step: int, batch: int, points: Tensor) -> Scene:
        """Draws ``batch`` views; view i of step s depends on (seed, s, i) alone."""
        del points  # the framing does not depend on the object's extent
        key = NoiseKey(self.seed, step, torch.arange(batch), VIEW_STREAM)
        numbers = philox_uniform(key, 6).double()
        target, normal, upright = self._surface_points(numbers[:, :3])
        azimuth = 2 * math.pi * numbers[:, 3]
        elevation = (2 * numbers[:, 4] - 1).asin()  # even over the sphere
        around = torch.stack(
            (azimuth.cos() * elevation.cos(), elevation.sin(), azimuth.sin() * elevation.cos()), 1
        )
        # A view from behind the point would show another piece of the surface.
        around = torch.where((around * normal).sum(1, keepdim=True) < 0, -around, around)
        along_normal = (torch.arange(batch) % 2 == 0)[:, None]
        direction = torch.where(along_normal, normal, around)
        span = self.resolution / self.pixels_per_unit
        fov = math.degrees(2 * math.atan(span / (2 * DISTANCE)))
        cameras = Cameras.look_at(
            target + DISTANCE * direction, target, torch.full((batch,), fov, dtype=torch.float64)
        )
        if self.turned:
            cameras = cameras.turned(2 * math.pi * numbers[:, 5])
        elif upright is not None:
            axes = cameras.world_to_camera[:, :2, :3].double()
            across, along = (axes @ upright[..., None])[..., 0].unbind(1)
            cameras = cameras.turned(torch.atan2(across, along))
        background = self.background.view(1, -1, 1, 1)
        return Scene(cameras, None, background.expand(batch, -1, self.resolution, self.resolution))

    def _surface_points(self, numbers: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        """Points [b, 3] spread evenly over the surface, its unit normals and directions there."""
        corners = self.points.double()
        cross = torch.linalg.cross(corners[:, 1] - corners[:, 0], corners[:, 2] - corners[:, 0])
        cumulative = cross.norm(dim=1).cumsum(0)
        face = torch.searchsorted(cumulative, numbers[:, 0].contiguous() * cumulative[-1])
        face = face.clamp_max(len(corners) - 1)
        root = numbers[:, 1].sqrt()
        weights = torch.stack((1 - root, root * (1 - numbers[:, 2]), root * numbers[:, 2]), 1)
        target = (weights[..., None] * corners[face]).sum(1)
        upright = None
        if self.directions is not None:
            upright = (weights[..., None] * self.directions[face].double()).sum(1)
        return target, F.normalize(cross[face], dim=1), upright
