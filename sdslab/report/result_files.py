"""The pictures and downloads of a run's page."""

import base64
import io
import os
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO, NamedTuple
from urllib.parse import quote

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


# (what they are, patterns in the run's folder); nothing else there is linked to.
OF_TEXTURE = (
    ("Mesh as GLB", ("mesh.glb",)),
    ("Mesh as OBJ", ("obj/*.obj", "obj/*.mtl", "obj/*.png")),
    ("Maps", ("maps/*.png", "maps/*.exr")),
    ("Pictures", ("turntable.mp4", "turntable.gif", "contact_sheet.png", "front.png")),
    ("Other materials", ("*/mesh.glb",)),
    ("Light and numbers", ("light.hdr", "metrics.csv", "run.json")),
)
TABLES = (".csv", ".md", ".json")


class Download(NamedTuple):
    """A file: its name for people, its address relative to the page, and its size as text."""

    name: str
    link: str
    size: str


def downloads_of_texture(folder: Path) -> list[tuple[str, list[Download]]]:
    """What a run left, in groups; groups of nothing are left out."""
    groups = [
        (title, [_download(path, folder) for path in _files(folder, patterns)])
        for title, patterns in OF_TEXTURE
    ]
    return [(title, files) for title, files in groups if files]


def downloads_of_study(folder: Path) -> list[tuple[str, list[Download]]]:
    """A study's tables ``OUT/NAME.*``, and its record, ``OUT/NAME/run.json``."""
    tables = [folder.parent / f"{folder.name}{suffix}" for suffix in TABLES]
    files = [path for path in (*tables, folder / "run.json") if path.is_file()]
    return [("Tables and record", [_download(path, folder) for path in files])] if files else []


def link_of(path: Path, page: Path) -> str:
    """The address of a file relative to the folder of a page, above it at most by one."""
    if path.parent == page.parent:
        return f"../{quote(os.fsencode(path.name))}"
    return quote(os.fsencode(path.relative_to(page)))


def _files(folder: Path, patterns: tuple[str, ...]) -> Iterator[Path]:
    for pattern in patterns:
        yield from (path for path in sorted(folder.glob(pattern)) if path.is_file())


def _download(path: Path, page: Path) -> Download:
    link = link_of(path, page)
    name = path.name if path.name != "mesh.glb" else path.relative_to(page).as_posix()
    return Download(name, f"./{link}", _size_text(path.stat().st_size))


def _size_text(size: int) -> str:
    if size < 1000:
        return f"{size}\N{NO-BREAK SPACE}bytes"
    value, unit = (size / 1e3, "kB") if size < 1e6 else (size / 1e6, "MB")
    number = f"{value:.3g}" if value < 1000 else f"{value:,.0f}"
    return f"{number}\N{NO-BREAK SPACE}{unit}"
