"""Pictures in: files and the photographs that scikit-image ships."""

import os
import warnings
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from sdslab.errors import UserError

LARGEST_SIZE = 8192
# Those whose pixels lie in scikit-image's wheel: nothing is downloaded.
SKIMAGE_PHOTOGRAPHS = {
    "astronaut": "astronaut",
    "brick": "brick",
    "chelsea": "chelsea",
    "coffee": "coffee",
    "grass": "grass",
    "gravel": "gravel",
    "hubble": "hubble_deep_field",
    "ihc": "immunohistochemistry",
    "moon": "moon",
    "retina": "retina",
    "rocket": "rocket",
}


def load_image(source: str | Path, size: int) -> torch.Tensor:
    """Reads a picture, crops its central square and resizes it with antialiasing.

    Args:
        source: a file, or a name of ``SKIMAGE_PHOTOGRAPHS``. A file of that name wins.
        size: height and width of the result, in pixels.

    Returns:
        Float32 tensor [1, 3, size, size], sRGB-encoded, in [0, 1]. Grey pictures are repeated over
        the channels and transparent ones are laid on white.

    Raises:
        UserError: there is no such file or name, or it is no picture of finite values.
    """
    if not 1 <= size <= LARGEST_SIZE:
        raise UserError(f"size must be from 1 to {LARGEST_SIZE} pixels, got {size}")
    return _resized(_square(_pixels(source)), size)


def load_picture(source: str | Path, largest: int) -> torch.Tensor:
    """Reads a whole picture as `load_image` does, at its own aspect.

    Args:
        source: a file, or a name of ``SKIMAGE_PHOTOGRAPHS``.
        largest: pixels of the shorter side at most; a larger picture is made smaller.

    Returns:
        [3, h, w] float32.

    Raises:
        UserError: as for `load_image`.
    """
    picture = torch.from_numpy(_pixels(source, largest)).movedim(-1, 0)[None]
    height, width = picture.shape[-2:]
    shrink = min(1.0, largest / min(height, width))
    size = [max(1, round(side * shrink)) for side in (height, width)]
    if size != [height, width]:
        picture = torch.nn.functional.interpolate(
            picture, size=size, mode="bicubic", antialias=True, align_corners=False
        )
    return picture[0].clamp(0, 1).contiguous()


def _square(pixels: np.ndarray) -> torch.Tensor:
    """The middle of a picture [h, w, 3], as [1, 3, side, side]."""
    side = min(pixels.shape[:2])
    top, left = ((extent - side) // 2 for extent in pixels.shape[:2])
    square = torch.from_numpy(pixels[top : top + side, left : left + side].copy())
    return square.movedim(-1, 0)[None]


def _resized(image: torch.Tensor, size: int) -> torch.Tensor:
    if image.shape[-1] != size:
        image = torch.nn.functional.interpolate(
            image, size=(size, size), mode="bicubic", antialias=True, align_corners=False
        )
    return image.clamp(0, 1)


def _pixels(source: str | Path, least: int | None = None) -> np.ndarray:
    """Float32 h×w×3 in [0, 1]; a large file's sides may be reduced, to no less than ``least``."""
    path = Path(source)
    if not os.path.isfile(path) and str(source) in SKIMAGE_PHOTOGRAPHS:
        import skimage.data

        return _as_rgb(getattr(skimage.data, SKIMAGE_PHOTOGRAPHS[str(source)])(), source)
    if not os.path.isfile(path):
        raise UserError(
            f"image must be an existing file or one of {', '.join(SKIMAGE_PHOTOGRAPHS)}, "
            f"got {str(source)!r}"
        )
    try:
        if path.suffix.lower() == ".npy":
            with path.open("rb") as file:
                return _as_rgb(np.lib.format.read_array(file, allow_pickle=False), source)
        with warnings.catch_warnings():
            # A photo of 100 megapixels is large, but no bomb: that is what the error is for.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                return _as_rgb(_upright_pixels(picture, least), source)
    except UserError:
        raise
    except (
        EOFError, MemoryError, OSError, SyntaxError, ValueError, Image.DecompressionBombError
    ) as error:  # fmt: skip
        raise UserError(
            f"image must be a readable picture (PNG, JPEG, WebP, TIFF, … or a .npy array), got "
            f"{str(source)!r}: {error or type(error).__name__}; open it in a viewer and save it "
            f"again"
        ) from error


def _upright_pixels(picture: Image.Image, least: int | None = None) -> np.ndarray:
    """Pixels as the camera was held, on white, h×w or h×w×3."""
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # 16-bit grey; Pillow widens some files' to 32 bits
        pixels = np.asarray(picture).astype(np.int64)
        if pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError(f"grey values run from {pixels.min()} to {pixels.max()}, not to 65535")
        return pixels.astype(np.uint16)
    if picture.mode == "F":
        return np.asarray(picture)
    if picture.mode in ("P", "PA", "LA", "RGBA"):
        picture = picture.convert("RGBA")
        page = Image.new("RGBA", picture.size, "white")
        picture = Image.alpha_composite(page, picture)
    picture = picture.convert("RGB")
    shrink = min(picture.size) // (2 * least) if least else 1
    if shrink > 1:  # in eight bits, before numbers four times as wide are made of it
        picture = picture.reduce(shrink)
    return np.asarray(picture)


def _as_rgb(pixels: np.ndarray, source: str | Path) -> np.ndarray:
    """Checks values and shape; float32 h×w×3 in [0, 1]."""
    if pixels.dtype.kind == "f":
        if not np.isfinite(pixels).all():
            count = int((~np.isfinite(pixels)).sum())
            raise UserError(
                f"image must hold finite values only, got {count} NaN or infinite ones in "
                f"{str(source)!r}; repair or replace it"
            )
        if pixels.size and (pixels.min() < 0 or pixels.max() > 1):
            raise UserError(
                f"image must hold numbers within [0, 1] where they are floats, got "
                f"{pixels.min():.4g} to {pixels.max():.4g} in {str(source)!r}; divide or clip them"
            )
    elif pixels.dtype in (np.uint8, np.uint16):
        pixels = pixels / np.float64(np.iinfo(pixels.dtype).max)
    else:
        raise UserError(
            f"image must hold uint8, uint16 or floats within [0, 1], got {pixels.dtype} in "
            f"{str(source)!r}; convert it"
        )
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=-1)
    if pixels.ndim != 3 or pixels.shape[-1] != 3 or pixels.size == 0:
        raise UserError(
            f"image must be h×w or h×w×3, got shape {list(pixels.shape)} in {str(source)!r}"
        )
    return pixels.astype(np.float32)
