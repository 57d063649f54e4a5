"""What every study does around its work: the folder's lock, ``run.json`` and the report."""

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from rich.console import Console

from sdslab.atomic_write import check_writable
from sdslab.report.at_the_end import reported
from sdslab.run_lock import RunLock
from sdslab.run_record import recorded, run_record

progress_console = Console(stderr=True)


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
    check_writable(out)
    folder = out / study.name
    with RunLock(folder) as lock:
        if lock.note:
            progress_console.print(lock.note, markup=False, highlight=False, soft_wrap=True)
        record = run_record(
            dataclasses.asdict(study), device, program="study", kind=kind, seeds=seeds
        )
        record["details"]["only"] = list(only)
        with reported(folder), recorded(folder / "run.json", record, device):
            yield record
