"""Pictures in: files and the photographs that scikit-image ships."""

from pathlib import Path

import numpy as np
import torch
from PIL import Image

from sdslab.errors import UserError

# Those whose pixels lie in scikit-image's wheel: nothing is downloaded.
SKIMAGE_PHOTOGRAPHS = {
    "astronaut": "astronaut",
    "brick": "brick",
    "chelsea": "chelsea",
    "coffee": "coffee",
    "grass": "grass",
    "gravel": "gravel",
    "ihc": "immunohistochemistry",
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
    if size < 1:
        raise UserError(f"size must be a positive number of pixels, got {size}")
    pixels = _pixels(source)
    side = min(pixels.shape[:2])
    top, left = ((extent - side) // 2 for extent in pixels.shape[:2])
    square = torch.from_numpy(pixels[top : top + side, left : left + side].copy())
    image = square.movedim(-1, 0)[None]
    if side != size:
        image = torch.nn.functional.interpolate(
            image, size=(size, size), mode="bicubic", antialias=True, align_corners=False
        )
    return image.clamp(0, 1)


def _pixels(source: str | Path) -> np.ndarray:
    path = Path(source)
    if not path.exists() and str(source) in SKIMAGE_PHOTOGRAPHS:
        import skimage.data

        return _as_rgb(getattr(skimage.data, SKIMAGE_PHOTOGRAPHS[str(source)])(), source)
    if not path.is_file():
        raise UserError(
            f"image must be an existing file or one of {', '.join(SKIMAGE_PHOTOGRAPHS)}, "
            f"got {str(source)!r}"
        )
    try:
        if path.suffix.lower() == ".npy":
            return _as_rgb(np.load(path, allow_pickle=False), source)
        with Image.open(path) as picture:
            if picture.mode in ("P", "PA", "LA", "RGBA"):
                picture = picture.convert("RGBA")
                page = Image.new("RGBA", picture.size, "white")
                return _as_rgb(np.asarray(Image.alpha_composite(page, picture))[..., :3], source)
            if picture.mode in ("F", "I;16"):
                return _as_rgb(np.asarray(picture), source)
            return _as_rgb(np.asarray(picture.convert("RGB")), source)
    except UserError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise UserError(
            f"image must be a readable picture (PNG, JPEG, WebP, TIFF, … or a .npy array), got "
            f"{str(source)!r}: {error}; open it in a viewer and save it again"
        ) from error


def _as_rgb(pixels: np.ndarray, source: str | Path) -> np.ndarray:
    if np.issubdtype(pixels.dtype, np.integer):
        pixels = pixels / np.float64(np.iinfo(pixels.dtype).max)
    if pixels.ndim == 2:
        pixels = np.repeat(pixels[..., None], 3, axis=-1)
    if pixels.ndim != 3 or pixels.shape[-1] != 3 or pixels.size == 0:
        raise UserError(
            f"image must be h×w or h×w×3, got shape {list(pixels.shape)} in {str(source)!r}"
        )
    if not np.isfinite(pixels).all():
        count = int((~np.isfinite(pixels)).sum())
        raise UserError(
            f"image must hold finite values only, got {count} NaN or infinite ones in "
            f"{str(source)!r}; repair or replace it"
        )
    return pixels.astype(np.float32)
