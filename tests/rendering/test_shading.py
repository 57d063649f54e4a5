import math
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sdslab.meshes.material import FLAT_NORMAL
from sdslab.pictures.color import linear_to_srgb, srgb_to_linear
from sdslab.rendering.environment_map import load_environment, resize
from sdslab.rendering.lighting import DirectionalLights, Environment, Lighting, PointLights
from sdslab.rendering.shading import (
    DIELECTRIC_F0,
    LEAST_DIRECT_ROUGHNESS,
    brdf,
    directional_albedo,
    shade,
    shade_unlit,
)

MODES = ("srgb", "castex")


def constant_environment(radiance: float = 1.0) -> Environment:
    sh = torch.zeros(9, 3)
    sh[0] = radiance * math.sqrt(4 * math.pi)
    return Environment(torch.full((3, 2, 4, 4), radiance), sh).to(dtype=torch.float64)


def lights(environment: Environment, batch: int = 1, **more: Any) -> Lighting:
    zeros = torch.zeros(batch, dtype=torch.float64)
    return Lighting(environment, more.pop("yaw", zeros), zeros + 1, **more)


def dark(**more: Any) -> Lighting:
    return lights(constant_environment(0), **more)


def unit(*shape: int, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return F.normalize(torch.randn(*shape, generator=generator, dtype=torch.float64), dim=-1)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def texels(
    n: int,
    color: Tensor | float = 1.0,
    roughness: Tensor | float = 0.5,
    metallic: Tensor | float = 0,
) -> Tensor:
    """[n, 8] of encoded albedo, roughness, metallic and a flat normal."""
    maps = torch.tensor([1.0, 1, 1, 0, 0, *FLAT_NORMAL], dtype=torch.float64).repeat(n, 1)
    maps[:, :3], maps[:, 3], maps[:, 4] = color, roughness, metallic  # pyright: ignore[reportArgumentType]
    return maps


def scene(n: int, seed: int = 0) -> dict[str, Any]:
    """Points with random frames, all of them visible from their eye."""
    normal, eye = unit(n, 3, seed=seed), 4 * unit(1, 3, seed=seed + 1)
    normal = torch.where((normal @ eye.T) < 0, -normal, normal)
    tangent = F.normalize(torch.linalg.cross(normal, unit(n, 3, seed=seed + 2)), dim=-1)
    return {
        "position": 0.5 * normal,
        "normal": normal,
        "tangent": F.pad(tangent, (0, 1), value=1.0),
        "eye": eye,
        "sample": torch.zeros(n, dtype=torch.long),
    }


def facing(n_dot_v: Tensor) -> dict[str, Any]:
    """Points at the origin with normal +Z, each with a view of its own."""
    n = len(n_dot_v)
    return {
        "position": torch.zeros(n, 3).double(),
        "normal": torch.tensor([[0, 0, 1.0]]).double().expand(n, 3),
        "tangent": torch.tensor([[1.0, 0, 0, 1]]).double().expand(n, 4),
        "eye": torch.stack(((1 - n_dot_v**2).sqrt(), 0 * n_dot_v, n_dot_v), dim=-1),
        "sample": torch.arange(n),
    }


def quadrature_of_albedo(n_dot_v: float, roughness: float) -> tuple[float, float]:
    """A and B from the BRDF itself, integrated over half vectors in polar coordinates."""
    k = 700
    alpha2 = roughness**4
    # tan²θ = α² s / (1 − s) spreads s evenly over the distribution of normals.
    s = ((torch.arange(k, dtype=torch.float64) + 0.5) / k)[:, None]
    phi = (torch.arange(k, dtype=torch.float64) + 0.5) * (math.pi / k)
    cosine2 = (1 - s) / (1 - s + alpha2 * s)
    h_z, h_x = cosine2.sqrt(), (1 - cosine2).sqrt() * phi.cos()
    v_x = math.sqrt(1 - n_dot_v**2)
    v_dot_h = (v_x * h_x + n_dot_v * h_z).clamp_min(0)
    n_dot_l = (2 * v_dot_h * h_z - n_dot_v).clamp_min(0)

    def masking(c: Tensor) -> Tensor:
        return 2 * c / (c + (alpha2 + (1 - alpha2) * c * c).sqrt()).clamp_min(1e-300)

    weight = masking(n_dot_l) * masking(torch.tensor(n_dot_v)) * v_dot_h / (n_dot_v * h_z)
    schlick = (1 - v_dot_h) ** 5
    return float((weight * (1 - schlick)).mean()), float((weight * schlick).mean())


@pytest.mark.parametrize("roughness", [0.05, 0.12, 0.33, 0.5, 0.71, 0.93, 1.0])
def test_directional_albedo_is_the_integral(roughness: float):
    for n_dot_v in (0.02, 0.07, 0.2, 0.45, 0.77, 0.99):
        c, r = torch.tensor([n_dot_v]).double(), torch.tensor([roughness]).double()
        a, b, _ = directional_albedo(c, r)
        expected_a, expected_b = quadrature_of_albedo(n_dot_v, roughness)
        assert abs(float(a) - expected_a) < 0.01
        assert abs(float(b) - expected_b) < 0.01


def test_no_look_up_is_one_that_cudnn_takes(monkeypatch: pytest.MonkeyPatch):
    """cuDNN's sampler refuses more points than it has addresses for; torch's own does not."""
    taken, sample = [], F.grid_sample

    def watched(picture: Tensor, grid: Tensor, mode="bilinear", padding_mode="zeros", **options):
        by_cudnn = (mode, padding_mode, options.get("align_corners")) == ("bilinear", "zeros", True)
        taken.append(by_cudnn)
        return sample(picture, grid, mode, padding_mode, **options)

    monkeypatch.setattr(F, "grid_sample", watched)
    shade(texels(20), **scene(20), lighting=lights(constant_environment()))
    assert len(taken) == 2  # the directional albedo and the environment
    assert not any(taken)


def test_directional_albedo_of_a_mirror_is_schlick():
    c = torch.linspace(0.05, 1, 50).double()
    a, b, _ = directional_albedo(c, torch.zeros_like(c))
    torch.testing.assert_close(b, (1 - c) ** 5, atol=0.005, rtol=0)
    torch.testing.assert_close(a + b, torch.ones_like(c), atol=0.005, rtol=0)


def test_mean_albedo_is_the_cosine_weighted_mean():
    c = ((torch.arange(2000) + 0.5) / 2000).double()
    for roughness in (0.0, 0.3, 0.77, 1.0):
        a, b, mean = directional_albedo(c, torch.full_like(c, roughness))
        expected = (2 * c * (DIELECTRIC_F0 * a + b)).mean()
        assert abs(float(mean[0] - expected)) < 5e-4


def test_white_furnace_never_gives_more_than_it_gets():
    n_dot_v, roughness, metallic, albedo = (
        axis.flatten()
        for axis in torch.meshgrid(
            torch.cat((torch.tensor([1e-3, 1e-2]), torch.linspace(0.05, 1, 20))).double(),
            torch.linspace(0, 1, 21).double(),
            torch.linspace(0, 1, 5).double(),
            torch.tensor([0.0, 0.5, 1.0]).double(),
            indexing="ij",
        )
    )
    n = len(n_dot_v)
    maps = texels(n, albedo[:, None], roughness, metallic)
    light = lights(constant_environment(), n)
    radiance = shade(maps, **facing(n_dot_v), lighting=light)
    assert radiance.max() <= 1 + 1e-5
    assert radiance.min() > 0
    white_dielectric = (albedo == 1) & (metallic == 0)
    torch.testing.assert_close(
        radiance[white_dielectric],
        torch.ones_like(radiance[white_dielectric]),
        atol=1e-5,
        rtol=0,
    )
    castex = shade(maps, **facing(n_dot_v), lighting=light, color_mode="castex")
    assert castex[white_dielectric].min() > 1.01  # what the coupling corrects


def test_small_lights_from_everywhere_are_the_white_furnace():
    """∫ BRDF n·l dω by distant lights, against the environment's closed form."""
    rings, sectors = 96, 192
    cosine = (torch.arange(rings, dtype=torch.float64) + 0.5) / rings
    phi = (torch.arange(sectors, dtype=torch.float64) + 0.5) * (2 * math.pi / sectors)
    sine = (1 - cosine**2).sqrt()[:, None]
    light = torch.stack((sine * phi.cos(), sine * phi.sin(), cosine[:, None].expand(-1, sectors)))
    light = light.reshape(3, -1)
    k = light.shape[1]
    for n_dot_v in (0.3, 0.8):
        v = torch.tensor([[math.sqrt(1 - n_dot_v**2)], [0], [n_dot_v]]).double().expand(3, k)
        n = torch.tensor([[0.0], [0], [1]]).double().expand(3, k)
        for roughness, metallic in ((0.4, 0.0), (0.8, 0.0), (0.6, 1.0), (0.9, 0.5)):
            albedo = torch.tensor([[1.0], [0.5], [0.1]]).double().expand(3, k)
            r, m = torch.full((k,), roughness).double(), torch.full((k,), metallic).double()
            total = brdf(albedo, r, m, n, v, light).sum(1) * (2 * math.pi / k)
            maps = texels(1, linear_to_srgb(albedo[:, 0]), roughness, metallic)
            view = facing(torch.tensor([n_dot_v]).double())
            expected = shade(maps, **view, lighting=lights(constant_environment()))[0]
            torch.testing.assert_close(total, expected, atol=0.01, rtol=0)


@pytest.mark.parametrize("mode", MODES)
def test_small_lights_are_reciprocal(mode):
    n = 500
    normal = torch.tensor([[0.0], [0], [1]]).double().expand(3, n)
    v, light = unit(n, 3, seed=1).T.clone(), unit(n, 3, seed=2).T.clone()
    v[2], light[2] = v[2].abs(), light[2].abs()
    albedo, roughness, metallic = uniform(3, n), uniform(n, seed=1), uniform(n, seed=2)
    there = brdf(albedo, roughness, metallic, normal, v, light, mode) / light[2]
    back = brdf(albedo, roughness, metallic, normal, light, v, mode) / v[2]
    torch.testing.assert_close(there, back, rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("mode", MODES)
def test_metal_has_no_diffuse_and_reflects_in_its_albedo(mode):
    view = scene(50)
    studio_like = Environment(uniform(3, 3, 10, 10), uniform(9, 3))
    black = shade(texels(50, 0.0, 0.0, 1.0), **view, lighting=lights(studio_like), color_mode=mode)
    coloured = torch.tensor([0.9, 0.6, 0.3]).double()
    metal = shade(
        texels(50, coloured, 0.0, 1.0), **view, lighting=lights(studio_like), color_mode=mode
    )
    white = shade(texels(50, 1.0, 0.0, 1.0), **view, lighting=lights(studio_like), color_mode=mode)
    f0 = srgb_to_linear(coloured) if mode == "srgb" else coloured
    torch.testing.assert_close(metal, torch.lerp(black, white, f0), rtol=1e-9, atol=1e-9)
    # Head on, a black metal reflects nothing at all.
    head_on = facing(torch.ones(1).double())
    nothing = shade(texels(1, 0.0, 0.0, 1.0), **head_on, lighting=lights(constant_environment()))
    assert nothing.max() < 1e-6


def test_castex_mode_is_the_papers_formula():
    """Colour = E(n)(1 − m) albedo + L(r, roughness)(F0 A + B), written out with plain loops."""
    n = 20
    view, environment = scene(n), Environment(uniform(3, 5, 18, 18), uniform(9, 3))
    maps = uniform(n, 8, seed=4)
    maps[:, 5:] = torch.tensor(FLAT_NORMAL)
    result = shade(maps, **view, lighting=lights(environment), color_mode="castex")
    for i in range(n):
        albedo, roughness, metallic = maps[i, :3], maps[i, 3:4], maps[i, 4]
        normal = view["normal"][i]
        v = F.normalize(view["eye"][0] - view["position"][i], dim=0)
        cosine = normal @ v
        r = 2 * cosine * normal - v
        a, b, _ = directional_albedo(cosine[None].clamp_min(1e-4), roughness)
        f0 = 0.04 * (1 - metallic) + metallic * albedo
        expected = environment.irradiance(normal[None])[0] * (1 - metallic) * albedo
        expected = expected + environment.radiance(r[None], roughness)[0] * (f0 * a + b)
        torch.testing.assert_close(result[i], expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("mode", MODES)
def test_gradients_of_the_maps_and_the_light_are_exact(mode):
    n = 6
    view = scene(n, seed=5)
    specular, sh = uniform(3, 4, 10, 10), uniform(9, 3)
    maps = (0.2 + 0.6 * uniform(n, 8, seed=3)).clone()
    maps[:, 7] = 0.9
    place, color = 3 * unit(1, 1, 3), torch.ones(1, 1, 3).double()
    yaw = torch.full((1,), 0.3).double()

    def pictured(maps: Tensor, *light: Tensor) -> Tensor:
        specular, sh, yaw, color = light or fixed
        lighting = lights(Environment(specular, sh), yaw=yaw, points=PointLights(place, color))
        return shade(maps, **view, lighting=lighting, color_mode=mode)

    fixed = (specular, sh, yaw, color)
    assert torch.autograd.gradcheck(pictured, (maps.requires_grad_(),))
    variable = tuple(tensor.clone().requires_grad_() for tensor in fixed)
    assert torch.autograd.gradcheck(pictured, (maps, *variable), fast_mode=True)


@pytest.mark.parametrize("mode", MODES)
def test_gradients_are_finite_at_every_extreme(mode):
    """Grazing and hidden normals, roughness 0 and 1, a light in the surface, a broken frame."""
    values = torch.tensor([0.0, 1.0])
    maps = torch.cartesian_prod(*[values] * 8).float()
    n = len(maps)
    view = {k: v.float() if v.is_floating_point() else v for k, v in scene(n).items()}
    view["tangent"][::7, :3] = 0
    view["tangent"][1::7, :3] = view["normal"][1::7]
    view["eye"] = view["position"][:1] + torch.linalg.cross(
        view["normal"][:1], view["tangent"][2:3, :3]
    )
    light = lights(
        Environment(uniform(3, 4, 10, 10), uniform(9, 3)),
        points=PointLights(view["position"][None, 3:5].double(), torch.ones(1, 2, 3)),
        directions=DirectionalLights(-view["normal"][None, :1].double(), torch.ones(1, 1, 3)),
    ).to(dtype=torch.float32)
    maps.requires_grad_()
    radiance = shade(maps, **view, lighting=light, color_mode=mode)
    assert radiance.isfinite().all()
    radiance.sum().backward()
    assert maps.grad is not None
    assert maps.grad.isfinite().all()


@pytest.mark.parametrize("roughness", [0.0, 0.5, 1.0])
def test_roughness_can_leave_the_ends_of_its_range(roughness: float):
    environment = Environment(uniform(3, 5, 18, 18), uniform(9, 3))
    maps = texels(100, 0.5, roughness).requires_grad_()
    shade(maps, **scene(100), lighting=lights(environment)).sum().backward()
    assert maps.grad is not None
    assert (maps.grad[:, 3] != 0).all()


def lit_from(direction: tuple[float, float, float]) -> Lighting:
    towards = F.normalize(torch.tensor([[direction]]).double(), dim=-1)
    return dark(directions=DirectionalLights(towards, torch.ones(1, 1, 3).double()))


def leaning(x: float, y: float) -> Tensor:
    maps = texels(1, 0.5, 1.0)
    maps[0, 5:] = (torch.tensor([x, y, math.sqrt(1 - x * x - y * y)]) + 1) / 2
    return maps


@pytest.mark.parametrize("handedness", [1.0, -1.0])
def test_a_normal_that_leans_up_is_brighter_under_light_from_above(handedness: float):
    """u to the right and v up is +1; in a mirrored chart u runs left, and its map is mirrored."""
    view = facing(torch.ones(1).double())
    view["tangent"] = torch.tensor([[handedness, 0, 0, handedness]]).double()
    above, right = lit_from((0, 1, 1)), lit_from((1, 0, 1))
    flat = shade(leaning(0, 0), **view, lighting=above)
    assert (shade(leaning(0, 0.4), **view, lighting=above) > flat).all()
    assert (shade(leaning(0, -0.4), **view, lighting=above) < flat).all()
    to_the_right = handedness * 0.4
    assert (shade(leaning(to_the_right, 0), **view, lighting=right) > flat).all()


def test_mirrored_charts_with_mirrored_maps_look_the_same():
    view = scene(30)
    mirrored = {**view, "tangent": -view["tangent"]}
    maps = texels(30, 0.5, uniform(30))
    maps[:, 5:] = 0.5 + 0.5 * F.normalize(
        torch.tensor([0, 0, 2.0]) + 0.5 * unit(30, 3, seed=9), dim=-1
    )
    flipped = maps.clone()
    flipped[:, 5] = 1 - maps[:, 5]
    light = lights(Environment(uniform(3, 4, 18, 18), uniform(9, 3)))
    torch.testing.assert_close(
        shade(maps, **view, lighting=light), shade(flipped, **mirrored, lighting=light)
    )


def about_y(angle: Tensor) -> Tensor:
    """[3, 3], counter-clockwise seen from above."""
    c, s = float(angle.cos()), float(angle.sin())
    return torch.tensor([[c, 0, s], [0, 1, 0], [-s, 0, c]], dtype=torch.float64)


@pytest.mark.parametrize("mode", MODES)
def test_turning_everything_changes_nothing(mode):
    view = scene(40)
    environment = Environment(uniform(3, 4, 18, 18), uniform(9, 3))
    place, towards = 3 * unit(1, 2, 3, seed=6), unit(1, 2, 3, seed=7)
    color = torch.ones(1, 2, 3).double()
    maps = 0.2 + 0.6 * uniform(40, 8)
    pictures = []
    for angle in torch.tensor([0.0, 0.9, 4.0]).double():
        turn = about_y(angle).T
        turned = {
            **view,
            **{name: view[name] @ turn for name in ("position", "normal", "eye")},
            "tangent": torch.cat((view["tangent"][:, :3] @ turn, view["tangent"][:, 3:]), dim=1),
        }
        light = lights(
            environment,
            yaw=angle[None],
            points=PointLights(place @ turn, color),
            directions=DirectionalLights(towards @ turn, color),
        )
        pictures.append(shade(maps, **turned, lighting=light, color_mode=mode))
    torch.testing.assert_close(pictures[0], pictures[1])
    torch.testing.assert_close(pictures[0], pictures[2])


def test_positive_yaw_turns_the_light_counter_clockwise_seen_from_above():
    """From above, X points right and −Z up: a quarter turn brings light from +X to −Z."""
    radiance = torch.full((32, 64, 3), 0.01)
    radiance[12:20, 28:36] = 10  # around +X
    environment = Environment.from_radiance(radiance, 32).to(dtype=torch.float64)
    normals = torch.tensor([[1.0, 0, 0], [0, 0, -1], [-1, 0, 0], [0, 0, 1]]).double()
    view: dict[str, Any] = {
        "position": torch.zeros(4, 3).double(),
        "normal": normals,
        "tangent": torch.tensor([[0, 1.0, 0, 1]]).double().expand(4, 4),
        "eye": torch.tensor([[0, 5.0, 0]]).double(),
        "sample": torch.zeros(4, dtype=torch.long),
    }
    quarter = torch.tensor([math.pi / 2]).double()
    for yaw, brightest in ((0 * quarter, 0), (quarter, 1), (2 * quarter, 2), (3 * quarter, 3)):
        light = lights(environment, yaw=yaw)
        assert int(shade(texels(4, 1.0, 1.0), **view, lighting=light).sum(1).argmax()) == brightest


def test_each_view_has_its_own_eye_yaw_and_intensity():
    environment = Environment(uniform(3, 4, 18, 18), uniform(9, 3))
    one, maps = scene(10), 0.2 + 0.6 * uniform(10, 8)
    eyes, yaw = torch.cat((one["eye"], -one["eye"])), torch.tensor([0.4, 2.0]).double()
    intensity = torch.tensor([1.0, 3.0]).double()
    sample = torch.arange(10) % 2
    points = PointLights(3 * unit(2, 1, 3), uniform(2, 1, 3))
    together = shade(
        maps, **{**one, "eye": eyes, "sample": sample},
        lighting=Lighting(environment, yaw, intensity, points),
    )  # fmt: skip
    for i in range(2):
        alone = shade(
            maps, **{**one, "eye": eyes[i : i + 1]},
            lighting=Lighting(
                environment, yaw[i : i + 1], intensity[i : i + 1],
                PointLights(points.position[i : i + 1], points.color[i : i + 1]),
            ),
        )  # fmt: skip
        torch.testing.assert_close(together[i::2], alone[i::2])


def test_point_lights_fall_off_with_the_square_of_distance():
    view, maps = facing(torch.ones(1).double()), texels(1)
    near, far = (
        shade(
            maps, **view,
            lighting=dark(points=PointLights(
                torch.tensor([[[0, 0, z]]]).double(), torch.ones(1, 1, 3).double()
            )),
        )
        for z in (1.0, 3.0)
    )  # fmt: skip
    torch.testing.assert_close(near, 9 * far)
    distant = shade(maps, **view, lighting=lit_from((0, 0, 1)))
    torch.testing.assert_close(near, distant)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("kind", ["directional", "point"])
@pytest.mark.parametrize("metallic", [0.0, 1.0])
def test_a_lamp_below_the_surface_does_not_show_and_one_above_does(mode, kind, metallic):
    view, maps = facing(torch.tensor([1.0, 0.4]).double()), texels(2, 0.7, 0.6, metallic)
    for height, shows in ((-1.0, False), (-1e-3, False), (0.2, True)):
        towards = F.normalize(torch.tensor([[0.3, 0, height]]).double(), dim=-1)
        place, color = towards.expand(2, 1, 3), torch.ones(2, 1, 3).double()
        lamp = (
            {"directions": DirectionalLights(place, color)}
            if kind == "directional"
            else {"points": PointLights(2 * place, color)}
        )
        light = lights(constant_environment(0), 2, **lamp)
        seen = shade(maps, **view, lighting=light, color_mode=mode)
        assert bool((seen > 0).all()) == shows
        assert bool((seen != 0).any()) == shows


@pytest.mark.parametrize("mode", MODES)
def test_intensity_scales_the_environment_and_not_the_lamps(mode):
    points = scene(50)
    environment = Environment(uniform(3, 4, 18, 18), torch.zeros(9, 3).double())
    maps = 0.2 + 0.6 * uniform(50, 8)
    zero = torch.zeros(1).double()
    lamps = {
        "points": PointLights(3 * unit(1, 2, 3), uniform(1, 2, 3)),
        "directions": DirectionalLights(unit(1, 1, 3, seed=5), uniform(1, 1, 3)),
    }

    def radiance(intensity: float, **lit: Any) -> Tensor:
        lighting = Lighting(environment, zero, zero + intensity, **lit)
        return shade(maps, **points, lighting=lighting, color_mode=mode)

    lamps_alone = radiance(0, **lamps)
    assert lamps_alone.max() > 0
    torch.testing.assert_close(radiance(2.5, **lamps), 2.5 * radiance(1) + lamps_alone)


def test_narrow_highlights_stay_finite_and_right_in_float32():
    albedo, one = torch.ones(3, 1), torch.ones(1)
    z = torch.tensor([[0.0], [0], [1]])
    peak = brdf(albedo, 0 * one, one, z, z, z)
    expected = 1 / (4 * math.pi * LEAST_DIRECT_ROUGHNESS**4)
    torch.testing.assert_close(peak, torch.full((3, 1), expected), rtol=1e-3, atol=0)


def test_float32_agrees_with_float64():
    radiance = resize(load_environment("studio"), 64)
    environment = Environment.from_radiance(radiance, 64)
    view, maps = scene(500), 0.2 + 0.6 * uniform(500, 8)
    light = Lighting.fixed(environment, 1)
    double = shade(maps, **view, lighting=light.to(dtype=torch.float64))
    single = shade(
        maps.float(),
        **{k: v.float() if v.is_floating_point() else v for k, v in view.items()},
        lighting=light,
    )
    torch.testing.assert_close(single.double(), double, rtol=2e-3, atol=1e-4)


def test_unlit_is_the_albedo():
    maps = uniform(10, 8)
    torch.testing.assert_close(shade_unlit(maps, "srgb"), srgb_to_linear(maps[:, :3]))
    torch.testing.assert_close(shade_unlit(maps, "castex"), maps[:, :3])
