"""Pictures in: files and the photographs that scikit-image ships."""

import io
import os
import warnings
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from PIL import Image, ImageCms, ImageOps

from sdslab.errors import UserError, UserNote, first_line
from sdslab.shell.named_inputs import PHOTOGRAPHS

LARGEST_SIZE = 8192


@dataclass(frozen=True, eq=False)
class Photo:
    """A picture and where it shows something.

    Attributes:
        channels: [3, h, w] float32, sRGB-encoded, in [0, 1]; not multiplied by the opacity.
        opacity: [1, h, w] in [0, 1], or None where everything is opaque.
    """

    channels: torch.Tensor
    opacity: torch.Tensor | None

    def on(self, shade: float) -> torch.Tensor:
        """The picture laid on one shade of grey, [3, h, w]."""
        if self.opacity is None:
            return self.channels
        return torch.lerp(torch.full_like(self.channels, shade), self.channels, self.opacity)


def load_image(source: str | Path, size: int) -> torch.Tensor:
    """Reads a picture, crops its central square and resizes it with antialiasing.

    Args:
        source: a file, or a name of ``PHOTOGRAPHS``. A file of that name wins.
        size: height and width of the result, in pixels.

    Returns:
        Float32 tensor [1, 3, size, size], sRGB-encoded, in [0, 1]. The colours of an embedded
        profile are converted, grey pictures are repeated over the channels and transparent ones
        are laid on white.

    Raises:
        UserError: there is no such file or name, or it is no picture of finite values.
    """
    if not isinstance(size, int) or not 1 <= size <= LARGEST_SIZE:
        raise UserError(f"size must be from 1 to {LARGEST_SIZE} pixels, got {size}")
    picture = _photo(_pixels(source)).on(1.0)
    side = min(picture.shape[1:])
    top, left = ((extent - side) // 2 for extent in picture.shape[1:])
    square = picture[:, top : top + side, left : left + side].contiguous()
    return _resized(square, (size, size))[None].clamp(0, 1)


def load_picture(source: str | Path, largest: int, *, colors: bool = True) -> Photo:
    """Reads a whole picture as `load_image` does, at its own aspect and with its opacity.

    Args:
        source: a file, or a name of ``PHOTOGRAPHS``.
        largest: pixels of the shorter side at most; a larger picture is made smaller.
        colors: False for a map, whose numbers are no colours: an embedded profile is ignored.

    Raises:
        UserError: as for `load_image`.
    """
    photo = _photo(_pixels(source, largest, colors))
    height, width = photo.channels.shape[1:]
    shrink = min(1.0, largest / min(height, width))
    size = (max(1, round(height * shrink)), max(1, round(width * shrink)))
    if photo.opacity is None:
        return Photo(_resized(photo.channels, size).clamp(0, 1).contiguous(), None)
    # What transparent pixels hold is unknown: it must not bleed into the others.
    opacity = _resized(photo.opacity, size).clamp(0, 1)
    channels = _resized(photo.channels * photo.opacity, size) / opacity.clamp_min(1e-3)
    return Photo(channels.clamp(0, 1), opacity)


def _photo(pixels: np.ndarray) -> Photo:
    """A picture h×w×3, or h×w×4 with its opacity."""
    picture = torch.from_numpy(pixels).movedim(-1, 0)
    return Photo(picture[:3], picture[3:] if len(picture) == 4 else None)


def _resized(picture: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """[c, h, w] with antialiasing; it may leave [0, 1] by a little."""
    if picture.shape[1:] == size:
        return picture
    return F.interpolate(
        picture[None], size=size, mode="bicubic", antialias=True, align_corners=False
    )[0]


def _pixels(source: str | Path, least: int | None = None, colors: bool = True) -> np.ndarray:
    """Float32 h×w×3, or h×w×4 with its opacity, in [0, 1]; the arguments as of `_decoded`."""
    if not isinstance(source, (str, Path)):
        raise UserError(f"image must be a file or a name, got a {type(source).__name__}")
    path = Path(source)
    if not os.path.isfile(path) and str(source) in PHOTOGRAPHS:
        import skimage.data

        return _as_rgb(getattr(skimage.data, PHOTOGRAPHS[str(source)])(), source)
    if not os.path.isfile(path):
        raise UserError(
            f"image must be an existing file or one of {', '.join(PHOTOGRAPHS)}, "
            f"got {str(source)!r}"
        )
    if path.suffix.lower() in (".exr", ".hdr"):
        raise UserError(
            f"image must be sRGB-encoded within [0, 1], got {str(source)!r}, whose format holds "
            f"linear light of any brightness; develop it and save it as PNG or JPEG"
        )
    try:
        if path.suffix.lower() == ".npy":
            with path.open("rb") as file:
                return _as_rgb(np.lib.format.read_array(file, allow_pickle=False), source)
        with warnings.catch_warnings():
            # A photo of 100 megapixels is large, but no bomb: that is what the error is for.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                pixels, opacity = _decoded(picture, path.name, least, colors)
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
    pixels = _as_rgb(pixels, source)
    if opacity is None or opacity.min() == 255:
        return pixels
    return np.concatenate((pixels, opacity[..., None].astype(np.float32) / 255), axis=-1)


def _decoded(
    picture: Image.Image, name: str, least: int | None, colors: bool
) -> tuple[np.ndarray, np.ndarray | None]:
    """Pixels h×w or h×w×3 as the camera was held, and 8-bit opacity h×w where there is any.

    Args:
        picture: just opened.
        name: of its file, for notes.
        least: the sides of a large picture may be reduced, to no less than this.
        colors: convert those of an embedded profile to sRGB.
    """
    profile = picture.info.get("icc_profile") if colors else None
    transparent = picture.has_transparency_data
    picture = ImageOps.exif_transpose(picture)
    if picture.mode.startswith("I"):  # 16-bit grey; Pillow widens some files' to 32 bits
        pixels = np.asarray(picture).astype(np.int64)
        if pixels.min() < 0 or pixels.max() > 65535:
            raise ValueError(f"grey values run from {pixels.min()} to {pixels.max()}, not to 65535")
        if profile is None:
            return pixels.astype(np.uint16), None
        ramp = Image.fromarray(np.arange(256, dtype=np.uint8)[None])
        table = np.asarray(_in_srgb(ramp, profile, name).convert("RGB"))[0] / 255
        values = pixels / 257
        return np.stack([np.interp(values, range(256), column) for column in table.T], -1), None
    if picture.mode == "F":
        return np.asarray(picture), None
    if transparent:
        picture = picture.convert("RGBA")
    elif picture.mode not in ("L", "CMYK"):
        picture = picture.convert("RGB")
    shrink = min(picture.size) // (2 * least) if least else 1
    if shrink > 1:  # in eight bits, before numbers four times as wide are made of it
        picture = picture.reduce(shrink)
    opacity = np.asarray(picture.getchannel("A")) if transparent else None
    opaque = picture.convert("RGB") if transparent else picture
    return np.asarray(_in_srgb(opaque, profile, name).convert("RGB")), opacity


def _in_srgb(picture: Image.Image, profile: bytes | None, name: str) -> Image.Image:
    """Converts a picture (L, RGB or CMYK) from its profile; one that is of no use is told of."""
    if profile is None:
        return picture
    try:
        embedded = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        space = getattr(embedded.profile, "xcolor_space", "unknown").strip()
        mode = {"RGB": "RGB", "GRAY": "L", "CMYK": "CMYK"}.get(space)
        if {mode, picture.mode} == {"RGB", "L"}:
            picture = picture.convert(mode)
        if mode != picture.mode:
            raise ValueError(f"it is for {space} colours, the picture has {picture.mode}")
        converted = ImageCms.profileToProfile(
            picture,
            embedded,
            ImageCms.createProfile("sRGB"),
            ImageCms.Intent.RELATIVE_COLORIMETRIC,
            "RGB",
            flags=ImageCms.Flags.BLACKPOINTCOMPENSATION,
        )
    except (ImageCms.PyCMSError, OSError, TypeError, ValueError) as error:
        text = f"{name}: its colour profile is left aside: {first_line(error)}"
        warnings.warn(UserNote(text), stacklevel=2)
        return picture
    assert converted is not None
    return converted


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
