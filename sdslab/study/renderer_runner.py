"""Runs the renderer study and writes its table, picture and numbers."""

import multiprocessing
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch

from sdslab.errors import UserError
from sdslab.machine import device_name, resolve_device
from sdslab.meshes.material import MAPS
from sdslab.rendering.preview import contact_sheet
from sdslab.shell.progress_lines import ProgressLines
from sdslab.study.measured_table import MeasuredTable
from sdslab.study.renderer_benchmark import (
    ComparisonRow,
    LoadRow,
    RecoveryRow,
    StepRow,
    compare,
    measure_recovery,
    time_load,
    time_steps,
)
from sdslab.study.renderer_specification import (
    Comparison,
    LoadTiming,
    Recovery,
    RendererSettings,
    RendererStudy,
    StepTiming,
)
from sdslab.study.specification import check_only
from sdslab.study.study_run import progress_console, study_run
from sdslab.study.timing import quantile_columns, spread

Row = ComparisonRow | LoadRow | StepRow | RecoveryRow
Case = Comparison | LoadTiming | StepTiming | Recovery


def run_renderer_study(study: RendererStudy, only: tuple[str, ...] = ()) -> None:
    """Runs every row (or those named in ``only``); writes ``NAME.{csv,md,json,png}``.

    The record and the report come into ``NAME/``.

    Raises:
        UserError: something cannot run here, or ours differs from its reference.
    """
    cases: list[Case] = [*study.comparisons, *study.loads, *study.steps, *study.recoveries]
    check_only(only, [case.name for case in cases])
    cases = [case for case in cases if not only or case.name in only]
    device = resolve_device(study.settings.device)
    with study_run(study, "renderer", device, only=only) as record:
        _run_rows(study, cases, device, record)


def _run_rows(
    study: RendererStudy,
    cases: list[Case],
    device: torch.device,
    record: dict[str, Any],
) -> None:
    table = MeasuredTable(study.name, Path(study.settings.out), record, ("torch",))
    rows: list[Row] = []
    for row in _run_cases(cases, study.settings):
        rows.append(row)
        numbers = _numbers_of(row)
        record["metrics"][row.name] = {
            name: value for name, value in numbers.items() if isinstance(value, int | float)
        }
        table.add(numbers | {"device": device_name(device)}, _line_of(row))
    table.finish(_markdown(study, rows, device_name(device)), lambda path: _save_sheet(rows, path))


def _save_sheet(rows: list[Row], path: Path) -> None:
    """What the recoveries made, below what they should have made; nothing without them."""
    recoveries = [row for row in rows if isinstance(row, RecoveryRow)]
    if recoveries:
        sheet = [recoveries[-1].target_pictures, *(row.pictures for row in recoveries)]
        contact_sheet(sheet, recoveries[-1].maps, path)


def _run_cases(cases: list[Case], settings: RendererSettings) -> Iterator[Row]:
    with ProgressLines(progress_console) as progress:
        for case in cases:
            task = progress.add_task(case.name, total=getattr(case, "steps", None))
            match case:
                case Comparison():
                    row = compare(case, settings)
                    if not row.accepted:
                        raise UserError(
                            f"{case.name}: ours must equal {row.reference} to {row.budget:g}, got "
                            f"{row.disagreement:.3g}; no speed is reported of a wrong result"
                        )
                    yield row
                case LoadTiming():
                    yield time_load(case, settings)
                case StepTiming():
                    # A process of its own: its peak memory is the step's.
                    spawn = multiprocessing.get_context("spawn")
                    with ProcessPoolExecutor(1, mp_context=spawn) as pool:
                        yield pool.submit(time_steps, case, settings).result()
                case Recovery():
                    yield measure_recovery(
                        case,
                        settings,
                        lambda step, task=task: progress.update(task, completed=step),
                    )
            progress.remove_task(task)


def _numbers_of(row: Row) -> dict[str, Any]:
    match row:
        case ComparisonRow():
            return {
                "row": row.name,
                "what": row.label,
                **quantile_columns("ours", row.ours_ms),
                "reference": row.reference,
                **quantile_columns("reference", row.reference_ms),
                "ratio": row.reference_ms[1] / row.ours_ms[1],
                "disagreement": row.disagreement,
            }
        case LoadRow():
            return {
                "row": row.name,
                "what": row.label,
                "faces": row.faces,
                **quantile_columns("ours", row.ours_ms),
                "reference": "trimesh",
                **quantile_columns("reference", row.trimesh_ms),
                "ratio": row.trimesh_ms[1] / row.ours_ms[1],
                "peak_mb": row.peak_mb,
                "reference_peak_mb": row.trimesh_peak_mb,
                "disagreement": row.disagreement,
            }
        case StepRow():
            return {
                "row": row.name,
                "what": row.label,
                "faces": row.faces,
                **quantile_columns("ours", row.step_ms),
                "peak_mb": row.peak_mb,
            }
        case RecoveryRow():
            return {
                "row": row.name,
                "what": row.label,
                "steps": row.steps,
                "seconds": row.seconds,
                "view_psnr_db": row.measurement.view_psnr_db,
                "white_room_psnr_db": row.measurement.white_room_psnr_db,
                **{f"{name}_psnr_db": db for name, db in row.measurement.map_psnr_db.items()},
            }


def _line_of(row: Row) -> str:
    match row:
        case ComparisonRow():
            ratio = row.reference_ms[1] / row.ours_ms[1]
            return f"{row.name}: {row.ours_ms[1]:.1f} ms, {ratio:.1f}× {row.reference}"
        case LoadRow():
            return (
                f"{row.name}: {row.ours_ms[1]:.0f} ms, trimesh {row.trimesh_ms[1]:.0f} ms; "
                f"peak {row.peak_mb:,.0f} MB, trimesh {row.trimesh_peak_mb:,.0f} MB"
            )
        case StepRow():
            return f"{row.name}: {row.step_ms[1]:.0f} ms a step, peak {row.peak_mb:,.0f} MB"
        case RecoveryRow():
            view_psnr_db = row.measurement.view_psnr_db
            return f"{row.name}: held-out views {view_psnr_db:.2f} dB in {row.seconds:.0f} s"


def _markdown(study: RendererStudy, rows: list[Row], device: str) -> str:
    """The tables, with medians and, in brackets, the 20 % and 80 % quantiles."""
    lines = [f"# {study.title}", "", f"{device}; preset {study.preset}; {study.settings.mesh}.", ""]
    for heading, cells in (
        (
            "| operation | ours, ms | reference | reference, ms | ratio |",
            [
                f"| {row.label} | {spread(row.ours_ms)} | {row.reference} | "
                f"{spread(row.reference_ms)} | {row.reference_ms[1] / row.ours_ms[1]:.1f}× |"
                for row in rows
                if isinstance(row, ComparisonRow)
            ],
        ),
        (
            "| CPU time of loading | faces | ours, ms | trimesh, ms | ratio | ours, peak MB "
            "| trimesh, peak MB |",
            [
                f"| {row.label} | {row.faces:,} | {spread(row.ours_ms)} | "
                f"{spread(row.trimesh_ms)} | {row.trimesh_ms[1] / row.ours_ms[1]:.2f}× | "
                f"{row.peak_mb:,.0f} | {row.trimesh_peak_mb:,.0f} |"
                for row in rows
                if isinstance(row, LoadRow)
            ],
        ),
        (
            "| optimisation step | faces | ms a step | peak memory, MB |",
            [
                f"| {row.label} | {row.faces:,} | {spread(row.step_ms)} | {row.peak_mb:,.0f} |"
                for row in rows
                if isinstance(row, StepRow)
            ],
        ),
        (
            "| recovery | steps | seconds | held-out views, dB | in white light | albedo "
            "| roughness | metallic | normal |",
            [_recovery_line(row) for row in rows if isinstance(row, RecoveryRow)],
        ),
    ):
        if cells:
            columns = heading.count("|") - 1
            lines += [heading, "|" + " --- |" * columns, *cells, ""]
    return "\n".join(lines)


def _recovery_line(row: RecoveryRow) -> str:
    measurement = row.measurement
    values = [
        measurement.view_psnr_db,
        measurement.white_room_psnr_db,
        *(measurement.map_psnr_db.get(name) for name in MAPS),
    ]
    cells = ["" if value is None else f"{value:.2f}" for value in values]
    return f"| {row.label} | {row.steps} | {row.seconds:.1f} | {' | '.join(cells)} |"
