"""The split sum against path tracing: spheres rendered by Mitsuba 3 under the same light."""

from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from sdslab.meshes.material import FLAT_NORMAL
from sdslab.pictures.color import linear_to_srgb
from sdslab.rendering.environment_map import load_environment, resize
from sdslab.rendering.lighting import Environment, Lighting
from sdslab.rendering.shading import shade

SIZE, SUB, EYE, HALF_FOV_TAN = 48, 4, 4.0, 0.27


@dataclass(frozen=True)
class Case:
    """A material, and what the mean and the 95 % quantile of the relative error may be."""

    name: str
    base_color: tuple[float, float, float]
    roughness: float
    metallic: float
    mean: float
    quantile: float
    bsdf: str = "principled"
    light: str = "studio"

    def __str__(self) -> str:
        return self.name


WHITE, GOLD, RED = (1.0, 1.0, 1.0), (1.0, 0.77, 0.34), (0.7, 0.15, 0.1)
CASES = (
    # Without the split sum's error: what is left is the table of A and B, and Mitsuba's noise.
    Case("constant-mirror-0.2", WHITE, 0.2, 1, 0.003, 0.005, "roughconductor", "constant"),
    Case("constant-mirror-0.8", WHITE, 0.8, 1, 0.003, 0.005, "roughconductor", "constant"),
    Case("constant-gold-0.3", GOLD, 0.3, 1, 0.005, 0.008, light="constant"),
    # The split sum.
    Case("mirror-0.2", WHITE, 0.2, 1, 0.05, 0.18, "roughconductor"),
    Case("mirror-0.5", WHITE, 0.5, 1, 0.09, 0.22, "roughconductor"),
    Case("mirror-0.8", WHITE, 0.8, 1, 0.125, 0.34, "roughconductor"),
    Case("gold-0.3", GOLD, 0.3, 1, 0.055, 0.165),
    Case("gold-0.7", GOLD, 0.7, 1, 0.12, 0.33),
    # Nine spherical harmonics.
    Case("lambert", RED, 1, 0, 0.03, 0.075, "diffuse"),
    # "principled" has Disney's diffuse lobe, which lets the layer above take nothing away: ours is
    # darker by E, 6 % on average, even under a constant light.
    Case("constant-red-0.6", RED, 0.6, 0, 0.075, 0.13, light="constant"),
    Case("red-0.3", RED, 0.3, 0, 0.075, 0.16),
    Case("red-0.6", RED, 0.6, 0, 0.08, 0.15),
    Case("half-metal-0.5", RED, 0.5, 0.5, 0.075, 0.155),
)


def sphere_points() -> tuple[Tensor, Tensor]:
    """Points of the unit sphere under SUB² sub-pixels of every pixel that it covers wholly.

    Returns [SIZE, SIZE] bool, and [pixels, SUB², 3] positions.
    """
    count = SIZE * SUB
    across = (2 * (torch.arange(count, dtype=torch.float64) + 0.5) / count - 1) * HALF_FOV_TAN
    y, x = torch.meshgrid(-across, across, indexing="ij")
    ray = F.normalize(torch.stack((x, y, -torch.ones_like(x)), dim=-1), dim=-1)
    along = -ray[..., 2] * EYE
    under_root = along.square() - (EYE**2 - 1)
    distance = along - under_root.clamp_min(0).sqrt()
    point = distance[..., None] * ray + torch.tensor([0, 0, EYE])
    blocks = point.view(SIZE, SUB, SIZE, SUB, 3).movedim(2, 1).reshape(SIZE, SIZE, SUB**2, 3)
    hit = (under_root > 0).view(SIZE, SUB, SIZE, SUB).all(3).all(1)
    return hit, blocks[hit]


def split_sum(case: Case, environment: Environment, points: Tensor) -> Tensor:
    """[pixels, 3] by `shade`."""
    flat = points.reshape(-1, 3)
    n = len(flat)
    color = linear_to_srgb(torch.tensor(case.base_color, dtype=torch.float64))
    texel = torch.tensor([*color, case.roughness, case.metallic, *FLAT_NORMAL])
    tangent = F.pad(torch.linalg.cross(torch.tensor([[0.0, 1, 0]]).double(), flat), (0, 1), value=1)
    radiance = shade(
        texel.double().expand(n, 8),
        flat,
        flat,
        tangent,
        torch.tensor([[0, 0, EYE]]).double(),
        torch.zeros(n, dtype=torch.long),
        Lighting.fixed(environment, 1),
    )
    if case.bsdf == "diffuse":
        radiance = environment.irradiance(flat) * torch.tensor(case.base_color).double()
    return radiance.view(len(points), -1, 3).mean(1)


def path_traced(case: Case, mi: Any, light: Tensor) -> Tensor:
    """[SIZE, SIZE, 3] by Mitsuba."""
    import numpy as np

    rgb = {"type": "rgb", "value": list(case.base_color)}
    bsdf = {
        "principled": {
            "type": "principled",
            "base_color": rgb,
            "roughness": case.roughness,
            "metallic": case.metallic,
            "specular": 0.5,
        },
        # Perfectly reflecting, so that it tests L_spec and A + B alone.
        "roughconductor": {
            "type": "roughconductor",
            "material": "none",
            "distribution": "ggx",
            "alpha": case.roughness**2,
        },
        "diffuse": {"type": "diffuse", "reflectance": rgb},
    }[case.bsdf]
    transform = mi.ScalarTransform4f
    scene = mi.load_dict(
        {
            "type": "scene",
            "integrator": {"type": "direct", "bsdf_samples": 1, "emitter_samples": 1},
            "sensor": {
                "type": "perspective",
                "fov": float(torch.rad2deg(2 * torch.tensor(HALF_FOV_TAN).atan())),
                "to_world": transform().look_at([0, 0, EYE], [0, 0, 0], [0, 1, 0]),
                "film": {
                    "type": "hdrfilm", "width": SIZE, "height": SIZE, "rfilter": {"type": "box"},
                    "pixel_format": "rgb",
                },
                "sampler": {"type": "multijitter", "sample_count": 1024},
            },
            # Mitsuba's middle column is +Z, ours is +X.
            "light": {
                "type": "envmap",
                "bitmap": mi.Bitmap(light.numpy()),
                "to_world": transform().rotate([0, 1, 0], 90),
            },
            "ball": {"type": "sphere", "bsdf": bsdf},
        }
    )  # fmt: skip
    return torch.from_numpy(np.array(mi.render(scene, seed=0))).double()


@pytest.fixture(scope="module")
def environments() -> dict[str, tuple[Tensor, Environment]]:
    """The maps, and what is made of them."""
    made = {}
    for name in ("studio", "constant"):
        radiance = resize(load_environment(name), 128)
        made[name] = radiance, Environment.from_radiance(radiance).to(dtype=torch.float64)
    return made


@pytest.mark.slow
@pytest.mark.parametrize("case", CASES, ids=str)
def test_spheres_look_as_mitsuba_renders_them(
    case: Case, environments: dict[str, tuple[Tensor, Environment]]
):
    import mitsuba as mi  # here: this test alone pays for it

    mi.set_variant("scalar_rgb")
    radiance, environment = environments[case.light]
    covered, points = sphere_points()
    ours = split_sum(case, environment, points)
    reference = path_traced(case, mi, radiance)[covered]
    error = (ours - reference).abs().mean(1) / reference.mean(1)
    mean, quantile = float(error.mean()), float(error.quantile(0.95))
    assert mean <= case.mean, f"mean {mean:.4f}, 95 % {quantile:.4f}"
    assert quantile <= case.quantile, f"mean {mean:.4f}, 95 % {quantile:.4f}"
