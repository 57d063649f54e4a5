"""What every study does around its own work: the folder, what was finished before, tables."""

import dataclasses
import json
import time
from pathlib import Path
from typing import Any

from sdslab.errors import UserError, one_line
from sdslab.files.atomic_write import write_text
from sdslab.machine import (
    full_float32,
    keep_freed_memory,
    let_gpu_segments_grow,
    resolve_device,
)
from sdslab.report.at_the_end import reported
from sdslab.runs.checkpoint import Checkpoints
from sdslab.runs.folder import digests_of
from sdslab.runs.lock import RunLock
from sdslab.runs.record import recorded, run_record, version_of, write_json
from sdslab.runs.schema import origin_of
from sdslab.runs.store import ResultStore, code_of
from sdslab.runs.table import csv_of
from sdslab.shell.progress_lines import ProgressLines, tell
from sdslab.study.experiment import Experiment, Finished, Given, Piece, Result, Step
from sdslab.study.study_file import SUFFIXES, claim_study_folder

SECONDS_BETWEEN_SAVES = 30.0


def run_study(
    kind: str,
    experiment_class: type[Experiment],
    study: Any,
    only: tuple[str, ...] = (),
    *,
    fresh: bool = False,
    accept_code: bool = False,
) -> None:
    """Runs a study; writes ``NAME.{csv,json,md,png}``, ``NAME/run.json`` and ``report.html``.

    Pieces that are saved from before under the same configuration are not done again.

    Args:
        kind: a name of ``sdslab.study.study_file.KINDS``.
        experiment_class: of that kind.
        study: cells or cases, and settings.
        only: names of the rows to run; all, where it is empty.
        fresh: do every piece again.
        accept_code: take pieces that other code made.

    Raises:
        UserError: something cannot work, or another process is at it; nothing was written. Or
            rows are wrong: they are written without times.
        KeyboardInterrupt: what was finished is saved, and where the running piece is.
    """
    device = resolve_device(study.settings.device)
    let_gpu_segments_grow()
    keep_freed_memory()
    experiment = experiment_class(study, only, device)
    study = experiment.study
    out = Path(study.settings.out)
    claim_study_folder(out, study.name, {})
    folder = out / study.name
    with RunLock(folder) as lock:
        if lock.note:
            tell(lock.note)
        config, seeds = dataclasses.asdict(study), getattr(study.settings, "seeds", ())
        record = run_record(config, device, program="study", kind=kind, seeds=seeds)
        record["details"]["only"] = list(only)
        with full_float32(), reported(folder), recorded(folder / "run.json", record, device):
            run = _Run(experiment, out, record)
            if experiment.sources:
                run.keep(folder / experiment.store, fresh=fresh, accept_code=accept_code)
            run.all()


class _Run:
    """A study that runs, with its folder and record."""

    def __init__(self, experiment: Experiment, out: Path, record: dict[str, Any]) -> None:
        self.experiment, self.out, self.record = experiment, out, record
        self.name = experiment.study.name
        versions = {name: record["packages"][name] for name in experiment.packages}
        self.versions, self.store = versions, None
        self.seconds: dict[str, tuple[str, float]] = {}

    def keep(self, folder: Path, *, fresh: bool, accept_code: bool) -> None:
        """Keeps what is finished, and takes what is there."""
        code = code_of(self.experiment.sources, **self.versions)
        version = version_of(self.record)
        self.store = ResultStore(folder, code, version, tell, fresh=fresh, accept_code=accept_code)

    def all(self) -> None:
        """Finishes every piece, and writes the tables and pictures."""
        experiment, record = self.experiment, self.record
        pieces, finished = experiment.pieces(), []
        for number, piece in enumerate(pieces, start=1):
            done, saved = self.finish(piece, f"{number}/{len(pieces)} {piece.title}")
            finished.append(done)
            line = f"{number}/{len(pieces)} {piece.title}: {experiment.line(done)}"
            tell(f"{line}, saved from before" if saved else line)
            record["metrics"] = experiment.metrics(finished)
            if self.store is not None:
                record["seconds"] |= self._seconds_by_group()
                record["details"]["code_changes"] = list(self.store.changes)
                write_json(self.out / self.name / "run.json", record)
            self._write_json(finished)  # after each one: an interruption loses no row
        self._write(finished)

    def finish(self, piece: Piece, title: str) -> tuple[Finished, bool]:
        """A piece's result, and whether it was on disk."""
        experiment, store = self.experiment, self.store
        if store is None:
            result = self._work(piece, Given(None, None), None, title)
            rows = [row | self.versions for row in experiment.rows(piece, result)]
            return Finished(piece, result, rows), False
        path = store.path(piece.stem, piece.key)
        found, done = store.load(path), None
        if found is not None:
            try:
                result = Result(*found)
                done = Finished(piece, result, experiment.rows(piece, result))
            except (KeyError, TypeError, ValueError):  # of another version
                done = None
        saved = done is not None
        if done is None:
            needed = self.finish(piece.needs, title)[0].result if piece.needs else None
            partial = store.partial(path, piece.key)
            result = self._work(piece, Given(partial.latest(), needed), partial, title)
            store.save(path, result.tensors, result.numbers)
            partial.clear()
            done = Finished(piece, result, experiment.rows(piece, result))
        self.seconds.setdefault(str(path), (piece.group, done.result.numbers["seconds"]))
        return done, saved

    def _work(self, piece: Piece, given: Given, partial: Checkpoints | None, title: str) -> Result:
        """Does a piece from where it was stopped, if it was, and saves where it is now and then."""
        if not piece.watched:
            return next(update for update in piece.work(given) if isinstance(update, Result))
        latest, resumed = Step(0), given.saved
        next_save = time.monotonic() + SECONDS_BETWEEN_SAVES
        with ProgressLines() as progress:
            task = progress.add_task(title, total=piece.steps)
            try:
                for update in piece.work(given):
                    if isinstance(update, Result):
                        return update
                    if resumed:
                        tell(resumed.note or f"{title}: goes on at step {update.number - 1}")
                    latest, resumed = update, None
                    progress.update(task, completed=update.number, note=update.note)
                    if partial and update.snapshot and time.monotonic() >= next_save:
                        partial.save(*update.snapshot())
                        next_save = time.monotonic() + SECONDS_BETWEEN_SAVES
            except KeyboardInterrupt:
                if partial and latest.snapshot and latest.number:
                    partial.save(*latest.snapshot())
                raise
            except FloatingPointError as error:
                raise UserError(f"{piece.title}: {error}") from error
            finally:
                progress.remove_task(task)
        raise AssertionError("a piece ends with its result")

    def _seconds_by_group(self) -> dict[str, float]:
        """Seconds of each row, whenever its pieces were done; a piece counts once."""
        total: dict[str, float] = {}
        for group, seconds in self.seconds.values():
            total[group] = total.get(group, 0.0) + seconds
        return {group: round(value, 2) for group, value in total.items()}

    def _write_json(self, finished: list[Finished], **more: Any) -> None:
        rows = [row for done in finished for row in done.rows]
        content = {"run": origin_of(self.record), "rows": rows, **more}
        write_json(self.out / f"{self.name}.json", content)

    def _write(self, finished: list[Finished]) -> None:
        """Writes the tables and pictures, and refuses wrong rows."""
        rows = [row for done in finished for row in done.rows]
        page, base = self.experiment.page(finished), self.out / f"{self.name}"
        write_text(Path(f"{base}.csv"), csv_of(rows))
        write_text(Path(f"{base}.md"), page.markdown())
        self._write_json(finished, page=page.content(), **self.experiment.details(finished))
        self.experiment.draw(finished, Path(f"{base}.png"))
        # Their digests make them the study's own.
        table = Path(f"{base}.json")
        content = json.loads(table.read_text(encoding="utf-8"))
        content["files"] = digests_of(self.out, [f"{self.name}.{suffix}" for suffix in SUFFIXES])
        write_json(table, content)
        page.print(f"{base}.md")
        print(one_line(f"written to {base}.*"))  # noqa: T201
        wrong = [done.piece.title for done in finished if not done.rows[0].get("accepted", True)]
        if wrong:
            raise UserError(
                f"{self.experiment.truth}, got a larger difference in {', '.join(wrong)}; no speed "
                f"is reported of a wrong result"
            )
