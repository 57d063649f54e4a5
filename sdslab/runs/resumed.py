"""``--resume RUN``: the run that it names, and where its paths begin."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdslab.errors import UserError
from sdslab.files.pickles import refuse_pickle
from sdslab.runs.schema import read_run


@dataclass(frozen=True)
class ResumedRun:
    """A run to go on with.

    Attributes:
        out: its folder, absolute.
        record: its ``run.json``.
        started_in: the folder that it was started in, or the present one where that is gone.
    """

    out: Path
    record: dict[str, Any]
    started_in: Path

    @classmethod
    def of(cls, option: str) -> "ResumedRun":
        """Reads the record of the folder that ``--resume`` names.

        Raises:
            UserError: there is no such run.
        """
        out = Path(option).expanduser().absolute()
        if out.is_file():
            refuse_pickle(out)
        if not out.is_dir():
            raise UserError(
                f"--resume must be a run's folder, with its run.json, got {option!r}; give the "
                f"folder that the run writes to"
            )
        record = read_run(out / "run.json")
        folder = record["details"].get("folder")
        known = isinstance(folder, str) and Path(folder).is_dir()
        return cls(out, record, Path(folder) if known else Path.cwd())
