"""Perspective cameras: one convention, named sets for evaluation, and samplers for training.

World space is right-handed with +Y up. A camera looks along its own −z, its +x is the picture's
right and its +y the picture's top. Azimuth φ and elevation θ place the eye at
r (cos φ cos θ, sin θ, sin φ cos θ), as CasTex does: φ = 90° (+Z) sees the front.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from sdslab.errors import UserError
from sdslab.kernels.philox import CAMERA_STREAM, NoiseKey, philox_uniform
from sdslab.tensor_types import map_tensors

NEAR, FAR = 0.05, 100.0


@dataclass(frozen=True, eq=False)
class Cameras:
    """A batch of b views.

    Attributes:
        eye: [b, 3], in world space.
        world_to_clip: [b, 4, 4]; y/w = +1 is the picture's top, z/w = −1 the near plane.
        world_to_camera: [b, 4, 4].
    """

    eye: Tensor
    world_to_clip: Tensor
    world_to_camera: Tensor

    def __len__(self) -> int:
        return len(self.eye)

    def to(self, device: torch.device | str) -> "Cameras":
        """The same views on another device."""
        return map_tensors(self, lambda x: x.to(device))

    def __getitem__(self, views: slice | Tensor) -> "Cameras":
        return map_tensors(self, lambda x: x[views])

    def turned(self, angle: Tensor) -> "Cameras":
        """The same eyes and directions, each picture turned about its middle by [b] radians."""
        turn = torch.eye(4).repeat(len(self), 1, 1)
        cosine, sine = angle.cos().float(), angle.sin().float()
        turn[:, 0, 0], turn[:, 0, 1], turn[:, 1, 0], turn[:, 1, 1] = cosine, -sine, sine, cosine
        return Cameras(self.eye, turn @ self.world_to_clip, turn @ self.world_to_camera)

    @classmethod
    def look_at(cls, eye: Tensor, target: Tensor, fov_deg: Tensor) -> "Cameras":
        """Cameras that see ``target`` in the middle of a square picture, upright.

        Args:
            eye: [b, 3].
            target: [b, 3].
            fov_deg: [b], the full angle of view, in degrees.
        """
        eye, target = eye.double(), target.double()
        backward = torch.nn.functional.normalize(eye - target, dim=-1)
        up = eye.new_tensor([0, 1, 0]).expand_as(eye)
        # Straight above or below, "up" is the direction of view: take −Z for the picture's top.
        vertical = torch.linalg.cross(up, backward).norm(dim=-1, keepdim=True) < 1e-6
        up = torch.where(vertical, -backward[:, 1:2].sign() * eye.new_tensor([0, 0, 1]), up)
        right = torch.nn.functional.normalize(torch.linalg.cross(up, backward), dim=-1)
        rotation = torch.stack((right, torch.linalg.cross(backward, right), backward), 1)
        return cls.turned_by(eye, rotation, fov_deg)

    @classmethod
    def turned_by(
        cls, eye: Tensor, rotation: Tensor, fov_deg: Tensor, aspect: float = 1.0
    ) -> "Cameras":
        """Cameras of any orientation.

        Args:
            eye: [b, 3].
            rotation: [b, 3, 3] from the world to the camera: its rows are the picture's right, its
                top, and the direction that the camera looks away from.
            fov_deg: [b], the full angle of view from bottom to top, in degrees.
            aspect: width by height of the picture.
        """
        eye, rotation, fov = eye.double(), rotation.double(), torch.deg2rad(fov_deg.double())
        view = torch.eye(4, dtype=torch.float64, device=eye.device).repeat(len(eye), 1, 1)
        view[:, :3, :3] = rotation
        view[:, :3, 3] = -(rotation @ eye[..., None])[..., 0]
        projection = torch.zeros_like(view)
        projection[:, 1, 1] = 1 / (fov / 2).tan()
        projection[:, 0, 0] = projection[:, 1, 1] / aspect
        projection[:, 2, 2] = -(FAR + NEAR) / (FAR - NEAR)
        projection[:, 2, 3] = -2 * FAR * NEAR / (FAR - NEAR)
        projection[:, 3, 2] = -1
        return cls(eye.float(), (projection @ view).float(), view.float())

    @classmethod
    def orbit(
        cls,
        azimuth_deg: Tensor,
        elevation_deg: Tensor,
        radius: Tensor,
        fov_deg: Tensor,
        target: Tensor | None = None,
    ) -> "Cameras":
        """Cameras on spheres around the origin that look at it, or at ``target``.

        Args:
            azimuth_deg: [b].
            elevation_deg: [b], from −90 to 90.
            radius: [b].
            fov_deg: [b].
            target: [b, 3], or None for the origin.
        """
        phi, theta = torch.deg2rad(azimuth_deg.double()), torch.deg2rad(elevation_deg.double())
        direction = torch.stack(
            (phi.cos() * theta.cos(), theta.sin(), phi.sin() * theta.cos()), dim=-1
        )
        eye = radius.double()[:, None] * direction
        return cls.look_at(eye, torch.zeros_like(eye) if target is None else target, fov_deg)


def castex_20_views() -> Cameras:
    """CasTex's evaluation: 4 views at elevation 0°, 8 at 30°, 8 at 60°.

    The paper renders a unit box from a distance of 1.4 with Blender's default camera (39.6°); the
    box here is twice as large, and so is the distance.
    """
    rings = ((0, 4), (30, 8), (60, 8))
    azimuth = torch.tensor([90 + 360 * i / count for _, count in rings for i in range(count)])
    elevation = torch.tensor([float(angle) for angle, count in rings for _ in range(count)])
    return Cameras.orbit(azimuth, elevation, torch.full((20,), 2.8), torch.full((20,), 39.6))


def turntable_views(
    count: int, bounding_radius: float, elevation_deg: float = 15, fov_deg: float = 30
) -> Cameras:
    """``count`` views around the object, counter-clockwise seen from above, the front first.

    Args:
        count: of views.
        bounding_radius: of the object around the origin; a sphere of it just fits the picture.
        elevation_deg: of the eye.
        fov_deg: the full angle of view.
    """
    azimuth = 90 - torch.arange(count) * 360 / count
    return Cameras.orbit(
        azimuth,
        torch.full((count,), float(elevation_deg)),
        torch.full((count,), fitting_distance(bounding_radius, fov_deg)),
        torch.full((count,), float(fov_deg)),
    )


def six_views(bounding_radius: float = math.sqrt(3), fov_deg: float = 30) -> Cameras:
    """Front, right, back, left, from above and from below; a sphere of the radius fits."""
    azimuth = torch.tensor([90.0, 0.0, 270.0, 180.0, 90.0, 90.0])
    elevation = torch.tensor([10.0, 10.0, 10.0, 10.0, 70.0, -70.0])
    distance = torch.full((6,), fitting_distance(bounding_radius, fov_deg))
    return Cameras.orbit(azimuth, elevation, distance, torch.full((6,), float(fov_deg)))


def fitting_distance(radius: float, fov_deg: float) -> float:
    """From where a sphere around the origin fills a picture, but for a margin of 3 %."""
    return 1.03 * radius / math.sin(math.radians(fov_deg) / 2)


Views = Literal["castex", "six"]
EVALUATION_VIEWS: dict[Views, Callable[[], Cameras]] = {
    "castex": castex_20_views,
    "six": six_views,
}


@dataclass(frozen=True)
class CameraSampler:
    """Random cameras: sample i of step s depends on (seed, s, i) and nothing else.

    Source: the defaults are CasTex's sampler (arXiv 2504.06856, its public code).
    """

    azimuth_deg: tuple[float, float] = (0.0, 360.0)
    """Uniform in this range."""
    elevation_deg: tuple[float, float] = (-60.0, 60.0)
    """Uniform in this range."""
    fov_deg: tuple[float, float] = (30.0, 30.0)
    """Uniform in this range."""
    radius: tuple[float, float] = (2.2, 6.6)
    """Distance for a field of view of 30°, uniform; for another one, the distance at which the
    object looks as large."""
    shared_radius: bool = True
    """One radius for the whole step (CasTex) instead of one per view."""
    look_at_jitter: float = 0.0
    """The point looked at is uniform in a cube of this half-size around the origin."""
    frame_fill: tuple[float, float] = (0.0, math.inf)
    """Views are drawn again (at most 15 times) until the object's larger extent in the picture, in
    units of the picture's own, lies in this range."""

    def __post_init__(self) -> None:
        for name in ("azimuth_deg", "elevation_deg", "fov_deg", "radius", "frame_fill"):
            low, high = getattr(self, name)
            if not low <= high:
                raise UserError(f"{name} must be a range from low to high, got {low} to {high}")
        if not (self.fov_deg[0] > 0 and self.fov_deg[1] < 180):
            raise UserError(f"fov_deg must lie between 0 and 180, got {self.fov_deg}")
        if not self.radius[0] > 0:
            raise UserError(f"radius must be positive, got {self.radius}")

    def sample(self, seed: int, step: int, batch: int, points: Tensor | None = None) -> Cameras:
        """Draws ``batch`` cameras.

        Args:
            seed: of the run.
            step: of the optimisation.
            batch: number of views.
            points: [k, 3] of the object, for `frame_fill`; without them it is not checked.
        """
        key = NoiseKey(seed, step, torch.arange(batch), CAMERA_STREAM)
        draws = 1 if points is None or self.frame_fill == (0, math.inf) else 16
        numbers = philox_uniform(key, 8 * draws).view(batch * draws, 8)
        azimuth, elevation, fov, radius = (
            low + (high - low) * numbers[:, column]
            for column, (low, high) in enumerate(
                (self.azimuth_deg, self.elevation_deg, self.fov_deg, self.radius)
            )
        )
        if self.shared_radius:
            radius = radius.view(batch, draws)[0].repeat(batch)
        radius = radius * math.sin(math.radians(15)) / (torch.deg2rad(fov) / 2).sin()
        target = self.look_at_jitter * (2 * numbers[:, 4:7] - 1)
        cameras = Cameras.orbit(azimuth, elevation, radius, fov, target)
        if draws == 1:
            return cameras
        assert points is not None
        fill = frame_fill(cameras, points).view(batch, draws)
        low, high = self.frame_fill
        outside = (low - fill).clamp_min(0) + (fill - high).clamp_min(0)
        return cameras[
            torch.arange(batch) * draws + outside.argmin(1)
        ]  # the first of the best ones


WIDE_SAMPLER = CameraSampler(
    elevation_deg=(-75, 85),
    fov_deg=(20, 55),
    radius=(2.2, 5.5),
    shared_radius=False,
    look_at_jitter=0.2,
    frame_fill=(0.5, 2.0),
)
CAMERA_SAMPLERS = {"castex": CameraSampler(), "wide": WIDE_SAMPLER}


def frame_fill(cameras: Cameras, points: Tensor) -> Tensor:
    """The larger extent of the object in each picture, in units of the picture's own; [b].

    Args:
        cameras: b views.
        points: [k, 3] in world space. Those behind a camera count as filling it.
    """
    homogeneous = torch.nn.functional.pad(points, (0, 1), value=1.0)
    clip = torch.einsum("bij,kj->bki", cameras.world_to_clip, homogeneous.float())
    behind = (clip[..., 3] < NEAR).any(1)
    ndc = clip[..., :2] / clip[..., 3:].clamp_min(NEAR)
    extent = (ndc.amax(1) - ndc.amin(1)).amax(-1) / 2
    return extent.masked_fill(behind, math.inf)
