"""The study of the renderer: operations against references, whole steps, and recoveries."""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, final

import torch
from torch import Tensor

from sdslab.meshes.material import MAPS
from sdslab.rendering.preview import contact_sheet
from sdslab.runs.table import Page, Table
from sdslab.study.experiment import Experiment, Finished, Given, Piece, Result, Step
from sdslab.study.measuring import quantile_columns, quantiles_in, quantiles_of, spread
from sdslab.study.mesh_load import LoadTiming, time_loads
from sdslab.study.renderer_measurements import (
    Comparison,
    Recovery,
    RendererSettings,
    StepTiming,
    compare,
    recovery,
    time_steps,
)

RECOVERED = ("view_psnr_db", "white_room_psnr_db", *(f"{name}_psnr_db" for name in MAPS))


Row = Comparison | LoadTiming | StepTiming | Recovery


@dataclass(frozen=True)
class RendererStudy:
    """A parsed study file with one preset applied."""

    name: str
    title: str
    preset: str
    settings: RendererSettings
    comparisons: tuple[Comparison, ...]
    loads: tuple[LoadTiming, ...]
    steps: tuple[StepTiming, ...]
    recoveries: tuple[Recovery, ...]


@final
class RendererSpeeds(Experiment):
    """Times operations and steps, and measures what is recovered."""

    study_class = RendererStudy
    study: RendererStudy

    def __init__(self, study: RendererStudy, only: tuple[str, ...], device: torch.device) -> None:
        super().__init__(study, only, device)
        self.recovered: dict[str, tuple[Tensor, list[Any], list[Any]]] = {}

    def pieces(self) -> list[Piece]:
        study = self.study
        works = [(case, self._compare) for case in study.comparisons]
        works += [(case, self._time_loads) for case in study.loads]
        works += [(case, self._time_steps) for case in study.steps]
        works += [(case, self._recover) for case in study.recoveries]
        return [
            Piece(
                case.name,
                case.name,
                partial(work, case),
                case,
                getattr(case, "steps", None),
                watched=isinstance(case, Recovery),
            )
            for case, work in works
            if not self.only or case.name in self.only
        ]

    def _compare(self, case: Comparison, _: Given) -> Iterator[Result]:
        yield self._row(case, compare(case, self.study.settings))

    def _time_loads(self, case: LoadTiming, _: Given) -> Iterator[Result]:
        difference, measured = time_loads(case, case.repeats or self.study.settings.repeats)
        (ours, ours_mb), (theirs, theirs_mb) = (
            zip(*results, strict=True) for results in measured.values()
        )
        columns = {
            "faces": case.faces,
            **quantile_columns("ours", quantiles_of(ours)),
            "reference": "trimesh",
            **quantile_columns("reference", quantiles_of(theirs)),
            "ratio": quantiles_of(theirs)[1] / quantiles_of(ours)[1],
            "peak_mb": max(ours_mb),
            "reference_peak_mb": max(theirs_mb),
            "disagreement": difference,
        }
        yield self._row(case, columns)

    def _time_steps(self, case: StepTiming, _: Given) -> Iterator[Result]:
        # A process of its own: its peak memory is the step's.
        with ProcessPoolExecutor(1, multiprocessing.get_context("spawn")) as pool:
            yield self._row(case, pool.submit(time_steps, case, self.study.settings).result())

    def _recover(self, case: Recovery, _: Given) -> Iterator[Step | Result]:
        for update in recovery(case, self.study.settings):
            if isinstance(update, int):
                yield Step(update)
            else:
                numbers, self.recovered[case.name] = update
                yield self._row(case, numbers)

    def _row(self, case: Row, numbers: dict[str, Any]) -> Result:
        row = {"row": case.name, "what": case.label, **numbers, "device": self.device_name}
        return Result({}, row)

    def line(self, finished: Finished) -> str:
        row = finished.result.numbers
        match finished.piece.about:
            case Comparison():
                return f"{row['ours_ms_q50']:.1f} ms, {row['ratio']:.1f}× {row['reference']}"
            case LoadTiming():
                times = f"{row['ours_ms_q50']:.0f} ms, {row['ratio']:.2f}× {row['reference']}"
                return f"{times}, peak {row['peak_mb']:,.0f} MB, {row['reference_peak_mb']:,.0f} MB"
            case StepTiming():
                return f"{row['ours_ms_q50']:.0f} ms a step, peak {row['peak_mb']:,.0f} MB"
        return f"held-out views {row['view_psnr_db']:.2f} dB in {row['seconds']:.0f} s"

    def metrics(self, finished: list[Finished]) -> dict[str, Any]:
        return {
            done.piece.title: {
                name: value
                for name, value in done.result.numbers.items()
                if isinstance(value, int | float)
            }
            for done in finished
        }

    def page(self, finished: list[Finished]) -> Page:
        """The tables, with medians and, in brackets, the 20 % and 80 % quantiles."""
        study = self.study
        parts: list[str | Table] = [
            f"{self.device_name}; preset {study.preset}; {study.settings.mesh}."
        ]
        for kind, columns, cells in (
            (
                Comparison,
                ("operation", "ours, ms", "reference", "reference, ms", "ratio"),
                _comparison_cells,
            ),
            (
                LoadTiming,
                (
                    "CPU time of loading",
                    "faces",
                    "ours, ms",
                    "trimesh, ms",
                    "ratio",
                    "ours, peak MB",
                    "trimesh, peak MB",
                ),
                _load_cells,
            ),
            (
                StepTiming,
                ("optimisation step", "faces", "ms a step", "peak memory, MB"),
                _step_cells,
            ),
            (
                Recovery,
                ("recovery", "steps", "seconds", "held-out views, dB", "in white light", *MAPS),
                _recovery_cells,
            ),
        ):
            rows = [done.result.numbers for done in finished if isinstance(done.piece.about, kind)]
            if rows:
                parts.append(Table(columns, [cells(row) for row in rows]))
        return Page(study.title, parts)

    def draw(self, finished: list[Finished], path: Path) -> None:
        """What the recoveries made, below what they should have made; nothing without them."""
        del finished
        if self.recovered:
            maps, _, target = list(self.recovered.values())[-1]
            sheet = [target, *(pictures for _, pictures, _ in self.recovered.values())]
            contact_sheet(sheet, maps, path)


def _comparison_cells(row: dict[str, Any]) -> list[str]:
    ours, theirs = (spread(quantiles_in(row, name)) for name in ("ours", "reference"))
    return [row["what"], ours, row["reference"], theirs, f"{row['ratio']:.1f}×"]


def _load_cells(row: dict[str, Any]) -> list[str]:
    what, ours, _, theirs, _ = _comparison_cells(row)
    peaks = (f"{row[name]:,.0f}" for name in ("peak_mb", "reference_peak_mb"))
    return [what, f"{row['faces']:,}", ours, theirs, f"{row['ratio']:.2f}×", *peaks]


def _step_cells(row: dict[str, Any]) -> list[str]:
    times = spread(quantiles_in(row, "ours"))
    return [row["what"], f"{row['faces']:,}", times, f"{row['peak_mb']:,.0f}"]


def _recovery_cells(row: dict[str, Any]) -> list[str]:
    values = [row.get(name) for name in RECOVERED]
    known = ["" if value is None else f"{value:.2f}" for value in values]
    return [row["what"], str(row["steps"]), f"{row['seconds']:.1f}", *known]
