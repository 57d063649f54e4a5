"""Pictures as data URIs, no larger than a page needs them."""

import base64
import io
import warnings
from pathlib import Path
from typing import BinaryIO

from PIL import Image, UnidentifiedImageError

from sdslab.errors import UserError, first_line, one_line

LARGEST_PICTURE = 8192**2  # pixels


def data_uri(picture: Image.Image, largest_side: int, quality: int) -> str:
    """A WebP, shrunk to a largest side in pixels."""
    picture = picture.convert("RGB")
    if max(picture.size) > largest_side:
        shrink = largest_side / max(picture.size)
        size = tuple(max(1, round(side * shrink)) for side in picture.size)
        picture = picture.resize((size[0], size[1]), Image.Resampling.LANCZOS)
    content = io.BytesIO()
    picture.save(content, "WEBP", quality=quality, method=4)
    return f"data:image/webp;base64,{base64.b64encode(content.getvalue()).decode()}"


def decode_picture(source: Path | BinaryIO) -> Image.Image:
    """Decodes a PNG.

    Raises:
        ValueError: it is none, or larger than any map.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # it is bounded here
            picture = Image.open(source, formats=["PNG"])
        if picture.width * picture.height > LARGEST_PICTURE:
            raise ValueError(f"a picture has {picture.width}×{picture.height} pixels")
        picture.load()
    except UnidentifiedImageError as error:
        raise ValueError("a picture is no PNG") from error
    except (EOFError, OSError, SyntaxError, Image.DecompressionBombError) as error:
        raise ValueError(f"a picture cannot be read: {first_line(error)}") from error
    return picture


def read_picture(path: Path) -> Image.Image | None:
    """A PNG of a run; None where there is none.

    Raises:
        UserError: it cannot be read.
    """
    if not path.is_file():
        return None
    try:
        return decode_picture(path)
    except ValueError as error:
        raise UserError(
            f"{one_line(str(path))!r} must be a picture that a run wrote: "
            f"{one_line(first_line(error))}; run the program again with --fresh"
        ) from error
