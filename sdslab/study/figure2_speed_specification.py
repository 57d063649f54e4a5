"""A study of how fast a reconstruction study's steps are, as data. Imports nothing heavy."""

from dataclasses import dataclass
from pathlib import Path

from sdslab.errors import UserError
from sdslab.study.specification import (
    Cell,
    build,
    check_names,
    find_study,
    load_study,
    read_study,
)

SECTIONS = ("cells",)


@dataclass(frozen=True)
class Figure2SpeedSettings:
    """What every row shares."""

    study: str = "figure2"
    """The study whose cells are timed: a name, or a .toml file."""
    image: str | None = None
    """A picture, in place of the study's first."""
    size: int | None = None
    """Height and width of the image, in place of the study's."""
    device: str = "cpu"
    """"auto" is cuda where there is one."""
    repeats: int = 15
    """Timed steps of each cell, after two that are not."""
    matmul_size: int = 1024
    """Side of the float32 matrices whose product tells the processor's rate."""
    out: str = "figures"
    """Folder for the results."""


@dataclass(frozen=True)
class SpeedCell:
    """A row of the file."""

    name: str
    """For ``--only``; of one of the study's cells, where ``cell`` is absent."""
    cell: str | None = None
    """Of one of the study's cells."""
    recorded: bool = False
    """Steps recorded as CUDA graphs, on a GPU."""
    size: int | None = None
    """Height and width of the image, in place of the settings'."""


@dataclass(frozen=True)
class TimedCell:
    """A row."""

    name: str
    cell: Cell
    recorded: bool
    size: int


@dataclass(frozen=True)
class Figure2SpeedStudy:
    """A parsed study file with one preset applied."""

    name: str
    title: str
    preset: str
    settings: Figure2SpeedSettings
    cells: tuple[TimedCell, ...]
    image: str
    vae: str


def load_figure2_speed_study(path: Path, preset: str | None = None) -> Figure2SpeedStudy:
    """Reads a study file of kind "figure2_speed", and the one that it is about.

    Raises:
        UserError: a key or value that is not one of the valid ones.
    """
    tables = read_study(path, SECTIONS, preset)
    settings = build(Figure2SpeedSettings, tables.settings, f"{path}: settings")
    timed = load_study(find_study(settings.study))
    cells = {cell.name: cell for cell in timed.cells}
    size = settings.size or timed.settings.size
    chosen = tuple(
        _timed(build(SpeedCell, row, f"{path}: cells"), cells, size, f"{path}: cells")
        for row in tables.sections["cells"]
    )
    check_names([row.name for row in chosen], f"{path}: cells")
    return Figure2SpeedStudy(
        name=tables.name,
        title=tables.title,
        preset=tables.preset,
        settings=settings,
        cells=chosen,
        image=settings.image or timed.settings.images[0],
        vae=timed.settings.vae,
    )


def _timed(row: SpeedCell, cells: dict[str, Cell], size: int, where: str) -> TimedCell:
    name = row.cell or row.name
    if name not in cells:
        raise UserError(
            f"{where} must be named one of {', '.join(cells)}, as in the study that is timed, got "
            f"{name!r}"
        )
    if row.recorded and cells[name].noise != "cancelled":
        raise UserError(
            f"{where}.{row.name}: a recorded cell must have cancelled noise, for a recording would "
            f"draw the same one at every step; got {cells[name].noise!r}"
        )
    return TimedCell(row.name, cells[name], row.recorded, row.size or size)
