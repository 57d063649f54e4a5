"""The study of what Figure 2's steps cost, and where: ours against a straightforward one."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Annotated, Any, final

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import torch
from torch.utils.flop_counter import FlopCounterMode

from sdslab.diffusion_space import LatentSpace
from sdslab.errors import UserError
from sdslab.pictures.image_io import load_image
from sdslab.runs.from_toml import Between
from sdslab.runs.table import Page, Table
from sdslab.shell.named_inputs import is_named_object
from sdslab.study.experiment import Experiment, Finished, Given, Piece, Result, save_figure
from sdslab.study.figure2_steps import (
    SEED,
    StraightforwardCell,
    errors,
    loop,
    recorded,
    recording_error,
)
from sdslab.study.measuring import (
    clock_name,
    median_ratio,
    milliseconds,
    quantile_columns,
    quantiles_in,
    quantiles_of,
    refusal,
    spread,
)
from sdslab.study.reconstruct import Cell, Problem, check_cell, with_steps

WARM_UPS = 2
BURST = 20  # recorded steps between two looks at the clock: a launch takes less than a look
# Where rounding moves an activation across its kink, the error of either step is a hundred times
# larger: a gradient is wrong that is wrong from each of so many initial θ.
TRIES = 6
SHARES: tuple[str, ...] = ("convolution", "normalisation", "optimiser", "other")
"""Kinds of operators, by the names in torch's profile; products of matrices are convolutions."""


@dataclass(frozen=True)
class Figure2SpeedSettings:
    """What every row shares."""

    study: str = "figure2"
    """The study whose cells are timed: a name, or a .toml file."""
    image: str | None = None
    """A picture, in place of the study's first."""
    size: Annotated[int | None, Between(1, 8192)] = None
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
    """Name of one of the study's cells."""
    recorded: bool = False
    """Steps recorded as CUDA graphs, on a GPU."""
    size: Annotated[int | None, Between(1, 8192)] = None
    """Height and width of the image, in place of the settings'."""


@dataclass(frozen=True)
class Figure2SpeedFile:
    """A parsed study file with one preset applied."""

    name: str
    title: str
    preset: str
    settings: Figure2SpeedSettings
    cells: tuple[SpeedCell, ...]


@dataclass(frozen=True)
class TimedCell:
    """A row."""

    name: str
    cell: Cell
    recorded: bool
    size: int

    @property
    def label(self) -> str:
        """What θ is, and whether its steps are recorded."""
        return self.cell.label + (", recorded" if self.recorded else "")


@dataclass(frozen=True)
class Figure2SpeedStudy:
    """The same with the cells of the study that is timed."""

    name: str
    title: str
    preset: str
    settings: Figure2SpeedSettings
    cells: tuple[TimedCell, ...]
    image: str
    vae: str


@final
class Figure2Speeds(Experiment):
    """Times the steps of cells; without times where the gradients differ."""

    study_class = Figure2SpeedFile
    packages = ("torch", "diffusers")
    truth = "θ's gradient must equal the straightforward step's"
    study: Figure2SpeedStudy

    def __init__(
        self, study: Figure2SpeedStudy, only: tuple[str, ...], device: torch.device
    ) -> None:
        super().__init__(study, only, device)
        self.vae = LatentSpace.load(study.vae, device)
        for timed in study.cells:
            check_cell(timed.cell, timed.size, self.vae)

    @staticmethod
    def finish_study(
        study: Figure2SpeedFile, where: str, load: Callable[[str], Any]
    ) -> Figure2SpeedStudy:
        """Reads the study that is timed, and finds the cells there."""
        settings = study.settings
        timed = load(settings.study)
        cells = {cell.name: cell for cell in timed.cells}
        size = settings.size or timed.settings.size
        rows = tuple(_timed(row, cells, size, f"{where}: cells") for row in study.cells)
        image = settings.image or timed.settings.images[0]
        head = (study.name, study.title, study.preset, settings)
        return Figure2SpeedStudy(*head, rows, image, timed.settings.vae)

    def pieces(self) -> list[Piece]:
        return [
            Piece(timed.name, timed.name, partial(self._row, timed), timed, watched=False)
            for timed in self.chosen(self.study.cells)
        ]

    def _row(self, timed: TimedCell, _: Given) -> Iterator[Result]:
        image = load_image(self.study.image, timed.size).to(self.device)
        problem = Problem.of(self.study.image, image, self.vae)
        row = measure_cell(timed, problem, self.study.settings)
        yield Result({}, row | {"device": self.device_name, "threads": torch.get_num_threads()})

    def line(self, finished: Finished) -> str:
        row = finished.result.numbers
        if not row["accepted"]:
            return refusal(row)
        times = spread(quantiles_in(row, "ours"))
        return f"{times} ms, {row['ratio']:.2f}× the straightforward speed"

    def metrics(self, finished: list[Finished]) -> dict[str, Any]:
        return {
            done.piece.title: quantile_columns("ours", quantiles_in(done.rows[0], "ours"))
            for done in finished
            if done.rows[0]["accepted"]
        }

    def page(self, finished: list[Finished]) -> Page:
        """A row per cell, with medians and, in brackets, the 20 % and 80 % quantiles."""
        study = self.study
        head = (
            f"{self.device_name}, {clock_name(self.device)}; torch {torch.__version__}; preset "
            f"{study.preset}; {study.image}. Milliseconds: median (20–80 % quantile) over "
            f"{study.settings.repeats} steps (of a recorded cell, over as many times {BURST}), "
            f"ours, straightforward and a float32 product of {study.settings.matmul_size}² in "
            "turn; the ratio is the median of the pairs'. Shares are of the operators' own time in "
            "torch's profile; a convolution's rate is its FLOP over its share of the step. "
            "Recorded: nothing of a step waits for its result, and on a GPU it is one CUDA graph."
        )
        columns = (
            "diffusion", "θ", "size", "ours, ms", "straightforward, ms", "ratio", *SHARES,
            "GFLOP", "convolution, GFLOP/s", "matmul, GFLOP/s", "of matmul",
        )  # fmt: skip
        cells = [_cells(done.piece.about, done.rows[0]) for done in finished]
        return Page(study.title, [head, Table(columns, cells)])

    def draw(self, finished: list[Finished], path: Path) -> None:
        """The steps side by side, and what ours spend their time on."""
        size = (10.4, 1.6 + 0.45 * len(finished))
        figure, (times, shares) = plt.subplots(
            1, 2, figsize=size, sharey=True, layout="constrained"
        )
        colors = mpl.colormaps["tab10"].colors  # type: ignore[attr-defined]
        shown = [place for place, done in enumerate(finished) if done.rows[0]["accepted"]]
        for place in shown:
            row, labelled = finished[place].rows[0], place == 0
            for offset, name, color in (
                (-0.2, "straightforward", "silver"),
                (0.2, "ours", "black"),
            ):
                median, label = row[f"{name}_ms_q50"], name if labelled else None
                times.barh(place + offset, median, 0.36, color=color, label=label)
            left = 0.0
            for kind, color in zip(SHARES, colors, strict=False):
                share, label = row[f"{kind}_share"], kind if labelled else None
                shares.barh(place, share, 0.7, left=left, color=color, label=label)
                left += share
        cells = [done.piece.about for done in finished]
        names = [f"{timed.cell.diffusion}, {timed.label}, {timed.size}²" for timed in cells]
        times.set_yticks(range(len(cells)), names, fontsize=8)
        times.invert_yaxis()
        times.set(xscale="log", xlabel="ms a step (medians)", title=self.device_name)
        shares.set(xlim=(0, 1), xlabel="share of our step")
        for ax in (times, shares):
            ax.grid(alpha=0.3, axis="x")
        if shown:
            figure.legend(loc="outside lower center", ncols=6, fontsize=8)
        save_figure(figure, path)


def measure_cell(
    timed: TimedCell, problem: Problem, settings: Figure2SpeedSettings
) -> dict[str, Any]:
    """Compares the two steps' first gradients, then times both in turn, and profiles ours.

    Returns:
        A row's columns: ``disagreement`` of θ's first gradient with the straightforward one in
        float64, relative L2 (of a recorded cell, of θ itself with the loop's after a few steps
        where that is more); ``budget``, see `errors`; ``ratio``, the median of straightforward /
        ours; shares of our operators' own time; FLOP of our convolutions and products, and rates;
        without times where the disagreement exceeds the budget.
    """
    cell, burst = timed.cell, BURST if timed.recorded else 1
    disagreement, budget = errors(cell, problem)
    for seed in range(SEED + 1, SEED + TRIES):
        if disagreement <= budget:
            break
        disagreement, budget = errors(cell, problem, seed)
    if timed.recorded:
        disagreement = max(disagreement, recording_error(cell, problem))
    row: dict[str, Any] = {
        "row": timed.name,
        "diffusion": cell.diffusion,
        "parameterization": cell.parameterization,
        "recorded": timed.recorded,
        "size": timed.size,
        "disagreement": disagreement,
        "budget": budget,
        "accepted": disagreement <= budget,
        "ratio": None,
    }
    if not row["accepted"]:
        nothing = ("gflop", "convolution_gflop_per_s", "matmul_gflop_per_s")
        return row | dict.fromkeys(nothing)
    steady = with_steps(cell, burst * (2 * (WARM_UPS + settings.repeats) + 2))
    with FlopCounterMode(display=False) as counter:
        next(loop(steady, problem)[0])  # not of a recorded step, whose replay shows no operators
    step = partial(next, (recorded if timed.recorded else loop)(steady, problem)[0])
    side = settings.matmul_size
    matrix = torch.rand(side, side, device=problem.image.device)
    calls = (step, StraightforwardCell(steady, problem, SEED), lambda: matrix @ matrix)
    times = [
        [milliseconds(call, matrix.device, burst) for call in calls]
        for _ in range(WARM_UPS + settings.repeats)
    ]
    ours, theirs, product = np.array(times)[WARM_UPS:].T
    shares = _shares(step, settings.repeats, matrix.device)
    gflop = counter.get_total_flops() / 1e9
    spent = shares["convolution"] * float(np.median(ours)) / 1000
    row |= {"ratio": median_ratio(theirs, ours)}
    row |= quantile_columns("ours", quantiles_of(ours))
    row |= quantile_columns("straightforward", quantiles_of(theirs))
    return row | {
        **{f"{kind}_share": share for kind, share in shares.items()},
        "gflop": gflop,
        "convolution_gflop_per_s": gflop / spent if gflop else None,
        "matmul_gflop_per_s": 2 * side**3 / float(np.median(product)) / 1e6,
    }


def _timed(row: SpeedCell, cells: dict[str, Cell], size: int, where: str) -> TimedCell:
    name = row.cell or row.name
    if name not in cells:
        raise UserError(
            f"{where} must be named one of {', '.join(cells)}, as in the study that is timed, got "
            f"{name!r}"
        )
    if any(map(is_named_object, cells[name].named)):
        raise UserError(f"{where}.{row.name} must be a cell of our own parts, got {name!r}")
    if row.recorded and cells[name].noise != "cancelled":
        raise UserError(
            f"{where}.{row.name}: a recorded cell must have cancelled noise, for a recording would "
            f"draw the same one at every step; got {cells[name].noise!r}"
        )
    return TimedCell(row.name, cells[name], row.recorded, row.size or size)


def _cells(timed: TimedCell, row: dict[str, Any]) -> list[str]:
    head = [timed.cell.diffusion, timed.label, f"{timed.size}²"]
    if not row["accepted"]:
        return [*head, refusal(row), *[""] * (len(SHARES) + 6)]
    cells = [*head, *(spread(quantiles_in(row, name)) for name in ("ours", "straightforward"))]
    cells += [f"{row['ratio']:.2f}×", *(f"{row[f'{kind}_share']:.0%}" for kind in SHARES)]
    rate, matmul = row["convolution_gflop_per_s"], row["matmul_gflop_per_s"]
    cells += [f"{row['gflop']:.3g}", "" if rate is None else f"{rate:.0f}", f"{matmul:.0f}"]
    return [*cells, "" if rate is None else f"{rate / matmul:.0%}"]


def _shares(step: Callable[[], object], repeats: int, device: torch.device) -> dict[str, float]:
    """How the operators' own time is divided, from torch's profiler."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    on_gpu = device.type == "cuda"
    if on_gpu:
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profile:
        for _ in range(repeats):
            step()
    total = dict.fromkeys(SHARES, 0.0)
    for event in profile.key_averages():
        own = event.self_device_time_total if on_gpu else event.self_cpu_time_total
        total[_kind(event.key)] += own
    whole = sum(total.values())
    return {kind: value / whole for kind, value in total.items()}


def _kind(operator: str) -> str:
    name = operator.lower()
    if "conv" in name or name.removeprefix("aten::") in ("mm", "addmm", "bmm", "baddbmm"):
        return "convolution"
    if any(kind in name for kind in ("batch_norm", "group_norm", "layer_norm")):
        return "normalisation"
    return "optimiser" if "adam" in name or "sgd" in name else "other"
