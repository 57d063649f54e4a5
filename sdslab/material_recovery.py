"""Recovers a known material by SDS against Eq. 3's denoiser: Figure 2's question asked on a mesh.

At every step the degenerate distribution has one sample, the picture of the known material under
the step's view, light and background; the renderer is between θ and that picture.
"""

from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from sdslab.denoisers.degenerate import DegenerateDenoiser
from sdslab.denoisers.noise_schedule import (
    NoiseSchedule,
    UniformTimesteps,
    weighting_named,
)
from sdslab.diffusion_space import PixelSpace
from sdslab.distillation.sds import exact_sds_gradient
from sdslab.kernels import NoiseKey, SDSResult
from sdslab.meshes.material import MAPS, constant_material
from sdslab.optimization.material_optimization import MaterialConfig, MaterialProblem
from sdslab.optimization.optimizer_state import OptimizeConfig
from sdslab.parameterizations.parameterization import Parameterization
from sdslab.pictures.metrics import psnr_db
from sdslab.rendering.cameras import EVALUATION_VIEWS, Views
from sdslab.rendering.cpu_backend import CpuBackend
from sdslab.rendering.lighting import Environment, Lamp, Lighting, LightSampler
from sdslab.rendering.renderer import Renderer, Surface
from sdslab.rendering.scene import Scene, SceneSampler, sample_background
from sdslab.rendering.texels import SeenTexels, covered_texels

LightTurn = Literal["picture", "step", "never"]
LAST_STEP = 2**32 - 1  # that the counter-based generator can number: no run gets there


def grey_material(size: int, unlit: bool) -> Tensor:
    """Where a recovery starts, [size, size, 8]: CasTex's 0.5 everywhere and no bumps.

    Unlit pictures tell nothing of metal, which would stay as it is: they start without.
    """
    return constant_material(size, size, metallic=0.0 if unlit else 0.5)


def light_sampler(
    names: tuple[str, ...],
    fixed: bool,
    seed: int,
    device: torch.device,
    lamp: Lamp = "none",
    turn: LightTurn = "picture",
    intensity: tuple[float, float] = (0.6, 1.4),
) -> LightSampler:
    """Lights of each step: one of ``names``, turned and dimmed at random unless ``fixed``.

    Args:
        names: as `Environment.of` takes them.
        fixed: neither turned nor dimmed.
        seed: of the run.
        device: where they are.
        lamp: a small light besides.
        turn: by another angle for each picture, by one for all of a step, or not.
        intensity: range of what a picture's light is multiplied by.
    """
    return LightSampler(
        tuple(Environment.of(name).to(device) for name in names),
        yaw_range_deg=(0, 0) if fixed or turn == "never" else (0, 360),
        intensity_range=(1, 1) if fixed else intensity,
        seed=seed,
        lamp=lamp,
        shared_yaw=turn == "step",
    )


def recovery_optimization(steps: int, learning_rate: float) -> OptimizeConfig:
    """Adam as it recovers best.

    The rate falls to zero, for views and lights are drawn anew in each step and their noise must
    average out; and β₂ = 0.99, for gradients shrink by orders of magnitude on the way, which the
    running mean of their squares has to follow.
    """
    return OptimizeConfig(
        steps,
        learning_rate=learning_rate,
        learning_rate_schedule="cosine",
        adam_betas=(0.9, 0.99),
    )


def recovery_problem(
    theta: Parameterization,
    target: Tensor,
    renderer: Renderer,
    scenes: SceneSampler,
    config: MaterialConfig,
    seen: SeenTexels,
) -> MaterialProblem:
    """A known material to recover in pixel space, guided by Eq. 3 for its picture in each scene.

    Args:
        theta: eight channels.
        target: the known material, [h, w, 8], on the renderer's device.
        renderer: of the mesh.
        scenes: views, lights and backgrounds of each step; their seed is that of the timesteps too.
        config: of the optimisation.
        seen: of the maps' size.
    """
    schedule, weighting = NoiseSchedule.deepfloyd_if(), weighting_named("x0_unit")
    space, timesteps = PixelSpace(), UniformTimesteps()
    sample = torch.arange(config.views, device=renderer.device)

    @torch.no_grad()
    def guide(z: Tensor, index: int, scene: Scene, surface: Surface) -> SDSResult:
        picture = renderer.picture(surface, target, scene.lighting, scene.background)
        denoiser = DegenerateDenoiser(space.encode(picture), schedule)
        key = NoiseKey(scenes.seed, index, sample)
        t = timesteps(key, index / config.optimization.steps)
        return exact_sds_gradient(z, denoiser, t, weighting=weighting)

    return MaterialProblem(theta, renderer, scenes, space, guide, config, seen)


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
def view_psnr_db(maps: Tensor, target: Tensor, renderer: Renderer, scenes: list[Scene]) -> float:
    """PSNR of pictures of two materials, over the covered pixels of all scenes."""
    pixels: tuple[list[Tensor], list[Tensor]] = ([], [])
    for scene in scenes:
        surface = renderer.see(scene.cameras, scene.background.shape[-1])
        covered = (surface.coverage() == 1).expand(-1, 3, -1, -1)
        for material, values in zip((maps, target), pixels, strict=True):
            picture = renderer.picture(surface, material, scene.lighting, scene.background)
            values.append(picture.clamp(0, 1)[covered])
    return psnr_db(*(torch.cat(values) for values in pixels))


def held_out_scenes(scenes: SceneSampler, views: Views) -> list[Scene]:
    """A named set of views on white, under each of the run's lights.

    The light is turned and dimmed as no step of a run is: of a step beyond every run's last, so
    that runs of different lengths are measured alike. A fixed light is what it always was.
    """
    cameras = EVALUATION_VIEWS[views]()
    background = sample_background(
        "white", 0, 0, len(cameras), (scenes.resolution, scenes.resolution)
    )
    if scenes.lights is None:
        return [Scene(cameras, None, background)]
    return [
        Scene(
            cameras,
            replace(scenes.lights, environments=(environment,)).sample(LAST_STEP, len(cameras)),
            background,
        )
        for environment in scenes.lights.environments
    ]


@dataclass(frozen=True)
class Measurement:
    """How near a recovered material is to the known one.

    Attributes:
        view_psnr_db: of pictures from held-out views, see `held_out_scenes`.
        white_room_psnr_db: of the same views with white light from everywhere; None if unlit.
        map_psnr_db: of each map, over the texels that were seen; of the albedo alone if unlit.
        pictures: how many `view_psnr_db` is of.
        covered_texels: texels that a face covers.
        seen_texels: those of them that a view of the run looked at.
    """

    view_psnr_db: float
    white_room_psnr_db: float | None
    map_psnr_db: dict[str, float]
    pictures: int
    covered_texels: int
    seen_texels: int


def measure(
    maps: Tensor,
    target: Tensor,
    renderer: Renderer,
    scenes: SceneSampler,
    seen: Tensor,
    views: Views = "castex",
) -> Measurement:
    """Compares two materials, [h, w, 8] each, where ``seen`` [h, w] tells what a run looked at."""
    held_out = held_out_scenes(scenes, views)
    size = (maps.shape[0], maps.shape[1])
    covered = covered_texels(renderer.mesh, size, CpuBackend())
    texels = seen.cpu() & covered
    map_psnr = map_psnr_db(maps.cpu(), target.cpu(), texels)
    white_room = None
    if scenes.lights is None:
        map_psnr = {"albedo": map_psnr["albedo"]}
    else:
        white = Environment.of("white").to(renderer.device)
        lighting = Lighting.fixed(white, len(held_out[0].cameras))
        white_room = view_psnr_db(maps, target, renderer, [replace(held_out[0], lighting=lighting)])
    return Measurement(
        view_psnr_db=view_psnr_db(maps, target, renderer, held_out),
        white_room_psnr_db=white_room,
        map_psnr_db=map_psnr,
        pictures=sum(len(scene.cameras) for scene in held_out),
        covered_texels=int(covered.sum()),
        seen_texels=int(texels.sum()),
    )
