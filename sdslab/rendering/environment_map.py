"""Sources of light: equirectangular radiance from a name or a file.

Which way is which, as three.js and Blender have it: row 0 is +Y (up), the picture's middle column
is +X and the one three quarters across is +Z, so u = ½ + atan2(z, x) / 2π and v = acos(y) / π from
the top.
"""

import math
import os
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sdslab.errors import UserError
from sdslab.pictures.color import srgb_to_linear
from sdslab.pictures.image_io import load_picture
from sdslab.rendering.radiance_hdr import read_hdr

HEIGHT = 512  # larger maps are reduced to this many rows
LARGEST_WIDTH = 8192
MEAN_RADIANCE = 0.8  # of procedural lights: a white Lambertian sphere's mean outgoing radiance
PICTURE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".tif", ".tiff", ".bmp")
SUFFIXES = (".hdr", ".exr", *PICTURE_SUFFIXES)


def load_environment(source: str | Path) -> Tensor:
    """Reads or makes a light.

    Args:
        source: a file (.hdr, .exr, or an ordinary picture, which is decoded from sRGB), twice as
            wide as high; or a name of `PROCEDURAL`. A file of that name wins. Negative values,
            which resampling filters leave in files, count as 0.

    Returns:
        [h, 2h, 3] float32 linear radiance, h ≤ 512: larger ones are averaged over solid angle.

    Raises:
        UserError: there is no such file or name, or the file is no such map of finite values.
    """
    path = Path(source)
    if not os.path.isfile(path) and str(source) in PROCEDURAL:
        return PROCEDURAL[str(source)]().float()
    if not os.path.isfile(path):
        raise UserError(
            f"light must be an existing file or one of {', '.join(PROCEDURAL)}, got {str(source)!r}"
        )
    suffix = path.suffix.lower()
    if suffix not in SUFFIXES:
        raise UserError(
            f"light must be a file that ends in one of {', '.join(SUFFIXES)}, got {str(source)!r}; "
            f"convert it"
        )
    read = {".hdr": _read_hdr, ".exr": _read_exr}.get(suffix, _read_picture)
    try:
        radiance = read(path)
    except UserError:
        raise
    # OpenEXR raises whatever it finds fit.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise UserError(
            f"light must be a readable {suffix} file, got {str(source)!r}: {reason}; save it again"
        ) from error
    height, width = radiance.shape[:2]
    _require_size(width, height, path)
    if not np.isfinite(radiance).all():
        count = int((~np.isfinite(radiance)).sum())
        raise UserError(
            f"light must hold finite values only, got {count} NaN or infinite ones in "
            f"{str(source)!r}; repair or replace it"
        )
    radiance = torch.from_numpy(radiance.astype(np.float32)).clamp_min(0)
    return radiance if height <= HEIGHT else resize(radiance, HEIGHT)


def directions(height: int) -> Tensor:
    """[height, 2 height, 3] float64 unit vectors towards the pixels' centres."""
    theta = (torch.arange(height, dtype=torch.float64) + 0.5) * (math.pi / height)
    phi = (torch.arange(2 * height, dtype=torch.float64) + 0.5) * (math.pi / height) - math.pi
    sine, up = theta.sin()[:, None], theta.cos()[:, None]
    return torch.stack((sine * phi.cos(), up.expand(-1, 2 * height), sine * phi.sin()), dim=-1)


def solid_angles(height: int) -> Tensor:
    """[height] float64, what a pixel of each row subtends, in steradians; the sphere's is 4π."""
    edges = (torch.arange(height + 1, dtype=torch.float64) * (math.pi / height)).cos()
    return (edges[:-1] - edges[1:]) * (math.pi / height)


def resize(radiance: Tensor, height: int) -> Tensor:
    """Averages a map over each new pixel's solid angle; the sphere's total energy is kept.

    Args:
        radiance: [h, 2h, 3].
        height: of the result.

    Returns:
        [height, 2 height, 3].
    """
    old = len(radiance)
    # Rows overlap in y = cos θ, which is solid angle; columns in φ.
    row_edges, new_row_edges = (
        (torch.arange(n + 1, dtype=torch.float64) * (math.pi / n)).cos().neg()
        for n in (old, height)
    )
    column_edges, new_column_edges = (
        torch.linspace(0, 1, 2 * n + 1).double() for n in (old, height)
    )
    rows = _overlap(new_row_edges, row_edges).to(radiance)
    columns = _overlap(new_column_edges, column_edges).to(radiance)
    return torch.einsum("or,rpc->opc", rows, torch.einsum("pk,rkc->rpc", columns, radiance))


def sample_equirectangular(radiance: Tensor, direction: Tensor) -> Tensor:
    """Bilinear look-up, seamless across the left and right edges and the poles.

    Args:
        radiance: [h, 2h, 3].
        direction: [..., 3], any length.

    Returns:
        [..., 3].
    """
    h = len(radiance)
    # Beyond a pole lies the same row, half a turn away.
    over = radiance.roll(h, dims=1)
    padded = torch.cat((over[:1], radiance, over[-1:]))
    padded = torch.cat((padded[:, -1:], padded, padded[:, :1]), dim=1)
    x, y, z = F.normalize(direction, dim=-1).to(radiance).unbind(-1)
    u = (torch.atan2(z, x) / math.pi) * (2 * h / (2 * h + 2))
    v = (2 * y.clamp(-1, 1).acos() / math.pi - 1) * (h / (h + 2))
    grid = torch.stack((u, v), dim=-1).view(1, 1, -1, 2)
    values = F.grid_sample(padded.movedim(-1, 0)[None], grid, align_corners=False)
    return values[0, :, 0].T.reshape(*direction.shape)


def _overlap(new_edges: Tensor, edges: Tensor) -> Tensor:
    """[new, old]: the share of each new interval that each old one covers."""
    high = torch.minimum(new_edges[1:, None], edges[1:])
    low = torch.maximum(new_edges[:-1, None], edges[:-1])
    return (high - low).clamp_min(0) / (new_edges[1:] - new_edges[:-1])[:, None]


def _require_size(width: int, height: int, path: Path) -> None:
    if not (height >= 1 and width == 2 * height and width <= LARGEST_WIDTH):
        raise UserError(
            f"light must be an equirectangular map, twice as wide as high and at most "
            f"{LARGEST_WIDTH} wide, got {width}×{height} in {str(path)!r}; resize it"
        )


def _read_hdr(path: Path) -> np.ndarray:
    return read_hdr(path, lambda width, height: _require_size(width, height, path))


def _read_exr(path: Path) -> np.ndarray:
    import OpenEXR

    # Given by a stream: OpenEXR takes no path that is not UTF-8.
    with path.open("rb") as content, OpenEXR.File(content, header_only=True) as file:
        (left, top), (right, bottom) = file.header()["dataWindow"]
        _require_size(int(right) - int(left) + 1, int(bottom) - int(top) + 1, path)
    with path.open("rb") as content, OpenEXR.File(content) as file:
        channels = file.channels()
        for name in ("RGB", "RGBA"):
            if name in channels:
                return np.asarray(channels[name].pixels, np.float32)[..., :3]
        if "Y" in channels:
            return np.asarray(channels["Y"].pixels, np.float32)[..., None].repeat(3, axis=-1)
        raise ValueError(f"it has no channels R, G and B but {', '.join(sorted(channels))}")


def _read_picture(path: Path) -> np.ndarray:
    with Image.open(path) as picture:
        _require_size(*picture.size, path)
    channels = load_picture(path, LARGEST_WIDTH).channels
    return srgb_to_linear(channels.movedim(0, -1)).numpy()


def _constant(radiance: float) -> Tensor:
    return torch.full((16, 32, 3), radiance)


def _normalized(radiance: Tensor) -> Tensor:
    """Scaled so that the mean over the sphere, which is a white sphere's own, is MEAN_RADIANCE."""
    mean = (radiance.mean((1, 2)) * solid_angles(HEIGHT) * (2 * HEIGHT)).sum() / (4 * math.pi)
    return radiance * (MEAN_RADIANCE / mean)


def _studio() -> Tensor:
    """Soft boxes in a grey room: a warm key, a cool fill, two rims and one overhead."""
    d = directions(HEIGHT)
    floor, ceiling = d.new_tensor((0.26, 0.25, 0.24)), d.new_tensor((0.42, 0.43, 0.45))
    radiance = torch.lerp(floor, ceiling, _smooth_step(d[..., 1:2], -0.6, 0.6))
    boxes = (
        # towards, half width, half height (tangents of the angles), radiance
        ((-0.75, 0.65, 0.75), 0.40, 0.50, (6.3, 6.0, 5.6)),
        ((0.95, 0.20, 0.55), 0.40, 0.60, (1.9, 2.05, 2.25)),
        ((-0.70, 0.30, -0.95), 0.13, 0.70, (4.3, 4.4, 4.6)),
        ((0.85, 0.45, -0.80), 0.13, 0.70, (4.0, 3.9, 3.7)),
        ((0.05, 1.00, -0.10), 0.40, 0.30, (3.2, 3.2, 3.2)),
    )
    for towards, half_width, half_height, colour in boxes:
        forward = F.normalize(d.new_tensor(towards), dim=0)
        right = F.normalize(torch.linalg.cross(forward, d.new_tensor((0, 1, 0))), dim=0)
        depth = d @ forward
        across = (d @ right).abs() / depth.clamp_min(1e-3)
        along = (d @ torch.linalg.cross(right, forward)).abs() / depth.clamp_min(1e-3)
        inside = (1 - _smooth_step(across, half_width - 0.04, half_width + 0.04)) * (
            1 - _smooth_step(along, half_height - 0.04, half_height + 0.04)
        )
        cover = (inside * (depth > 0))[..., None]
        radiance = torch.lerp(radiance, d.new_tensor(colour).expand_as(radiance), cover)
    return _normalized(radiance)


def _sky() -> Tensor:
    """A clear sky, ground, and a sun blown up to 3° radius that gives a third of the light."""
    d = directions(HEIGHT)
    up = d[..., 1:2]
    zenith, horizon = d.new_tensor((0.22, 0.42, 0.85)), d.new_tensor((0.80, 0.90, 1.00))
    radiance = torch.lerp(horizon, zenith, up.clamp_min(0) ** 0.5)
    sun = F.normalize(d.new_tensor((-0.55, 0.75, 0.60)), dim=0)
    cosine = (d @ sun)[..., None]
    warm = d.new_tensor((1.0, 0.93, 0.80))
    radiance = radiance + 0.6 * warm * cosine.clamp_min(0) ** 48
    angle = torch.rad2deg(cosine.clamp(-1, 1).acos())
    radiance = radiance + 320 * warm * (1 - _smooth_step(angle, 2.7, 3.3))
    ground = d.new_tensor((0.30, 0.27, 0.23))
    return _normalized(torch.lerp(ground, radiance, _smooth_step(up, -0.03, 0.01)))


def _smooth_step(x: Tensor, low: float, high: float) -> Tensor:
    t = ((x - low) / (high - low)).clamp(0, 1)
    return t * t * (3 - 2 * t)


PROCEDURAL: dict[str, Callable[[], Tensor]] = {
    "studio": _studio,
    "sky": _sky,
    "constant": lambda: _constant(MEAN_RADIANCE),
    "white": lambda: _constant(1.0),  # the white furnace of tests
}
