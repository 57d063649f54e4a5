"""SDS on a mesh is what Figure 2 says it is: with Eq. 3's denoiser, the gradient of an MSE."""

import math
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from sdslab.material_recovery import (
    grey_material,
    held_out_scenes,
    light_sampler,
    map_psnr_db,
    measure,
    recovery_optimization,
    recovery_problem,
    view_psnr_db,
)
from sdslab.meshes.material import ALBEDO, MAPS, constant_material, picture_material, without
from sdslab.meshes.procedural_meshes import PROCEDURAL_MESHES
from sdslab.optimization.material_optimization import MaterialConfig, maps_of, optimize_material
from sdslab.optimization.optimize import Step
from sdslab.optimization.optimizer_state import OptimizeConfig
from sdslab.parameterizations.pixel import TexelGrid
from sdslab.rendering.cameras import CameraSampler
from sdslab.rendering.cpu_backend import CpuBackend
from sdslab.rendering.lighting import Environment, LightSampler
from sdslab.rendering.renderer import Renderer
from sdslab.rendering.scene import SceneSampler
from sdslab.rendering.texels import SeenTexels


@pytest.fixture(scope="module")
def renderer() -> Renderer:
    return Renderer(PROCEDURAL_MESHES["torus"](), CpuBackend())


@pytest.fixture(scope="module")
def lights() -> LightSampler:
    rows = torch.linspace(0.2, 1.5, 16)[:, None, None].expand(16, 32, 3).contiguous()
    return LightSampler((Environment.from_radiance(rows, resolution=16),), seed=1)


def scenes(lights: LightSampler | None, resolution: int = 48) -> SceneSampler:
    return SceneSampler(CameraSampler(radius=(3.5, 3.5)), lights, "random", resolution, seed=1)


def target(size: int) -> torch.Tensor:
    picture = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    picture = torch.nn.functional.interpolate(picture, size=(size, size), mode="bilinear")[0]
    return picture_material(picture, roughness=0.7)


def recovered(*setting: Any) -> Iterator[Step]:
    return optimize_material(recovery_problem(*setting))


def unseen(size: int) -> SeenTexels:
    return SeenTexels((size, size))


@pytest.mark.parametrize("lit", [False, True], ids=["unlit", "lit"])
def test_the_gradient_of_theta_is_that_of_half_the_squared_error(
    renderer: Renderer, lights: LightSampler, lit: bool
):
    sampler = scenes(lights if lit else None)
    theta, known = TexelGrid(grey_material(32, unlit=False)), target(32)
    config = MaterialConfig(2, OptimizeConfig(1))
    (step,) = recovered(theta, known, renderer, sampler, config, unseen(32))
    assert theta.texels.grad is not None
    sds, loss = theta.texels.grad, step.loss
    scene = sampler.sample(0, 2, renderer.extreme_points)
    surface = renderer.see(scene.cameras, 48)
    maps = grey_material(32, unlit=False).requires_grad_()
    pictures = [
        2 * renderer.picture(surface, m, scene.lighting, scene.background) - 1
        for m in (maps, known)
    ]
    squared_error = (pictures[0] - pictures[1].detach()).square().sum()
    (gradient,) = torch.autograd.grad(squared_error / 2, maps)
    assert gradient.abs().max() > 0
    assert (sds - gradient).abs().max() < 1e-5 * gradient.abs().max()
    assert loss == pytest.approx(squared_error.item() / 2, rel=1e-5)


def test_an_unlit_albedo_is_recovered(renderer: Renderer):
    theta, known = TexelGrid(grey_material(32, unlit=True)), target(32)
    config = MaterialConfig(
        4, OptimizeConfig(60, learning_rate=0.1, learning_rate_schedule="cosine")
    )
    sampler = scenes(None, 64)
    seen = unseen(32)
    for _ in recovered(theta, known, renderer, sampler, config, seen):
        pass
    measurement = measure(maps_of(theta).detach(), known, renderer, sampler, seen.texels())
    assert measurement.covered_texels == 32 * 32  # the torus fills its atlas
    assert measurement.seen_texels > 0.9 * 32 * 32
    assert measurement.pictures == 20
    assert measurement.map_psnr_db.keys() == {"albedo"}
    assert measurement.map_psnr_db["albedo"] > 30
    assert measurement.view_psnr_db > 40
    assert measurement.white_room_psnr_db is None


@pytest.mark.slow
def test_several_lights_tell_paint_from_shading(renderer: Renderer):
    """Where nothing is metal: under one light, a darker albedo and a turned normal look alike."""
    known = target(64)
    albedo_db = []
    for names, fixed in ((("studio",), True), (("studio", "sky"), False)):
        sampled = light_sampler(names, fixed, 0, torch.device("cpu"))
        sampler = SceneSampler(CameraSampler(radius=(3.5, 3.5)), sampled, "random", 64, seed=0)
        theta = TexelGrid(without(grey_material(64, unlit=False), ("metallic",)))
        config = MaterialConfig(4, recovery_optimization(500, 0.025), frozen=("metallic",))
        for _ in recovered(theta, known, renderer, sampler, config, unseen(64)):
            pass
        everywhere = torch.ones(64, 64, dtype=torch.bool)  # the torus fills its atlas
        albedo_db.append(map_psnr_db(maps_of(theta).detach(), known, everywhere)["albedo"])
    assert albedo_db[1] > albedo_db[0] + 2


def test_a_texel_without_gradient_was_seen_all_the_same(renderer: Renderer):
    """Where θ starts at the target, nothing moves, and yet everything is looked at."""
    theta, seen = TexelGrid(target(16)), unseen(16)
    config = MaterialConfig(2, OptimizeConfig(3, learning_rate=0.05))
    for _ in recovered(theta, target(16), renderer, scenes(None), config, seen):
        pass
    assert seen.texels().double().mean() > 0.5


def test_the_measurement_is_of_every_light(renderer: Renderer, lights: LightSampler):
    dark = Environment.from_radiance(torch.full((16, 32, 3), 0.1), resolution=16)
    both = LightSampler((*lights.environments, dark), seed=1)
    sampler, maps, known = scenes(both), grey_material(16, unlit=False), target(16)
    seen = torch.ones(16, 16, dtype=torch.bool)
    measurement = measure(maps, known, renderer, sampler, seen, "six")
    assert measurement.pictures == 12
    held_out = held_out_scenes(sampler, "six")
    each = [view_psnr_db(maps, known, renderer, [scene]) for scene in held_out]
    mean_square = sum(10 ** (-value / 10) for value in each) / 2  # the same pixels under each
    assert measurement.view_psnr_db == pytest.approx(-10 * math.log10(mean_square), abs=1e-3)
    assert measurement.white_room_psnr_db is not None


def test_frozen_maps_stay(renderer: Renderer, lights: LightSampler):
    start = grey_material(16, unlit=False)
    theta = TexelGrid(start)
    config = MaterialConfig(2, OptimizeConfig(3, learning_rate=0.05), frozen=("albedo", "normal"))
    known, seen = target(16), unseen(16)
    for _ in recovered(theta, known, renderer, scenes(lights), config, seen):
        pass
    for name, channels in MAPS.items():
        assert theta.texels.detach()[..., channels].equal(start[..., channels]) == (
            name in config.frozen
        ), name


def test_steps_do_not_depend_on_threads(renderer: Renderer):
    """The renderer's own kernels: the same maps, bit for bit."""
    before = torch.get_num_threads()
    results = []
    try:
        for threads in (1, 2):
            torch.set_num_threads(threads)
            theta = TexelGrid(grey_material(16, unlit=False))
            config = MaterialConfig(2, OptimizeConfig(3, learning_rate=0.05))
            known, seen = target(16), unseen(16)
            for _ in recovered(theta, known, renderer, scenes(None), config, seen):
                pass
            results.append(theta.texels.detach().clone())
    finally:
        torch.set_num_threads(before)
    assert results[0].equal(results[1])


def test_held_out_scenes_have_light_of_their_own(lights: LightSampler):
    sampler = scenes(lights)
    (held_out,) = held_out_scenes(sampler, "castex")
    assert len(held_out.cameras) == 20
    assert held_out.lighting is not None
    for step in range(50):
        trained = sampler.sample(step, 4, torch.zeros(1, 3))
        assert trained.lighting is not None
        assert not torch.isin(held_out.lighting.yaw, trained.lighting.yaw).any()


def test_psnr_of_maps_counts_the_chosen_texels_only():
    known = constant_material(4, 4)
    maps = known.clone()
    maps[0, 0, ALBEDO] += 0.1
    chosen = torch.ones(4, 4, dtype=torch.bool)
    assert map_psnr_db(maps, known, chosen)["albedo"] == pytest.approx(20 + 10 * 1.20412, abs=0.01)
    chosen[0, 0] = False
    assert map_psnr_db(maps, known, chosen)["albedo"] == float("inf")
