"""What lights a picture: a prefiltered environment, turned per view, and small lights.

Directions are in world space (+Y up) unless "the environment's frame" is said, which is the one
that `environment_map.py` describes.
"""

import math
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from sdslab.errors import UserError
from sdslab.files.disk_cache import cached_tensors, content_hash
from sdslab.kernels.philox import LIGHT_STREAM, NoiseKey, philox_uniform
from sdslab.rendering.environment_map import load_environment
from sdslab.rendering.prefilter import (
    LEVELS,
    RESOLUTION,
    octahedral_encode,
    prefilter_irradiance,
    prefilter_specular,
    sh_basis,
)
from sdslab.tensor_types import map_tensors

Lamp = Literal["none", "point", "directional"]
LAMP_DISTANCE = 3.0  # of a point light from the object's centre
LAMP_IRRADIANCE = 1.5  # there, on a surface that faces it: white paint sends out half of 1

_CACHE_VERSION = 1  # raise it whenever prefiltering changes
_SHARED_BY_THE_STEP = 2**32 - 1  # a sample's index that no view has


@dataclass(frozen=True, eq=False)
class Environment:
    """Light from far away, ready for split-sum shading.

    Attributes:
        specular: [3, levels, r + 2, r + 2], from `prefilter_specular`.
        irradiance_sh: [9, 3], from `prefilter_irradiance`.
    """

    specular: Tensor
    irradiance_sh: Tensor

    @classmethod
    def of(cls, source: str | Path) -> "Environment":
        """Loads and prefilters a light (seconds); the result is kept on disk.

        Args:
            source: as `load_environment` takes it.

        Raises:
            UserError: `load_environment` refuses it.
        """
        radiance = load_environment(source)
        key = content_hash(radiance, _CACHE_VERSION, LEVELS, RESOLUTION)
        return cls(**cached_tensors("environment", key, lambda: vars(cls.from_radiance(radiance))))

    @classmethod
    def from_radiance(cls, radiance: Tensor, resolution: int = RESOLUTION) -> "Environment":
        """Prefilters a map.

        Args:
            radiance: [h, 2h, 3] as `environment_map.py` describes.
            resolution: of the octahedral maps, even.
        """
        return cls(prefilter_specular(radiance, LEVELS, resolution), prefilter_irradiance(radiance))

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "Environment":
        """The same light on another device or in another precision."""
        return map_tensors(self, lambda x: x.to(device, dtype))

    def irradiance(self, direction: Tensor) -> Tensor:
        """What a white Lambertian surface sends out: irradiance / π.

        Args:
            direction: [n, 3] unit normals in the environment's frame; any strides.

        Returns:
            [n, 3] linear radiance, channels apart in memory; multiply it by an albedo.
        """
        return (self.irradiance_sh.T @ sh_basis(*direction.unbind(-1))).T

    def radiance(self, direction: Tensor, roughness: Tensor) -> Tensor:
        """Radiance averaged over the GGX lobe around a mirror direction.

        Args:
            direction: [n, 3] of any length but 0, in the environment's frame; any strides.
            roughness: [n] in [0, 1]; linear in between the levels.

        Returns:
            [n, 3] linear radiance, channels apart in memory.
        """
        levels, side = self.specular.shape[1:3]
        p, q = octahedral_encode(*direction.unbind(-1))
        level = roughness * (levels - 1)
        lower = level.detach().floor().clamp(0, levels - 2)
        # The levels lie one below the other in one tall picture: two 4-D look-ups cost a third of
        # a 5-D one on a CPU.
        column = p * ((side - 2) / (side - 1))
        row = (q + 1) * ((side - 2) / 2) + (0.5 + lower * side)
        rows = torch.stack((row, row + side)) * (2 / (levels * side - 1)) - 1
        grid = torch.stack((column.expand_as(rows), rows), dim=-1)[None]  # [1, 2, n, 2]
        picture = self.specular.reshape(1, 3, levels * side, side)
        both = F.grid_sample(picture, grid, padding_mode="border", align_corners=True)[0]
        return torch.lerp(both[:, 0], both[:, 1], level - lower).T


@dataclass(frozen=True, eq=False)
class PointLights:
    """k small lights for each of b views; radiant intensity falls on surfaces as 1 / distance².

    Attributes:
        position: [b, k, 3].
        color: [b, k, 3] linear; the irradiance at distance 1 of a surface that faces the light.
    """

    position: Tensor
    color: Tensor


@dataclass(frozen=True, eq=False)
class DirectionalLights:
    """k distant lights for each of b views.

    Attributes:
        direction: [b, k, 3] unit, towards the light.
        color: [b, k, 3] linear; the irradiance of a surface that faces the light.
    """

    direction: Tensor
    color: Tensor


@dataclass(frozen=True, eq=False)
class Lighting:
    """The light of one step's b views.

    Attributes:
        environment: shared by the views.
        yaw: [b] radians; the environment turned about +Y, counter-clockwise seen from above.
        intensity: [b], multiplies the environment.
        points: small lights near by, or None.
        directions: small lights far away, or None. Neither turns with the environment.
    """

    environment: Environment
    yaw: Tensor
    intensity: Tensor
    points: PointLights | None = None
    directions: DirectionalLights | None = None

    @classmethod
    def fixed(cls, environment: Environment, batch: int) -> "Lighting":
        """The environment as it is, for every view."""
        zeros = environment.specular.new_zeros(batch)
        return cls(environment, zeros, zeros + 1)

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "Lighting":
        """The same light on another device or in another precision."""
        return map_tensors(self, lambda x: x.to(device, dtype))


@dataclass(frozen=True)
class LightSampler:
    """Random light: step s has one environment; view i's yaw and intensity depend on (seed, s, i).

    Attributes:
        environments: one is chosen for each step, all equally likely; on one device.
        yaw_range_deg: uniform in this range.
        intensity_range: uniform in this range, at least 0.
        seed: of the run.
        lamp: a small white light besides, in a direction of its own for each view, uniform on the
            sphere; "point" is as near as LAMP_DISTANCE.
        shared_yaw: one yaw for all views of a step, as CasTex has it, instead of one for each.
    """

    environments: tuple[Environment, ...]
    yaw_range_deg: tuple[float, float] = (0.0, 360.0)
    intensity_range: tuple[float, float] = (1.0, 1.0)
    seed: int = 0
    lamp: Lamp = "none"
    shared_yaw: bool = False

    def __post_init__(self) -> None:
        if not self.environments:
            raise UserError("there must be at least one light, got none; name one, such as studio")
        for name in ("yaw_range_deg", "intensity_range"):
            low, high = getattr(self, name)
            if not (math.isfinite(low) and math.isfinite(high) and low <= high):
                raise UserError(f"{name} must be a range from low to high, got {low} to {high}")
        if self.intensity_range[0] < 0:
            raise UserError(f"intensity must be 0 or more, got {self.intensity_range[0]}")

    def sample(self, step: int, batch: int) -> Lighting:
        """Draws the light of a step's ``batch`` views."""
        key = NoiseKey(self.seed, step, torch.tensor([_SHARED_BY_THE_STEP]), LIGHT_STREAM)
        choice = int(philox_uniform(key, 1) * len(self.environments))
        environment = self.environments[choice]
        numbers = philox_uniform(replace(key, sample=torch.arange(batch)), 4)
        yaw, intensity = (
            (low + (high - low) * numbers[:, column]).to(environment.specular)
            for column, (low, high) in enumerate((self.yaw_range_deg, self.intensity_range))
        )
        if self.shared_yaw:
            yaw = yaw[:1].expand(batch)
        lighting = Lighting(environment, torch.deg2rad(yaw), intensity)
        if self.lamp == "none":
            return lighting
        towards = _on_sphere(numbers[:, 2], numbers[:, 3]).to(environment.specular)[:, None]
        color = torch.full_like(towards, LAMP_IRRADIANCE)
        if self.lamp == "directional":
            return replace(lighting, directions=DirectionalLights(towards, color))
        points = PointLights(LAMP_DISTANCE * towards, color * LAMP_DISTANCE**2)
        return replace(lighting, points=points)


def _on_sphere(u: Tensor, v: Tensor) -> Tensor:
    """[n, 3] uniform unit vectors from uniform numbers [n] in [0, 1)."""
    y, angle = 2 * u - 1, 2 * math.pi * v
    rim = (1 - y.square()).sqrt()
    return torch.stack((rim * angle.cos(), y, rim * angle.sin()), dim=1)
