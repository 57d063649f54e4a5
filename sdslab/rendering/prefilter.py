"""From an equirectangular map to what shading looks up: GGX-blurred octahedral maps and SH9.

The octahedral map folds the sphere into a square: p = (x, z) / (|x| + |y| + |z|), with the lower
half (y < 0) turned outwards over the diagonals, so that +Y is the middle and −Y all four corners.
A border of one texel holds what lies across each edge, which makes bilinear look-ups seamless.
"""

import math

import torch
import torch.nn.functional as F
from torch import Tensor

from sdslab.rendering.environment_map import (
    directions,
    resize,
    sample_equirectangular,
    solid_angles,
)

LEVELS = 9  # roughness 0, 1/8, …, 1
RESOLUTION = 256  # of every level's octahedral map, border apart
_SUPERSAMPLING = 4  # per side of a texel, at roughness 0


def octahedral_encode(x: Tensor, y: Tensor, z: Tensor) -> tuple[Tensor, Tensor]:
    """Directions of any length but 0 to the octahedral square [−1, 1]²; differentiable."""
    scale = 1 / (x.abs() + y.abs() + z.abs()).clamp_min(1e-12)
    p, q = x * scale, z * scale
    below = y < 0
    folded_p = (1 - q.abs()).copysign(p)
    folded_q = (1 - p.abs()).copysign(q)
    return folded_p.where(below, p), folded_q.where(below, q)


def octahedral_directions(resolution: int) -> Tensor:
    """[resolution, resolution, 3] float64 unit vectors of the texels' centres; rows are q."""
    centre = (torch.arange(resolution, dtype=torch.float64) + 0.5) * (2 / resolution) - 1
    q, p = torch.meshgrid(centre, centre, indexing="ij")
    y = 1 - p.abs() - q.abs()
    fold = (-y).clamp_min(0)
    return F.normalize(torch.stack((p - fold.copysign(p), y, q - fold.copysign(q)), dim=-1), dim=-1)


def add_octahedral_border(maps: Tensor) -> Tensor:
    """[..., r, r] to [..., r + 2, r + 2]: beyond an edge lies the same edge, read backwards."""
    rows = torch.cat((maps[..., :1, :].flip(-1), maps, maps[..., -1:, :].flip(-1)), dim=-2)
    return torch.cat((rows[..., :1].flip(-2), rows, rows[..., -1:].flip(-2)), dim=-1)


def prefilter_specular(
    radiance: Tensor, levels: int = LEVELS, resolution: int = RESOLUTION
) -> Tensor:
    """Blurs a light by the GGX lobes of equally spaced roughnesses from 0 to 1.

    Args:
        radiance: [h, 2h, 3] as `environment_map.py` describes.
        levels: number of roughnesses.
        resolution: of the octahedral maps, even; also the rows of the equirectangular map that is
            blurred (half as many from roughness 3/8 on). At 256, roughness 1/8 has a lobe 3 rows
            wide.

    Returns:
        [3, levels, resolution + 2, resolution + 2] float32, borders included.

    Source: Karis 2013, "Real shading in Unreal Engine 4": the first sum of the split, n = v = r.
    """
    radiance = radiance.double()
    texels = octahedral_directions(resolution)
    fine = octahedral_directions(resolution * _SUPERSAMPLING)
    mirror = sample_equirectangular(radiance, fine).movedim(-1, 0)
    maps = [F.avg_pool2d(mirror, _SUPERSAMPLING)]
    sharp, coarse = resize(radiance, resolution), resize(radiance, resolution // 2)
    for level in range(1, levels):
        roughness = level / (levels - 1)
        blurred = _blur(sharp if roughness < 0.375 else coarse, roughness**2)
        maps.append(sample_equirectangular(blurred, texels).movedim(-1, 0))
    return add_octahedral_border(torch.stack(maps, dim=1)).float()


def prefilter_irradiance(radiance: Tensor) -> Tensor:
    """Spherical harmonics of irradiance / π, to order 2: what a white Lambertian surface sends out.

    Where a small bright source makes the truncated series negative somewhere, its orders l are
    damped by 1/(1 + λ l²(l+1)²) with the least λ that makes it non-negative.

    Args:
        radiance: [h, 2h, 3].

    Returns:
        [9, 3] float32 coefficients of `sh_basis`.

    Source: Ramamoorthi and Hanrahan 2001; the window is Sloan's, "Stupid spherical harmonics
    tricks" (2008).
    """
    h = len(radiance)
    basis = sh_basis(*directions(h).unbind(-1))  # [9, h, 2h]
    solid_angle = solid_angles(h)
    # The pixels' own Gram matrix, nearly the identity, makes the projection exact.
    gram = torch.einsum("ihw,jhw,h->ij", basis, basis, solid_angle)
    moments = torch.einsum("khw,hwc,h->kc", basis, radiance.double(), solid_angle)
    order = torch.tensor([0, 1, 1, 1, 2, 2, 2, 2, 2])
    cosine_lobe = torch.tensor([1, 2 / 3, 1 / 4], dtype=torch.float64)[order]
    coefficients = torch.linalg.solve(gram, moments) * cosine_lobe[:, None]
    probes = sh_basis(*directions(48).view(-1, 3).T).T
    damping = (order * (order + 1)).double()[:, None] ** 2

    def damped(strength: float) -> Tensor:
        return coefficients / (1 + strength * damping)

    if (probes @ coefficients).min() < 0:
        low, high = 0.0, 1.0
        for _ in range(30):
            middle = (low + high) / 2
            if (probes @ damped(middle)).min() < 0:
                low = middle
            else:
                high = middle
        coefficients = damped(high)
    return coefficients.float()


def sh_basis(x: Tensor, y: Tensor, z: Tensor) -> Tensor:
    """The nine real orthonormal spherical harmonics to order 2 of unit vectors, stacked in front.

    In order of l, then m, with +Z as the polar axis: 1, y, z, x, xy, yz, 3z²−1, xz, x²−y².
    """
    a = 0.5 * math.sqrt(1 / math.pi)
    b = 0.5 * math.sqrt(3 / math.pi)
    c = 0.5 * math.sqrt(15 / math.pi)
    d = 0.25 * math.sqrt(5 / math.pi)
    return torch.stack(
        (
            torch.full_like(x, a), b * y, b * z, b * x,
            c * x * y, c * y * z, d * (3 * z * z - 1), c * x * z, 0.5 * c * (x * x - y * y),
        )
    )  # fmt: skip


def _blur(radiance: Tensor, alpha: float) -> Tensor:
    """Weighted means over the whole map, with weights D(h) (n·l) ΔΩ that add up to 1.

    With n = v the half vector lies at half the angle to l. The weights depend on the two rows and
    on the difference in longitude alone, so the sum over columns is a circular convolution.
    """
    h = len(radiance)
    theta = (torch.arange(h, dtype=torch.float64) + 0.5) * (math.pi / h)
    longitude = torch.arange(h + 1, dtype=torch.float64) * (math.pi / h)  # it is even: half of it
    weighted = torch.cat((radiance, torch.ones_like(radiance[..., :1])), dim=-1)
    weighted = weighted * solid_angles(h)[:, None, None]
    spectrum = torch.view_as_real(torch.fft.rfft(weighted, dim=1))  # [h, h + 1, 4, 2]
    # The weights of row h − 1 − i are those of row i upside down: the map is, instead.
    both = torch.cat((spectrum, spectrum.flip(0)), dim=2)
    columns = both.movedim(1, 0).flatten(2)  # [h + 1, h, 16]
    sine, up = theta.sin(), theta.cos()
    upper, lower = [], []
    for chunk in torch.arange(h // 2).split(32):
        cosine = torch.addcmul(
            (up[chunk, None] * up)[..., None],
            (sine[chunk, None] * sine)[..., None],
            longitude.cos(),
        )  # [rows, h, h + 1], n·l
        # D ∝ 1 / (1 + (α² − 1) cos²θ_h)², where cos²θ_h = (1 + n·l) / 2
        kernel = cosine.clamp_min(0) / (1 + (alpha**2 - 1) * (1 + cosine) / 2).square()
        circle = torch.cat((kernel, kernel[..., 1:-1].flip(-1)), dim=-1)
        response = torch.fft.rfft(circle, dim=-1).real  # [rows, h, h + 1]
        product = (response.movedim(-1, 0) @ columns).unflatten(-1, (8, 2))
        product = torch.view_as_complex(product.contiguous())  # [h + 1, rows, 8]
        rows = torch.fft.irfft(product, n=2 * h, dim=0).movedim(0, 1)  # [rows, 2h, 8]
        upper.append(rows[..., :4])
        lower.append(rows[..., 4:])
    blurred = torch.cat((*upper, *(rows.flip(0) for rows in reversed(lower))))
    return blurred[..., :3] / blurred[..., 3:]
