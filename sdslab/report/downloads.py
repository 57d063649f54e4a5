"""The files beside a page that it links to."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import quote

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
