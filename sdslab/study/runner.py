"""Runs every cell of a study that is not on disk yet, and writes tables and pictures."""

import itertools
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from rich.progress import Progress
from torch import Tensor

from sdslab.diffusion_space import SHIPPED_VAE, LatentSpace
from sdslab.errors import UserError, one_line
from sdslab.files.atomic_write import write_text
from sdslab.files.disk_cache import content_hash
from sdslab.machine import device_name, keep_freed_memory, resolve_device
from sdslab.pictures.image_io import load_image
from sdslab.runs.checkpoint import Checkpoints
from sdslab.runs.record import version_of, write_json
from sdslab.runs.schema import origin_of
from sdslab.shell.named_inputs import stem_of
from sdslab.shell.progress_lines import ProgressLines
from sdslab.study import reconstruct
from sdslab.study.cell_store import NUMERIC_SOURCES, CellStore, cell_key, code_of
from sdslab.study.printed_table import PrintedTable, output_console
from sdslab.study.reconstruct import CellProgress, CellResult, Problem
from sdslab.study.result_file import ResultFiles
from sdslab.study.results import Finished, markdown_of, notes_of, rows_of, table_of
from sdslab.study.specification import Cell, Study, select_cells
from sdslab.study.study_run import progress_console, study_run, told

# Of the printed table, where a terminal is narrow: the first goes first.
EXPENDABLE = (
    "seconds", "steps", "latent MSE", "clamped", "difference", "VAE ceiling", "paper", "PSNR, dB",
)  # fmt: skip
SECONDS_BETWEEN_SAVES = 30.0


def run_study(
    study: Study,
    only: tuple[str, ...] = (),
    *,
    fresh: bool = False,
    accept_code: bool = False,
) -> None:
    """Runs ``study``; writes ``NAME.{png,pdf,csv,json,md}``, ``NAME/run.json`` and ``report.html``.

    Cells that are saved from before under the same configuration are not run again.

    Args:
        study: cells and settings.
        only: names of the cells to run; all, where it is empty.
        fresh: run every cell again.
        accept_code: take cells that other code made.

    Raises:
        UserError: something cannot work, or another process is at it; nothing was written.
        KeyboardInterrupt: after where the running cell is has been saved.
    """
    study = select_cells(study, only)
    settings = study.settings
    seeds = settings.seeds
    if len(set(seeds)) < len(seeds) or min(seeds) < 0 or max(seeds) >= 2**64:
        raise UserError(f"--seeds must be different and within [0, 2^64), got {list(seeds)}")
    if len(set(settings.images)) < len(settings.images):
        raise UserError(f"--image must name different pictures, got {', '.join(settings.images)}")
    device = resolve_device(settings.device)
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32, also in convolutions
    keep_freed_memory()
    dtype = {"float32": torch.float32, "float64": torch.float64}[settings.dtype]
    images = {name: load_image(name, settings.size).to(device, dtype) for name in settings.images}
    vae = None
    if any(cell.diffusion == "latent" for cell in study.cells):
        source = SHIPPED_VAE if settings.vae == "shipped" else settings.vae
        vae = LatentSpace.load(source, device, dtype)
    for cell in study.cells:
        reconstruct.check_cell(cell, settings.size, vae)
    with study_run(study, "reconstruction", device, seeds=settings.seeds, only=only) as record:
        folder = Path(settings.out) / study.name / "cells"
        versions = {name: record["packages"][name] for name in ("torch", "diffusers")}
        code = code_of(NUMERIC_SOURCES, **versions)
        files = ResultFiles(
            folder, code, version_of(record), told, fresh=fresh, accept_code=accept_code
        )
        _run(study, images, vae, device, files, record)


def _run(
    study: Study,
    images: dict[str, Tensor],
    vae: LatentSpace | None,
    device: torch.device,
    files: ResultFiles,
    record: dict[str, Any],
) -> None:
    out = Path(study.settings.out)
    problems = [Problem.of(name, image, vae) for name, image in images.items()]
    keys = {"device": device_name(device)}
    vae_digest = content_hash(*vae.vae.state_dict().values(), vae.scale, vae.shift) if vae else None
    finished = []
    for item in _run_cells(study, problems, CellStore(files), keys, vae_digest):
        finished.append(item)
        seconds = record["seconds"]
        cell = item.cell.name
        seconds[cell] = round(seconds.get(cell, 0) + item.result.seconds, 2)
        record["details"]["code_changes"] = list(files.changes)
        write_json(out / study.name / "run.json", record)
    record["metrics"] = _metrics_of(finished)
    _write_results(study, out, problems, finished, record, device_name(device))


def _metrics_of(finished: list[Finished]) -> dict[str, dict[str, float]]:
    """The mean PSNR of each cell's read-outs over images and seeds."""
    psnrs: dict[str, dict[str, list[float]]] = {}
    for item in finished:
        of_cell = psnrs.setdefault(item.cell.name, {})
        for name, readout in item.result.readouts.items():
            of_cell.setdefault(f"{name}_psnr_db", []).append(readout.psnr_db)
    return {
        cell: {name: sum(values) / len(values) for name, values in readouts.items()}
        for cell, readouts in psnrs.items()
    }


def _run_cells(
    study: Study,
    problems: list[Problem],
    store: CellStore,
    keys: dict[str, Any],
    vae_digest: str | None,
) -> Iterator[Finished]:
    """Runs what is not in ``store``, in study order."""
    progress = ProgressLines(progress_console)
    jobs = list(itertools.product(study.cells, problems, study.settings.seeds))
    with progress:
        for number, (cell, problem, seed) in enumerate(jobs, start=1):
            inputs = {**keys, "vae": vae_digest if cell.diffusion == "latent" else None}
            key = cell_key(cell, image=content_hash(problem.image), seed=seed, **inputs)
            path = store.path(cell, problem.image_name, seed, key)
            what = f"{number}/{len(jobs)} {cell.name} {stem_of(problem.image_name)} seed {seed}"
            result = store.load(path)
            how = "saved from before"
            if result is None:
                partial = store.partial(path, key)
                result = _run_with_progress(cell, problem, seed, progress, what, partial)
                store.save(path, result)
                partial.clear()
                how = f"{result.seconds:.1f} s"
            psnr = result.readouts["theta"].psnr_db
            line = f"{what}: {psnr:.2f} dB after {result.steps} steps, {how}"
            progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
            yield Finished(cell, problem.image_name, seed, result)


def _run_with_progress(
    cell: Cell, problem: Problem, seed: int, progress: Progress, what: str, partial: Checkpoints
) -> CellResult:
    """Runs a cell from where it was stopped, if it was, and saves where it is now and then."""
    saved = partial.latest()
    reached = CellProgress()
    if saved is not None:
        reached = CellProgress(saved.tensors, saved.state)
        line = saved.note or f"{what}: goes on at step {reached.loop.index}"
        progress.console.print(line, markup=False, highlight=False, soft_wrap=True)
    task = progress.add_task(what, total=cell.optimization.steps)
    next_save = time.monotonic() + SECONDS_BETWEEN_SAVES
    try:
        for update in reconstruct.run_cell(cell, problem, seed, reached):
            if isinstance(update, CellResult):
                return update
            progress.update(task, completed=update.step, note=f"{update.psnr_db:.2f} dB")
            if time.monotonic() >= next_save:
                partial.save(*reached.snapshot())
                next_save = time.monotonic() + SECONDS_BETWEEN_SAVES
    except KeyboardInterrupt:
        if reached.loop.index:  # otherwise there is nothing to lose
            partial.save(*reached.snapshot())
        raise
    except FloatingPointError as error:
        raise UserError(f"cell {cell.name}: {error}") from error
    finally:
        progress.remove_task(task)
    raise AssertionError("a cell ends with its result")


def _write_results(
    study: Study,
    out: Path,
    problems: list[Problem],
    finished: list[Finished],
    record: dict[str, Any],
    device: str,
) -> None:
    from sdslab.study import plots  # matplotlib takes a second to import

    rows = rows_of(finished)
    table = table_of(study, rows)
    paths = {
        suffix: out / f"{study.name}.{suffix}" for suffix in ("png", "pdf", "csv", "json", "md")
    }
    write_text(paths["csv"], rows.to_csv(index=False, float_format="%.6g"))
    write_text(paths["md"], markdown_of(study, table, notes_of(study, device)))
    curves = [
        {
            "cell": item.cell.name,
            "image": item.image_name,
            "seed": item.seed,
            "curve": item.result.curve,
        }
        for item in finished
    ]
    write_json(
        paths["json"],
        {"run": origin_of(record), "rows": rows.to_dict("records"), "curves": curves},
    )
    figures = {"": plots.reconstruction_figure(study, problems, finished)}
    figures[".convergence"] = plots.convergence_figure(study, finished)
    for suffix, figure in figures.items():
        for kind in ("png", "pdf"):
            plots.save_figure(figure, out / f"{study.name}{suffix}.{kind}")
        plots.close_figure(figure)

    _print_table(study, table, notes_of(study, device))
    print(one_line(f"written to {out}/{study.name}.*"))  # noqa: T201


def _print_table(study: Study, table: pd.DataFrame, notes: list[str]) -> None:
    rows: list[tuple[str, ...] | str] = []
    for diffusion, group in table.groupby("diffusion", sort=False):
        rows.append(f"{diffusion} space")
        rows += [tuple(map(str, row[1:])) for row in group.itertuples(index=False)]
    columns = tuple(map(str, table.columns[1:]))
    printed = PrintedTable(columns, tuple(rows), ("θ", "read-out"), EXPENDABLE, study.title)
    console = output_console()
    printed.print_on(console, f"{study.settings.out}/{study.name}.md")
    for note in notes:
        console.print(note, markup=False, highlight=False)
