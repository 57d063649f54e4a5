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

import io
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor

from sdslab.errors import UserError
from sdslab.files.atomic_write import atomic_write
from sdslab.pictures.color import srgb_to_linear

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


def resize_maps(maps: Tensor, size: int) -> Tensor:
    """Resamples maps with power-of-two sides to [size, size, 8], as a texture that repeats."""
    height, width = maps.shape[:2]
    texels = maps.movedim(-1, 0)[None]
    shrink = (max(1, height // size), max(1, width // size))
    texels = F.avg_pool2d(texels, shrink)
    height, width = texels.shape[-2:]
    if (height, width) != (size, size):
        # One texel of the opposite side all around, of which nothing but the blend is kept.
        texels = F.pad(texels, (1, 1, 1, 1), mode="circular")
        rows, columns = size // height, size // width
        texels = F.interpolate(texels, scale_factor=(rows, columns), mode="bilinear")
        texels = texels[..., rows:-rows, columns:-columns]
    return renormalized(texels[0].movedim(0, -1))


LEAST_WRAP = 16


def dilate_seams(maps: Tensor, covered: Tensor) -> Tensor:
    """Fills each uncovered texel from the nearest covered one, over the borders too.

    Viewers mix texels of both kinds at seams and in their mip pyramids; after this, the fill shows
    nowhere.

    Args:
        maps: [h, w, c].
        covered: [h, w] bool; where nothing is, nothing changes.

    Returns:
        A new [h, w, c]. Texels wrap around the borders as repeating textures do: nearest is exact
        up to a sixteenth of the side (16 texels at least), which is all that a seam needs.
    """
    from scipy.ndimage import distance_transform_edt

    filled = maps.clone(memory_format=torch.contiguous_format)
    holes = ~covered.cpu().numpy()
    if holes.all():
        return filled
    height, width = holes.shape
    y_wrap, x_wrap = (min(max(side // 16, LEAST_WRAP), side) for side in (height, width))
    tiled = np.pad(holes, ((y_wrap, y_wrap), (x_wrap, x_wrap)), mode="wrap")
    nearest: Any = distance_transform_edt(tiled, return_distances=False, return_indices=True)
    rows, columns = nearest
    inner = slice(y_wrap, y_wrap + height), slice(x_wrap, x_wrap + width)
    row, column = rows[inner][holes] - y_wrap, columns[inner][holes] - x_wrap
    source = torch.from_numpy(row % height * width + column % width).long()
    target = torch.from_numpy(np.flatnonzero(holes))
    texels = filled.view(height * width, -1)
    texels[target.to(maps.device)] = texels[source.to(maps.device)]
    return filled


# What `load_maps` reads: eight bits of all eight channels.
MAP_FILES = ("albedo.png", "metallic_roughness.png", "normal.png")
LARGEST_SIDE = 8192
EIGHT_BIT_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "RGBX")


def map_pictures(maps: Tensor) -> dict[str, np.ndarray]:
    """The maps in eight bits and upright: row 0 of a picture is the top, v = 1.

    Args:
        maps: [h, w, 8] as `material.py` describes.

    Returns:
        uint8 pictures: "albedo" [h, w, 3], sRGB-encoded; "metallic_roughness" [h, w, 3] with R = 1
        (no occlusion), G = roughness, B = metallic, as glTF packs them; "normal" [h, w, 3], +Y up;
        "roughness" [h, w] and "metallic" [h, w]. All but the albedo are linear.

    Raises:
        ValueError: a value does not round to one of [0, 255].
    """
    if maps.ndim != 3 or maps.shape[-1] != CHANNELS:
        raise ValueError(f"maps must be [h, w, {CHANNELS}], got {list(maps.shape)}")
    levels = (maps.detach().cpu().flip(0) * 255).round()
    if not bool(((levels >= 0) & (levels <= 255)).all()):  # NaN included
        raise ValueError(
            f"maps must lie in [0, 1], got {float(maps.min()):g} to {float(maps.max()):g}; did "
            f"project_material_ run?"
        )
    texels = levels.to(torch.uint8).numpy()
    roughness, metallic = texels[..., ROUGHNESS], texels[..., METALLIC]
    occlusion = np.full_like(roughness, 255)
    pictures = {
        "albedo": texels[..., ALBEDO],
        "metallic_roughness": np.stack((occlusion, roughness, metallic), -1),
        "normal": texels[..., NORMAL],
        "roughness": roughness,
        "metallic": metallic,
    }
    return {name: np.ascontiguousarray(picture) for name, picture in pictures.items()}


def opacity_picture(opacity: Tensor, maps: Tensor) -> np.ndarray:
    """An opacity [h, w] in [0, 1] as an upright uint8 picture of the maps' size."""
    size = (maps.shape[0], maps.shape[1])
    fitting = opacity.detach().cpu().flip(0)[None, None].float()
    if fitting.shape[2:] != size:
        fitting = F.interpolate(fitting, size, mode="bilinear", antialias=True)
    return (fitting[0, 0].clamp(0, 1) * 255).round().to(torch.uint8).numpy()


def encode_png(picture: np.ndarray) -> bytes:
    """A uint8 picture, [h, w], [h, w, 3] or [h, w, 4], as the bytes of a PNG file."""
    content = io.BytesIO()
    Image.fromarray(picture).save(content, "PNG")
    return content.getvalue()


def save_maps(maps: Tensor, folder: Path, exr: bool = False) -> list[Path]:
    """Writes albedo, metallic_roughness, normal, roughness and metallic as eight-bit PNG files.

    Args:
        maps: [h, w, 8] as `material.py` describes.
        folder: made if need be.
        exr: also writes albedo, roughness, metallic and normal as float32 OpenEXR files. As is
            usual there, the albedo's are linear light; normals stay (n + 1) / 2.

    Returns:
        The files' paths.

    Raises:
        UserError: the folder cannot be written or the disk is full.
    """
    paths = []
    for name, picture in map_pictures(maps).items():
        paths.append(folder / f"{name}.png")
        with atomic_write(paths[-1]) as temporary:
            temporary.write_bytes(encode_png(picture))
    if exr:
        upright = maps.detach().cpu().float().flip(0)
        channels = {
            "albedo": srgb_to_linear(upright[..., ALBEDO]),
            "roughness": upright[..., ROUGHNESS],
            "metallic": upright[..., METALLIC],
            "normal": upright[..., NORMAL],
        }
        for name, values in channels.items():
            paths.append(folder / f"{name}.exr")
            _write_exr(paths[-1], values)
    return paths


def load_maps(folder: Path) -> Tensor:
    """Reads the three files of `MAP_FILES`, as `save_maps` or an image editor wrote them.

    Returns:
        [h, w, 8] float32 as `material.py` describes; transparency is ignored.

    Raises:
        UserError: a file is missing or no picture of eight bits, their sizes differ, or a side is
            no power of two.
    """
    albedo, metallic_roughness, normal = (_read_rgb(folder / name) for name in MAP_FILES)
    sizes = [f"{t.shape[1]}x{t.shape[0]}" for t in (albedo, metallic_roughness, normal)]
    if len(set(sizes)) > 1:
        raise UserError(
            f"{', '.join(MAP_FILES)} must be of one size, got {', '.join(sizes)} in "
            f"{str(folder)!r}; resize them"
        )
    if any(side & (side - 1) for side in albedo.shape[:2]):
        raise UserError(
            f"maps must have sides that are powers of two, got {sizes[0]} in {str(folder)!r}; "
            f"resize them"
        )
    return torch.cat((albedo, metallic_roughness[..., 1:], normal), -1)


def _read_rgb(path: Path) -> Tensor:
    """An eight-bit picture as [h, w, 3] float32, row 0 at the bottom."""
    try:
        with Image.open(path) as picture:
            if picture.mode not in EIGHT_BIT_MODES or max(picture.size) > LARGEST_SIDE:
                raise UserError(
                    f"{str(path)!r} must be a picture of eight bits a channel and at most "
                    f"{LARGEST_SIDE} pixels a side, got mode {picture.mode}, "
                    f"{picture.width}x{picture.height}; convert it"
                )
            levels = torch.from_numpy(np.array(picture.convert("RGB")))
    except UserError:
        raise
    except (
        EOFError, MemoryError, OSError, SyntaxError, ValueError, Image.DecompressionBombError
    ) as error:  # fmt: skip
        reason = "there is none" if isinstance(error, FileNotFoundError) else error
        raise UserError(
            f"{str(path)!r} must be a readable PNG: {reason or type(error).__name__}; give a "
            f"folder with {', '.join(MAP_FILES)}"
        ) from error
    return levels.flip(0).float() / 255


def _write_exr(path: Path, values: Tensor) -> None:
    import OpenEXR

    name = "RGB" if values.ndim == 3 else "Y"
    pixels = values.contiguous().numpy()
    header = {"compression": OpenEXR.ZIP_COMPRESSION, "type": OpenEXR.scanlineimage}
    content = io.BytesIO()  # OpenEXR takes no path that is not UTF-8
    with atomic_write(path) as temporary:
        try:
            with OpenEXR.File(header, {name: pixels}) as file:
                file.write(content)
        except RuntimeError as error:  # what OpenEXR raises
            raise OSError(str(error)) from error
        temporary.write_bytes(content.getbuffer())
