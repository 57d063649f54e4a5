import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sdslab.errors import UserError
from sdslab.kernels.philox import LIGHT_STREAM, NoiseKey, philox_uniform
from sdslab.rendering.environment_map import (
    directions,
    load_environment,
    resize,
    sample_equirectangular,
    solid_angles,
)
from sdslab.rendering.lighting import (
    DirectionalLights,
    Environment,
    Lighting,
    LightSampler,
    PointLights,
)
from sdslab.rendering.prefilter import (
    LEVELS,
    octahedral_directions,
    octahedral_encode,
    prefilter_irradiance,
    prefilter_specular,
    sh_basis,
)

SMALL = 64  # resolution of prefiltered maps here


def random_directions(n: int, seed: int = 0) -> Tensor:
    normal = torch.randn(n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return F.normalize(normal, dim=-1)


def ggx_mean(radiance: Tensor, direction: Tensor, roughness: float) -> Tensor:
    """Brute force: Σ L D(h) n·l ΔΩ / Σ D(h) n·l ΔΩ with n = v, over every pixel."""
    h = len(radiance)
    light = directions(h).view(-1, 3)
    half = F.normalize(direction[:, None] + light, dim=-1)
    n_dot_h2 = (half * direction[:, None]).sum(-1).square()
    alpha2 = roughness**4
    weight = ((alpha2 - 1) * n_dot_h2 + 1).square().reciprocal()
    weight = weight * (direction @ light.T).clamp_min(0)
    weight = weight * solid_angles(h).repeat_interleave(2 * h)
    return weight @ radiance.view(-1, 3).double() / weight.sum(1, keepdim=True)


def cosine_mean(radiance: Tensor, normal: Tensor) -> Tensor:
    """Brute force: irradiance / π."""
    h = len(radiance)
    cosine = (normal @ directions(h).view(-1, 3).T).clamp_min(0)
    weights = solid_angles(h).repeat_interleave(2 * h)[:, None] * radiance.view(-1, 3).double()
    return cosine @ weights / math.pi


@pytest.fixture(scope="module")
def studio() -> Environment:
    return Environment.from_radiance(resize(load_environment("studio"), 128), SMALL)


def test_octahedral_map_is_a_bijection():
    p, q = octahedral_encode(*octahedral_directions(32).unbind(-1))
    centre = (torch.arange(32, dtype=torch.float64) + 0.5) / 16 - 1
    torch.testing.assert_close(p, centre.expand(32, 32))
    torch.testing.assert_close(q, centre[:, None].expand(32, 32))


def test_spherical_harmonics_are_orthonormal():
    d, weights = directions(256), solid_angles(256)
    basis = sh_basis(*d.unbind(-1))
    gram = torch.einsum("ihw,jhw,h->ij", basis, basis, weights)
    torch.testing.assert_close(gram, torch.eye(9).double(), atol=1e-4, rtol=0)


def test_a_constant_environment_is_constant_at_every_roughness():
    environment = Environment.from_radiance(torch.full((8, 16, 3), 0.7), SMALL)
    d = random_directions(5000).float()
    for roughness in torch.linspace(0, 1, 33):
        looked_up = environment.radiance(d, roughness.expand(5000))
        torch.testing.assert_close(looked_up, torch.full_like(looked_up, 0.7), atol=1e-5, rtol=0)
    irradiance = environment.irradiance(d)
    torch.testing.assert_close(irradiance, torch.full_like(irradiance, 0.7), atol=1e-5, rtol=0)


@pytest.mark.parametrize("level", range(LEVELS))
def test_a_bright_direction_keeps_its_energy(level: int):
    radiance = torch.full((128, 256, 3), 0.1, dtype=torch.float64)
    radiance[40:44, 50:54] = 500
    maps = prefilter_specular(radiance, LEVELS, 128)
    environment = Environment(maps, torch.zeros(9, 3)).to(dtype=torch.float64)
    d = directions(256)
    blurred = environment.radiance(
        d.view(-1, 3), torch.full((256 * 512,), level / (LEVELS - 1), dtype=torch.float64)
    )
    energy = (blurred.view(256, 512, 3).sum(1) * solid_angles(256)[:, None]).sum(0)
    expected = (radiance.sum(1) * solid_angles(128)[:, None]).sum(0)
    torch.testing.assert_close(energy, expected, rtol=0.01, atol=0)


@pytest.mark.parametrize("level", [2, 4, 6, 8])
def test_levels_are_the_ggx_means_of_brute_force(level: int):
    radiance = resize(load_environment("studio"), 128)
    environment = Environment.from_radiance(radiance, 128).to(dtype=torch.float64)
    d = random_directions(64)
    roughness = level / (LEVELS - 1)
    looked_up = environment.radiance(d, torch.full((64,), roughness).double())
    expected = ggx_mean(radiance, d, roughness)
    error = (looked_up - expected).abs() / expected
    # Half of the usual resolution, at which texels are half as wide as the lobe of level 2.
    assert error.max() < (0.02 if level == 2 else 0.01)


def test_roughness_0_is_the_map_itself():
    d = directions(64)
    radiance = (1.5 + torch.sin(3 * d)).float()
    environment = Environment.from_radiance(radiance, 128)
    probes = random_directions(4000).float()
    sharp = environment.radiance(probes, torch.zeros(len(probes)))
    error = sharp - sample_equirectangular(radiance, probes)
    assert error.abs().mean() < 0.002
    assert error.abs().max() < 0.03  # a bilinear look-up at the folds: slope times a texel


@pytest.mark.parametrize("roughness", [0.0, 0.3, 1.0])
def test_look_ups_are_seamless_across_the_folds(studio: Environment, roughness: float):
    """Half a texel more must not make a jump, on circles that cross every edge and the poles."""
    angle = torch.linspace(0, 2 * math.pi, 40001, dtype=torch.float64)
    environment = studio.to(dtype=torch.float64)
    first, second = random_directions(2)
    circles = [
        (torch.tensor([1.0, 0, 0]).double(), torch.tensor([0, 1.0, 0]).double()),
        (torch.tensor([0, 0, 1.0]).double(), torch.tensor([0, 1.0, 0]).double()),
        (torch.tensor([1.0, 0, 0]).double(), torch.tensor([0, 0, 1.0]).double()),
        (first, F.normalize(second - first * (first @ second), dim=0)),
    ]
    for a, b in circles:
        d = angle.cos()[:, None] * a + angle.sin()[:, None] * b
        values = environment.radiance(d, torch.full_like(angle, roughness))
        # A step is 1/250 of a texel: no step may exceed that share of the largest texel contrast.
        texels = environment.specular.diff(dim=-1).abs().max()
        assert values.diff(dim=0).abs().max() < 0.02 * texels


@pytest.mark.parametrize("name", ["studio", "sky"])
def test_irradiance_is_close_to_the_cosine_integral(name: str):
    radiance = resize(load_environment(name), 64)
    normals = random_directions(200)
    expected = cosine_mean(radiance, normals)
    basis = sh_basis(*normals.T).T
    error = (basis @ prefilter_irradiance(radiance).double() - expected).abs() / expected
    assert error.mean() < 0.05
    assert error.max() < {"studio": 0.2, "sky": 0.2}[name]


def test_irradiance_of_smooth_light_is_exact():
    d = directions(64)
    radiance = 2 + d[..., :1] + 0.5 * d[..., 1:2] * d[..., 2:] + torch.zeros(3)
    normals = random_directions(100)
    sh = sh_basis(*normals.T).T @ prefilter_irradiance(radiance).double()
    expected = 2 + 2 / 3 * normals[:, 0] + 0.5 / 4 * normals[:, 1] * normals[:, 2]
    assert (sh - expected[:, None]).abs().max() < 1e-3


def test_irradiance_of_a_lone_sun_does_not_ring_below_zero():
    radiance = torch.zeros(64, 128, 3)
    radiance[20, 30] = 1000
    normals = directions(64).view(-1, 3)
    coefficients = prefilter_irradiance(radiance)
    irradiance = sh_basis(*normals.T).T @ coefficients.double()
    assert irradiance.min() > -1e-3 * irradiance.max()
    total = coefficients[0] * math.sqrt(4 * math.pi)
    expected = 1000 * float(solid_angles(64)[20])
    torch.testing.assert_close(total, torch.full((3,), expected), rtol=1e-3, atol=0)


def test_turning_the_map_turns_the_directions():
    radiance = load_environment("studio")
    radiance = resize(radiance, 64)
    quarter = 32  # columns of a quarter turn
    still = Environment.from_radiance(radiance, SMALL).to(dtype=torch.float64)
    turned = Environment.from_radiance(radiance.roll(quarter, 1), SMALL).to(dtype=torch.float64)
    d = random_directions(500)
    back = torch.stack((d[:, 2], d[:, 1], -d[:, 0]), dim=-1)  # +X comes to where +Z was
    for roughness in (0.0, 0.5, 1.0):
        r = torch.full((500,), roughness, dtype=torch.float64)
        torch.testing.assert_close(
            turned.radiance(d, r), still.radiance(back, r), atol=1e-5, rtol=0
        )
    torch.testing.assert_close(turned.irradiance(d), still.irradiance(back), atol=1e-5, rtol=0)


def test_radiance_is_differentiable_in_direction_roughness_and_light():
    generator = torch.Generator().manual_seed(0)
    environment = Environment(
        torch.rand(3, 4, 10, 10, generator=generator, dtype=torch.float64).requires_grad_(),
        torch.rand(9, 3, generator=generator, dtype=torch.float64).requires_grad_(),
    )
    d, r = random_directions(6).requires_grad_(), torch.linspace(0.05, 0.9, 6).double()
    assert torch.autograd.gradcheck(
        lambda d, r, s, i: (
            Environment(s, i).radiance(d, r),
            Environment(s, i).irradiance(d),
        ),
        (d, r.requires_grad_(), environment.specular, environment.irradiance_sh),
    )


@pytest.mark.parametrize("roughness", [0.0, 0.125, 0.5, 1.0])
def test_roughness_has_a_gradient_at_the_levels_and_the_ends(studio: Environment, roughness: float):
    r = torch.full((200,), roughness, requires_grad=True)
    d = random_directions(200).float()
    studio.radiance(d, r).sum().backward()
    assert r.grad is not None
    assert (r.grad != 0).float().mean() > 0.9


def test_environments_are_prefiltered_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr("sdslab.files.disk_cache.cache_folder", lambda: tmp_path)
    monkeypatch.setattr("sdslab.rendering.lighting.RESOLUTION", 32)
    first = Environment.of("white")
    assert len(list((tmp_path / "environment").iterdir())) == 1
    monkeypatch.setattr("sdslab.rendering.lighting.prefilter_specular", None)
    second = Environment.of("white")
    torch.testing.assert_close(first.specular, second.specular, atol=0, rtol=0)


def test_light_moves_between_precisions(studio: Environment):
    light = Lighting(
        studio,
        torch.zeros(2),
        torch.ones(2),
        PointLights(torch.ones(2, 1, 3), torch.ones(2, 1, 3)),
        DirectionalLights(torch.ones(2, 1, 3), torch.ones(2, 1, 3)),
    ).to(dtype=torch.float64)
    assert light.points is not None
    assert light.directions is not None
    tensors = (
        light.environment.specular, light.environment.irradiance_sh, light.yaw, light.intensity,
        light.points.position, light.points.color, light.directions.direction,
        light.directions.color,
    )  # fmt: skip
    assert {tensor.dtype for tensor in tensors} == {torch.float64}
    assert Lighting.fixed(studio, 3).to("cpu").points is None


def small_environments(count: int) -> tuple[Environment, ...]:
    return tuple(
        Environment(torch.full((3, 2, 4, 4), float(i)), torch.zeros(9, 3)) for i in range(count)
    )


def test_samples_do_not_depend_on_the_size_of_the_batch():
    sampler = LightSampler(small_environments(3), (0, 360), (0.5, 2), seed=7)
    for step in range(20):
        whole, part = sampler.sample(step, 8), sampler.sample(step, 3)
        assert whole.environment is part.environment
        torch.testing.assert_close(whole.yaw[:3], part.yaw, atol=0, rtol=0)
        torch.testing.assert_close(whole.intensity[:3], part.intensity, atol=0, rtol=0)


def test_samples_fill_their_ranges_and_repeat():
    sampler = LightSampler(small_environments(3), (-30, 60), (0.5, 2), seed=1)
    lights = [sampler.sample(step, 16) for step in range(300)]
    chosen = [float(light.environment.specular[0, 0, 0, 0]) for light in lights]
    assert min(chosen.count(i) for i in (0.0, 1.0, 2.0)) > 70
    yaw = torch.rad2deg(torch.cat([light.yaw for light in lights]))
    intensity = torch.cat([light.intensity for light in lights])
    for values, low, high in ((yaw, -30, 60), (intensity, 0.5, 2)):
        assert low <= values.min() < low + 0.01 * (high - low)
        assert high - 0.01 * (high - low) < values.max() <= high
        assert float(values.mean()) == pytest.approx((low + high) / 2, abs=0.02 * (high - low))
    again = LightSampler(small_environments(3), (-30, 60), (0.5, 2), seed=1).sample(5, 16)
    torch.testing.assert_close(again.yaw, lights[5].yaw, atol=0, rtol=0)
    other = LightSampler(small_environments(3), (-30, 60), (0.5, 2), seed=2).sample(5, 16)
    assert not torch.equal(other.yaw, again.yaw)


@pytest.mark.parametrize("lamp", ["point", "directional"])
def test_a_lamp_lights_each_view_from_a_direction_of_its_own(lamp):
    sampler = LightSampler(small_environments(1), seed=7, lamp=lamp)
    many, few = sampler.sample(3, 4000), sampler.sample(3, 2)
    assert many.yaw.equal(LightSampler(small_environments(1), seed=7).sample(3, 4000).yaw)
    if lamp == "point":
        assert many.points is not None
        assert few.points is not None
        place = many.points.position
        assert place[:2].equal(few.points.position)
        direction = place / 3
        # As bright at the object's centre as the other kind.
        assert (many.points.color / 9 == 1.5).all()
    else:
        assert many.directions is not None
        direction = many.directions.direction
        assert (many.directions.color == 1.5).all()
    assert direction.shape == (4000, 1, 3)
    assert (direction.norm(dim=-1) - 1).abs().max() < 1e-6
    assert direction.mean((0, 1)).abs().max() < 0.05
    covariance = direction[:, 0].T @ direction[:, 0] / 4000
    assert (covariance - torch.eye(3) / 3).abs().max() < 0.03


def test_the_stream_is_the_documented_one():
    sampler = LightSampler(small_environments(1), (0, 180), (1, 1), seed=3)
    key = NoiseKey(3, 9, torch.arange(4), LIGHT_STREAM)
    expected = torch.deg2rad(180 * philox_uniform(key, 2)[:, 0]).float()
    torch.testing.assert_close(sampler.sample(9, 4).yaw, expected)


def test_a_shared_yaw_turns_all_views_of_a_step_alike():
    sampler = LightSampler(small_environments(1), seed=3, shared_yaw=True)
    yaws = [sampler.sample(step, 4).yaw for step in (0, 1)]
    assert [len(yaw.unique()) for yaw in yaws] == [1, 1]
    assert not yaws[0].equal(yaws[1])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"environments": ()}, "at least one light"),
        ({"yaw_range_deg": (10, 0)}, "yaw_range_deg must be a range"),
        ({"intensity_range": (0, math.inf)}, "intensity_range must be a range"),
        ({"intensity_range": (-1, 1)}, "intensity must be 0 or more"),
    ],
    ids=["none", "yaw", "infinite", "negative"],
)
def test_impossible_samplers_are_refused(arguments: dict, message: str):
    with pytest.raises(UserError, match=message):
        LightSampler(**{"environments": small_environments(1), **arguments})
