"""The material model: metallic-roughness with GGX, lit by split sums and by small lights.

Specular: D GGX with α = roughness², G separable Smith, F Schlick with F0 = .04 (1 − m) + m albedo.
Under an environment (Karis 2013) it is L_spec(r, roughness) (F0 A + B), where r is the mirror
direction, pulled towards the normal by roughness³ because that is where rough lobes lean: a white
metal sphere of roughness .8 then differs from path tracing by 11 % instead of 15 %, of roughness 1
by 4 % instead of 19 %. CasTex does not, and neither does the "castex" colour mode.

Diffuse: Lambert, times what the dielectric layer above lets through, so that a white surface never
sends out more than it gets: E_diff (1 − m) albedo (1 − E), where E = .04 A + B is the layer's
directional albedo. For small lights the coupling is reciprocal,
(1 − E(n·v)) (1 − E(n·l)) / (1 − Ē), which integrates to the same 1 − E (Kelemen and Szirmay-Kalos
2001). This, too, "castex" leaves out.

Vectors are [3, n] inside, so that products with [n] run along memory. All is computed in the
environment's frame: the geometry is turned once, without a graph.
"""

import math
from functools import cache

import torch
import torch.nn.functional as F
from torch import Tensor

from sdslab.meshes.material import ALBEDO, METALLIC, NORMAL, ROUGHNESS
from sdslab.pictures.color import ColorMode, srgb_to_linear
from sdslab.rendering.lighting import Lighting

DIELECTRIC_F0 = 0.04
LEAST_COSINE = 1e-4
LEAST_ROUGHNESS = {"srgb": 0.0, "castex": 1e-3}  # under an environment
LEAST_DIRECT_ROUGHNESS = 0.045  # a small light's highlight would be too small for any pixel

_TABLE_ROUGHNESSES, _TABLE_COSINES = 64, 32


def shade_unlit(maps: Tensor, color_mode: ColorMode) -> Tensor:
    """The albedo alone.

    Args:
        maps: [n, 8] as `material.py` describes.
        color_mode: "srgb" decodes it to linear light, "castex" does not.

    Returns:
        [n, 3].
    """
    albedo = maps[:, ALBEDO]
    return srgb_to_linear(albedo) if color_mode == "srgb" else albedo


def shade(
    maps: Tensor,
    position: Tensor,
    normal: Tensor,
    tangent: Tensor,
    eye: Tensor,
    sample: Tensor,
    lighting: Lighting,
    color_mode: ColorMode = "srgb",
) -> Tensor:
    """Radiance that n points of surfaces send to the eye; differentiable in the maps and the light.

    Args:
        maps: [n, 8] as `material.py` describes.
        position: [n, 3], world space.
        normal: [n, 3] unit, world space, on the side that is seen.
        tangent: [n, 4]: xyz, of any length, and handedness.
        eye: [b, 3], world space.
        sample: [n] int64, which of the b views each point belongs to.
        lighting: of the b views.
        color_mode: "srgb" decodes the albedo and the result is linear; "castex" takes the albedo as
            it is.

    Returns:
        [n, 3], not clamped; channels apart in memory.

    Source: CasTex (arXiv 2504.06856); Karis 2013, "Real shading in Unreal Engine 4".
    """
    channels = maps.T.contiguous()  # [8, n]
    albedo, metallic = channels[ALBEDO], channels[METALLIC]
    if color_mode == "srgb":
        albedo = srgb_to_linear(albedo)
    roughness = channels[ROUGHNESS].clamp(LEAST_ROUGHNESS[color_mode], 1)

    cosine, sine = lighting.yaw.cos()[sample], lighting.yaw.sin()[sample]
    to_eye = _unit(_turn(eye.T[:, sample] - position.T, cosine, sine))
    n = _perturbed_normal(
        channels[NORMAL],
        _turn(normal.T, cosine, sine),
        _turn(tangent.T[:3], cosine, sine),
        torch.where(tangent[:, 3] < 0, -1.0, 1.0).to(tangent),
    )

    n_dot_v = _dot(n, to_eye)
    mirrored = 2 * n_dot_v * n - to_eye
    if color_mode == "srgb":
        mirrored = torch.lerp(mirrored, n, roughness**3)
    n_dot_v = n_dot_v.clamp(LEAST_COSINE, 1)
    f0 = DIELECTRIC_F0 + metallic * (albedo - DIELECTRIC_F0)
    scale, bias, mean = directional_albedo(n_dot_v, roughness)
    layer = DIELECTRIC_F0 * scale + bias

    environment = lighting.environment
    diffuse = environment.irradiance(n.T).T * ((1 - metallic) * albedo)
    if color_mode == "srgb":
        diffuse = diffuse * (1 - layer)
    specular = environment.radiance(mirrored.T, roughness).T * (f0 * scale + bias)
    radiance = lighting.intensity[sample] * (diffuse + specular)

    for light, irradiance in _small_lights(lighting, position, sample):
        reflected = brdf(
            albedo, roughness, metallic, n, to_eye, _turn(light, cosine, sine), color_mode,
            (layer, mean),
        )  # fmt: skip
        radiance = radiance + irradiance * reflected
    return radiance.T


def brdf(
    albedo: Tensor,
    roughness: Tensor,
    metallic: Tensor,
    normal: Tensor,
    to_eye: Tensor,
    to_light: Tensor,
    color_mode: ColorMode = "srgb",
    layer_and_mean: tuple[Tensor, Tensor] | None = None,
) -> Tensor:
    """The BRDF times n·l; 0 where the light or the eye is below the surface.

    Args:
        albedo: [3, n] linear ("castex": as it is).
        roughness: [n], taken as at least LEAST_DIRECT_ROUGHNESS.
        metallic: [n].
        normal: [3, n] unit.
        to_eye: [3, n] unit.
        to_light: [3, n] unit.
        color_mode: "castex" leaves the diffuse term uncoupled.
        layer_and_mean: E(n·v) and Ē, [n] each, where they are known.

    Returns:
        [3, n] per steradian.

    Source: Cook and Torrance 1982; Walter et al. 2007 (GGX, Smith).
    """
    n_dot_l, n_dot_v = _dot(normal, to_light), _dot(normal, to_eye)
    lit = ((n_dot_l > 0) & (n_dot_v > 0)).to(n_dot_l)
    n_dot_l, n_dot_v = n_dot_l.clamp(LEAST_COSINE, 1), n_dot_v.clamp(LEAST_COSINE, 1)
    half = _unit(to_light + to_eye)
    a2 = roughness.clamp_min(LEAST_DIRECT_ROUGHNESS) ** 4
    # |n × h|² keeps the digits that 1 − (n·h)² loses in narrow highlights.
    n_dot_h2 = _dot(normal, half).square()
    sine2 = torch.linalg.cross(normal, half, dim=0).square().sum(0)
    distribution = a2 / (math.pi * (sine2 + a2 * n_dot_h2).square())
    # G / (4 n·l n·v), each G1 written as 2c / (c + √(α² + (1 − α²) c²))
    visibility = 1 / (
        (n_dot_l + (a2 + (1 - a2) * n_dot_l.square()).sqrt())
        * (n_dot_v + (a2 + (1 - a2) * n_dot_v.square()).sqrt())
    )
    schlick = (1 - _dot(to_eye, half)).clamp(0, 1) ** 5
    f0 = DIELECTRIC_F0 + metallic * (albedo - DIELECTRIC_F0)
    specular = (f0 + (1 - f0) * schlick) * (distribution * visibility)
    through = (1 - metallic) / math.pi
    if color_mode == "srgb":
        if layer_and_mean is None:
            scale, bias, mean = directional_albedo(n_dot_v, roughness)
            layer_and_mean = DIELECTRIC_F0 * scale + bias, mean
        scale, bias, _ = directional_albedo(n_dot_l, roughness)
        layer, mean = layer_and_mean
        through = through * (1 - layer) * (1 - DIELECTRIC_F0 * scale - bias) / (1 - mean)
    return (albedo * through + specular) * (n_dot_l * lit)


def directional_albedo(n_dot_v: Tensor, roughness: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Karis' second sum: how much of a white environment the specular term reflects.

    Args:
        n_dot_v: [n] in [LEAST_COSINE, 1].
        roughness: [n] in [0, 1].

    Returns:
        A, B and Ē, [n] each: a surface of normal reflectance F0 reflects F0 A + B; Ē is the
        cosine-weighted mean of .04 A + B over n·v. A and B are within .005 of the integrals, save
        for B at n·v < .01 with roughness < .1, within .015.
    """
    table = _albedo_table(n_dot_v.device, n_dot_v.dtype)
    # At the very edge of the table grid_sample's derivative is 0: stay clear of it by a hair.
    grid = torch.stack((n_dot_v.sqrt(), roughness), dim=-1)[None, None]
    grid = (2 * grid - 1) * (1 - 1e-6)
    # With padding by zeros cuDNN takes it, which refuses so many points.
    a, b, mean = F.grid_sample(table, grid, padding_mode="border", align_corners=True)[0, :, 0]
    return a, b, mean


@cache
def _albedo_table(device: torch.device, dtype: torch.dtype) -> Tensor:
    """[1, 3, roughness, √(n·v)] of A, B and Ē."""
    root = torch.linspace(0, 1, _TABLE_COSINES, dtype=torch.float64)
    roughness = torch.linspace(0, 1, _TABLE_ROUGHNESSES, dtype=torch.float64)
    a, b = _integrate_albedo(
        root.square().clamp_min(LEAST_COSINE), roughness.clamp_min(0.01)[:, None]
    )
    # ∫ 2 E(μ) μ dμ with μ = root²
    mean = torch.trapezoid((DIELECTRIC_F0 * a + b) * 4 * root**3, root, dim=1)
    mean = mean / torch.trapezoid(4 * root**3, root)
    table = torch.stack((a, b, mean[:, None].expand_as(a)))
    return table[None].to(device, dtype)


def _integrate_albedo(n_dot_v: Tensor, roughness: Tensor) -> tuple[Tensor, Tensor]:
    """A and B by the midpoint rule over the distribution of visible normals, 64 × 16 of them.

    With those the integrand is F · G1(n·l), smooth and bounded.

    Source: Dupuy and Benyoub 2023, "Sampling visible GGX normals with spherical caps".
    """
    u = ((torch.arange(64, dtype=torch.float64) + 0.5) / 64)[:, None]
    phi = (torch.arange(16, dtype=torch.float64) + 0.5) * (math.pi / 16)  # the rest is its mirror
    alpha, v_z = roughness[..., None, None].square(), n_dot_v[..., None, None]
    v_x = (1 - v_z.square()).sqrt()
    length = (alpha * v_x).hypot(v_z)
    z = (1 - u) * (1 + v_z / length) - v_z / length
    rim = (1 - z.square()).clamp_min(0).sqrt()
    h_x = alpha * (rim * phi.cos() + alpha * v_x / length)
    h_y = alpha * (rim * phi.sin())
    h_z = z + v_z / length
    norm = (h_x.square() + h_y.square() + h_z.square()).rsqrt()
    v_dot_h = ((v_x * h_x + v_z * h_z) * norm).clamp(0, 1)
    n_dot_l = (2 * v_dot_h * h_z * norm - v_z).clamp_min(0)
    a2 = alpha.square()
    masking = 2 * n_dot_l / (n_dot_l + (a2 + (1 - a2) * n_dot_l.square()).sqrt())
    schlick = (1 - v_dot_h) ** 5
    return (masking * (1 - schlick)).mean((-2, -1)), (masking * schlick).mean((-2, -1))


def _perturbed_normal(encoded: Tensor, normal: Tensor, tangent: Tensor, side: Tensor) -> Tensor:
    """[3, n] unit: the normal map's, from the tangent frame (made orthonormal) to the world."""
    tangent = _unit(tangent - normal * _dot(normal, tangent))
    bitangent = side * torch.linalg.cross(normal, tangent, dim=0)
    x, y, z = 2 * encoded - 1
    return _unit(x * tangent + y * bitangent + z * normal)


def _small_lights(
    lighting: Lighting, position: Tensor, sample: Tensor
) -> list[tuple[Tensor, Tensor]]:
    """For each of the k lights: [3, n] unit towards it, and [3, n] irradiance when facing it."""
    lights = []
    if lighting.points is not None:
        for place, color in zip(
            lighting.points.position.unbind(1), lighting.points.color.unbind(1), strict=True
        ):
            offset = place.T[:, sample] - position.T
            inverse_square = 1 / offset.square().sum(0).clamp_min(1e-12)
            lights.append((offset * inverse_square.sqrt(), color.T[:, sample] * inverse_square))
    if lighting.directions is not None:
        for direction, color in zip(
            lighting.directions.direction.unbind(1),
            lighting.directions.color.unbind(1),
            strict=True,
        ):
            lights.append((direction.T[:, sample], color.T[:, sample]))
    return lights


def _turn(vector: Tensor, cosine: Tensor, sine: Tensor) -> Tensor:
    """[3, n] from world space to that of an environment turned by a yaw."""
    x, y, z = vector
    return torch.stack((cosine * x - sine * z, y, sine * x + cosine * z))


def _dot(a: Tensor, b: Tensor) -> Tensor:
    return (a * b).sum(0)


def _unit(vector: Tensor) -> Tensor:
    return vector * vector.square().sum(0).clamp_min(1e-12).rsqrt()
