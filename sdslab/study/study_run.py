"""What every study does around its work: the folder's lock, ``run.json`` and the report."""

import dataclasses
import json
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from sdslab.report.at_the_end import reported
from sdslab.runs.folder import digests_of
from sdslab.runs.lock import RunLock
from sdslab.runs.record import recorded, run_record, write_json
from sdslab.study.study_folder import SUFFIXES, claim_study_folder

progress_console = Console(stderr=True)


def told(line: str) -> None:
    """Prints a line for the user beside the progress."""
    progress_console.print(line, markup=False, highlight=False, soft_wrap=True)


@contextmanager
def study_run(
    study: Any,
    kind: str,
    device: torch.device,
    *,
    seeds: tuple[int, ...] = (),
    only: tuple[str, ...] = (),
) -> Iterator[dict[str, Any]]:
    """Takes ``OUT/NAME`` for the block.

    Args:
        study: with a name and settings, which say where.
        kind: of `sdslab.study.specification.KINDS`.
        device: where it computes.
        seeds: of its noise.
        only: names of the rows that were asked for.

    Yields:
        The record; what the block puts into it is kept.

    Raises:
        UserError: the folder cannot be written, or another process is at it.
    """
    out = Path(study.settings.out)
    claim_study_folder(out, study.name, {})
    folder = out / study.name
    with RunLock(folder) as lock:
        if lock.note:
            told(lock.note)
        record = run_record(
            dataclasses.asdict(study), device, program="study", kind=kind, seeds=seeds
        )
        record["details"]["only"] = list(only)
        with reported(folder), recorded(folder / "run.json", record, device):
            yield record
            _list_results(out, study.name)


def _list_results(out: Path, name: str) -> None:
    """Adds to ``NAME.json`` the digests of the study's tables and pictures: they are its own."""
    table = out / f"{name}.json"
    if table.is_file():
        content = json.loads(table.read_text(encoding="utf-8"))
        content["files"] = digests_of(out, [f"{name}.{suffix}" for suffix in SUFFIXES])
        write_json(table, content)
