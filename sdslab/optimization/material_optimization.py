"""A material moved by a distillation gradient through the renderer: every stage, every recovery."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor

from sdslab.diffusion_space import DiffusionSpace
from sdslab.kernels import SDSResult
from sdslab.meshes.material import CHANNELS, MAPS, renormalized
from sdslab.optimization.optimize import Step, optimize
from sdslab.optimization.optimize_config import OptimizeConfig
from sdslab.optimization.optimizer_state import OptimizerState
from sdslab.parameterizations.parameterization import Parameterization
from sdslab.parameterizations.pixel import TexelGrid
from sdslab.rendering.material_projection import material_bounds, project_material_
from sdslab.rendering.renderer import Renderer, Surface
from sdslab.rendering.scene import Scene, Scenes
from sdslab.rendering.texels import SeenTexels

# From (z detached, step index, the step's scene, what its pixels show) to the gradient of z.
Guide = Callable[[Tensor, int, Scene, Surface], SDSResult]
# From what the pixels show, the maps [h, w, 8] and the scene to pictures [b, c, height, width].
Picture = Callable[[Surface, Tensor, Scene], Tensor]


@dataclass(frozen=True)
class MaterialConfig:
    """What each step does."""

    views: int
    """Pictures a step."""
    optimization: OptimizeConfig
    """How θ moves."""
    frozen: tuple[str, ...] = ()
    """Names of `MAPS` that stay as they start."""
    initial: Tensor | None = None
    """[h, w, 8] that a network's frozen maps are taken from, for it starts where it likes."""

    def frozen_channels(self, device: torch.device) -> Tensor:
        """Which of the eight channels are frozen, [8] bool."""
        return _channels_of(self.frozen, device)


@cache
def _channels_of(names: tuple[str, ...], device: torch.device) -> Tensor:
    channels = torch.zeros(CHANNELS, dtype=torch.bool)
    for name in names:
        channels[MAPS[name]] = True
    return channels.to(device)


def maps_of(theta: Parameterization, config: MaterialConfig | None = None) -> Tensor:
    """g(θ) as the material's maps [h, w, 8], attached to θ's graph.

    A grid of texels is kept valid by projection after each step, its frozen maps too. The output
    of a network, in (0, 1), is spread over the valid range instead, its normals are normalised, and
    ``config.initial`` takes the place of the frozen maps.
    """
    maps = theta().squeeze(0).movedim(0, -1)
    if isinstance(theta, TexelGrid):
        return maps
    lower, upper = material_bounds(maps.device, maps.dtype)
    maps = renormalized(lower + (upper - lower) * maps)
    if config is None or config.initial is None or not config.frozen:
        return maps
    return torch.where(config.frozen_channels(maps.device), config.initial.to(maps), maps)


def optimize_material(
    theta: Parameterization,
    renderer: Renderer,
    scenes: Scenes,
    space: DiffusionSpace,
    guide: Guide,
    config: MaterialConfig,
    seen: SeenTexels,
    state: OptimizerState | None = None,
    picture: Picture | None = None,
) -> Iterator[Step]:
    """Moves θ along a distillation gradient of its pictures, step by step.

    Args:
        theta: eight channels.
        renderer: of the mesh.
        scenes: views, lights and backgrounds of each step.
        space: of the diffusion model.
        guide: the gradient of z; it may render other materials in the same scene.
        config: steps, optimiser and frozen maps.
        seen: of the maps' size; what the views look at is marked.
        state: what to go on from, as `optimize` takes it.
        picture: what the space encodes, differentiable in the maps; None is the shaded material.

    Yields:
        One `Step` before each update; its ``z`` is what the diffusion model saw.
    """
    latest: tuple[int, Scene, Surface] | None = None

    def sight(index: int) -> tuple[Scene, Surface]:
        nonlocal latest
        if latest is None or latest[0] != index:
            scene = scenes.sample(index, config.views, renderer.extreme_points)
            surface = renderer.see(scene.cameras, scenes.resolution)
            seen.mark(surface)
            latest = index, scene, surface
        return latest[1:]

    def diffused(index: int) -> Tensor:
        scene, surface = sight(index)
        maps = maps_of(theta, config)
        if picture is not None:
            return space.encode(picture(surface, maps, scene))
        return space.encode(renderer.picture(surface, maps, scene.lighting, scene.background))

    def gradient(z: Tensor, index: int) -> SDSResult:
        return guide(z, index, *sight(index))

    project = projection(theta, config)
    yield from optimize(theta.parameters(), diffused, gradient, config.optimization, project, state)


def projection(theta: Parameterization, config: MaterialConfig) -> Callable[[], None]:
    """What keeps a grid of texels valid, and its frozen maps as they are now."""
    if not isinstance(theta, TexelGrid):
        return lambda: None
    texels, scale = theta.texels.detach(), theta.scale
    initial = texels.clone() if config.frozen else None
    frozen = config.frozen_channels(texels.device)

    def project() -> None:
        if scale is not None:
            texels.mul_(scale)
        project_material_(texels)
        if scale is not None:
            texels.div_(scale)
        if initial is not None:
            texels.copy_(torch.where(frozen, initial, texels))

    return project
