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
from sdslab.files.atomic_write import atomic_write
from sdslab.pictures.color import srgb_to_linear
from sdslab.pictures.image_io import load_picture

_LONGEST_HEADER = 65536


def _read_hdr(path: Path) -> np.ndarray:
    """Decodes a Radiance picture whose rows run from the top and columns from the left.

    Three mantissas share an exponent, run-length encoded or plain; EXPOSURE is not undone.

    Raises:
        ValueError: it is no such picture, or is cut short.

    Source: Ward, "Real pixels", Graphics Gems II (1991), and Radiance's file format description.
    """
    content = path.read_bytes()
    if not content.startswith(b"#?"):
        raise ValueError("it does not begin with #?")
    header_end = content.find(b"\n\n", 0, _LONGEST_HEADER)
    size_end = content.find(b"\n", header_end + 2, header_end + 100)
    if header_end < 0 or size_end < 0:
        raise ValueError("its header does not end")
    if b"FORMAT=32-bit_rle_rgbe" not in content[:header_end].splitlines():
        raise ValueError("its header lacks FORMAT=32-bit_rle_rgbe")
    match content[header_end + 2 : size_end].split():
        case [b"-Y", rows, b"+X", columns]:
            height, width = int(rows), int(columns)
        case other:
            size = b" ".join(other).decode("latin-1")
            raise ValueError(f"its size reads {size!r} instead of -Y height +X width")
    _require_size(width, height, path)
    pixels = _decode(content[size_end + 1 :], height, width)
    scale = np.ldexp(np.float32(1), pixels[..., 3:].astype(np.int32) - 136)
    return pixels[..., :3] * np.where(pixels[..., 3:] == 0, np.float32(0), scale)


def write_hdr(radiance: np.ndarray, path: Path) -> None:
    """Writes a Radiance picture without run-length encoding, whole or not at all.

    Args:
        radiance: [height, width, 3], linear, not negative; eight bits of the largest channel's
            mantissa are kept.
        path: ends in .hdr.

    Raises:
        UserError: the file cannot be written.
    """
    largest = radiance.max(-1)
    mantissa, exponent = np.frexp(largest)
    scale = np.where(largest < 1e-32, 0, mantissa * 256 / np.maximum(largest, 1e-32))
    pixels = np.empty((*radiance.shape[:2], 4), np.uint8)
    pixels[..., :3] = radiance * scale[..., None]
    pixels[..., 3] = np.where(largest < 1e-32, 0, exponent + 128)
    height, width = radiance.shape[:2]
    header = f"#?RADIANCE\nFORMAT=32-bit_rle_rgbe\n\n-Y {height} +X {width}\n"
    with atomic_write(path) as temporary:
        temporary.write_bytes(header.encode() + pixels.tobytes())


def _decode(data: bytes, height: int, width: int) -> np.ndarray:
    """[height, width, 4] uint8: the mantissas and the exponent."""
    row_mark = bytes((2, 2, width >> 8, width & 255))
    if not 8 <= width < 32768 or not data.startswith(row_mark):
        return _plain(data, height, width)
    pixels = np.empty((height, 4, width), np.uint8)
    at = 0
    for row in pixels:
        if data[at : at + 4] != row_mark:
            raise ValueError("a row does not begin where it should")
        at += 4
        for channel in row:
            at = _decode_runs(data, at, channel)
    return pixels.swapaxes(1, 2)


def _decode_runs(data: bytes, at: int, channel: np.ndarray) -> int:
    """Fills one channel of a row from ``data[at:]``; returns where the next one begins."""
    x, width = 0, len(channel)
    while x < width:
        if at + 1 >= len(data):
            raise ValueError("it is cut short")
        count, repeated = data[at], data[at] > 128
        if repeated:
            count -= 128
        if not 0 < count <= width - x:
            raise ValueError("a run is longer than its row")
        if repeated:
            channel[x : x + count] = data[at + 1]
            at += 2
        else:
            literal = data[at + 1 : at + 1 + count]
            if len(literal) < count:
                raise ValueError("it is cut short")
            channel[x : x + count] = np.frombuffer(literal, np.uint8)
            at += 1 + count
        x += count
    return at


def _plain(data: bytes, height: int, width: int) -> np.ndarray:
    if len(data) < height * width * 4:
        raise ValueError("it is cut short")
    pixels = np.frombuffer(data, np.uint8, height * width * 4).reshape(height, width, 4)
    if (pixels[..., :3] == 1).all(-1).any():
        raise ValueError("its runs are encoded in the format's first way, which is not supported")
    return pixels


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
    "constant": lambda: torch.full((16, 32, 3), MEAN_RADIANCE),
    "white": lambda: torch.ones(16, 32, 3),  # the white furnace of tests
}
