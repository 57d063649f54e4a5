"""What is optimised: eight channels per texel, all of them in [0, 1].

| channels | map | encoding |
|---|---|---|
| 0–2 | albedo | sRGB, as glTF's baseColor |
| 3 | roughness | linear (perceptual roughness; GGX α is its square) |
| 4 | metallic | linear |
| 5–7 | tangent-space normal, +Y up | (n + 1) / 2, as glTF's normal texture |

A material is one float32 tensor [h, w, 8] whose row 0 lies at v = 0 (the bottom of the picture that
is saved), with power-of-two sides.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

CHANNELS = 8
ALBEDO = slice(0, 3)
ROUGHNESS = 3
METALLIC = 4
NORMAL = slice(5, 8)
MAPS = {
    "albedo": ALBEDO,
    "roughness": slice(ROUGHNESS, ROUGHNESS + 1),
    "metallic": slice(METALLIC, METALLIC + 1),
    "normal": NORMAL,
}

FLAT_NORMAL = (0.5, 0.5, 1.0)


def constant_material(
    height: int,
    width: int,
    *,
    albedo: tuple[float, float, float] = (0.5, 0.5, 0.5),
    roughness: float = 0.5,
    metallic: float = 0.0,
) -> Tensor:
    """One colour everywhere, [height, width, 8]."""
    texel = torch.tensor([*albedo, roughness, metallic, *FLAT_NORMAL])
    return texel.expand(height, width, CHANNELS).clone()


def picture_material(picture: Tensor, *, roughness: float = 0.5, metallic: float = 0.0) -> Tensor:
    """A picture as the albedo of an otherwise constant material, [h, w, 8].

    Args:
        picture: [3, h, w], sRGB-encoded, in [0, 1]; its last row comes to v = 0.
        roughness: everywhere.
        metallic: everywhere.
    """
    maps = constant_material(*picture.shape[1:], roughness=roughness, metallic=metallic)
    maps[..., ALBEDO] = picture.movedim(0, -1).flip(0)
    return maps


def without(maps: Tensor, names: tuple[str, ...]) -> Tensor:
    """[h, w, 8] with some of `MAPS` neutral: white, roughness 0.5, no metal, no bumps."""
    neutral = constant_material(1, 1, albedo=(1.0, 1.0, 1.0))
    result = maps.clone()
    for name in names:
        result[..., MAPS[name]] = neutral[..., MAPS[name]]
    return result


def encode_normals(direction: Tensor, dim: int = -1) -> Tensor:
    """Directions of any length but 0, x, y and z along ``dim``, as a normal map's values."""
    return (F.normalize(direction, dim=dim) + 1) / 2


def renormalized(maps: Tensor) -> Tensor:
    """Maps [..., 8] whose normals have unit length again, as means of normals do not."""
    normal = encode_normals(2 * maps[..., NORMAL] - 1)
    return torch.cat((maps[..., : NORMAL.start], normal), dim=-1)
