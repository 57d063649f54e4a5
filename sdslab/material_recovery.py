"""Recovers a known material by SDS against Eq. 3's denoiser: Figure 2's question asked on a mesh.

At every step the degenerate distribution has one sample, the picture of the known material under
the step's view, light and background; the renderer is between θ and that picture.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from sdslab.denoisers.degenerate import DegenerateDenoiser
from sdslab.denoisers.noise_schedule import (
    DEEPFLOYD_IF,
    NoiseSchedule,
    UniformTimesteps,
    weighting_named,
)
from sdslab.diffusion_space import DiffusionSpace
from sdslab.distillation.sds import exact_sds_gradient
from sdslab.kernels import NoiseKey, SDSResult
from sdslab.meshes.material import MAPS, constant_material
from sdslab.metrics import psnr_db
from sdslab.optimize import OptimizeConfig, Step, optimize
from sdslab.parameterizations.parameterization import Parameterization
from sdslab.parameterizations.pixel import TexelGrid
from sdslab.rendering.backgrounds import sample_background
from sdslab.rendering.cameras import EVALUATION_VIEWS
from sdslab.rendering.lighting import Environment, LightSampler
from sdslab.rendering.material_projection import project_material_
from sdslab.rendering.renderer import Renderer, Surface
from sdslab.rendering.scene import Scene, SceneSampler


@dataclass(frozen=True)
class RecoveryConfig:
    """What each step of a recovery does."""

    views: int
    """Pictures a step."""
    optimization: OptimizeConfig
    """How θ moves."""
    weighting: str = "x0_unit"
    """w(t), a name of ``sdslab.denoisers.noise_schedule.WEIGHTINGS``."""
    frozen: tuple[str, ...] = ()
    """Names of `MAPS` that stay as they start."""


def maps_of(theta: Parameterization) -> Tensor:
    """g(θ) as [h, w, 8], attached to θ's graph."""
    return theta().squeeze(0).movedim(0, -1)


def grey_material(size: int, unlit: bool) -> Tensor:
    """Where a recovery starts, [size, size, 8]: CasTex's 0.5 everywhere and no bumps.

    Unlit pictures tell nothing of metal, which would stay as it is: they start without.
    """
    return constant_material(size, size, metallic=0.0 if unlit else 0.5)


def light_sampler(
    names: tuple[str, ...], fixed: bool, seed: int, device: torch.device
) -> LightSampler:
    """Lights of each step: one of ``names``, turned and dimmed at random unless ``fixed``."""
    return LightSampler(
        tuple(Environment.of(name).to(device) for name in names),
        yaw_range_deg=(0, 0) if fixed else (0, 360),
        intensity_range=(1, 1) if fixed else (0.6, 1.4),
        seed=seed,
    )


def held_out_scene(scenes: SceneSampler, step: int, views_name: str = "castex") -> Scene:
    """A named set of `EVALUATION_VIEWS`, under light of a step that was never taken."""
    views = EVALUATION_VIEWS[views_name]()
    size = (scenes.resolution, scenes.resolution)
    return Scene(
        views,
        scenes.lights.sample(step, len(views)) if scenes.lights else None,
        sample_background("white", 0, 0, len(views), size),
    )


def recover(
    theta: TexelGrid,
    target: Tensor,
    renderer: Renderer,
    scenes: SceneSampler,
    space: DiffusionSpace,
    config: RecoveryConfig,
) -> Iterator[Step]:
    """Moves θ towards the material whose pictures the denoiser knows, step by step.

    Args:
        theta: the material to optimise.
        target: the known material, [h, w, 8].
        renderer: of the mesh.
        scenes: views, lights and backgrounds of each step.
        space: of the diffusion model.
        config: steps and optimiser.

    Yields:
        One `Step` before each update; its ``z`` is what the diffusion model saw.
    """
    schedule = NoiseSchedule.from_scheduler_config(DEEPFLOYD_IF)
    weighting = weighting_named(config.weighting)
    timesteps = UniformTimesteps()
    sample = torch.arange(config.views, device=renderer.device)
    seen: tuple[int, Scene, Surface] | None = None

    def scene_of(index: int) -> tuple[Scene, Surface]:
        nonlocal seen
        if seen is None or seen[0] != index:
            scene = scenes.sample(index, config.views, renderer.positions.cpu())
            seen = index, scene, renderer.see(scene.cameras, scenes.resolution)
        return seen[1:]

    def diffused(index: int) -> Tensor:
        scene, surface = scene_of(index)
        picture = renderer.picture(surface, maps_of(theta), scene.lighting, scene.background)
        return space.encode(picture)

    def gradient(z: Tensor, index: int) -> SDSResult:
        scene, surface = scene_of(index)
        with torch.no_grad():
            picture = renderer.picture(surface, target, scene.lighting, scene.background)
            denoiser = DegenerateDenoiser(space.encode(picture), schedule)
        t = timesteps(NoiseKey(scenes.seed, index, sample), index / config.optimization.steps)
        return exact_sds_gradient(z, denoiser, t, weighting=weighting)

    initial = theta.texels.detach().clone() if config.frozen else None

    def project() -> None:
        maps = theta.texels.detach()
        project_material_(maps)
        for name in config.frozen:
            assert initial is not None
            maps[..., MAPS[name]] = initial[..., MAPS[name]]

    yield from optimize(theta.parameters(), diffused, gradient, config.optimization, project)


@torch.no_grad()
def map_psnr_db(maps: Tensor, target: Tensor, texels: Tensor) -> dict[str, float]:
    """PSNR of each map over some texels, and of all eight channels.

    Args:
        maps: [h, w, 8].
        target: like ``maps``.
        texels: [h, w] bool.
    """
    return {
        name: psnr_db(maps[texels][:, channels], target[texels][:, channels])
        for name, channels in {**MAPS, "all": slice(None)}.items()
    }


@torch.no_grad()
def view_psnr_db(maps: Tensor, target: Tensor, renderer: Renderer, scene: Scene) -> float:
    """PSNR of pictures of two materials, over the covered pixels alone."""
    surface = renderer.see(scene.cameras, scene.background.shape[-1])
    covered = (surface.coverage() == 1).expand(-1, 3, -1, -1)
    pictures = (
        renderer.picture(surface, material, scene.lighting, scene.background).clamp(0, 1)[covered]
        for material in (maps, target)
    )
    return psnr_db(*pictures)
