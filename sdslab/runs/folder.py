"""Whose files lie where a program is to write: only its own are ever replaced or removed.

A folder may be written into where it is empty or holds the record of an earlier run of ours. In
such a folder a file is ours where the record lists it with the digest that it still has. A record
without a list, of a run that goes on, was killed or is older than such lists, stands for all names
that its program writes.
"""

import hashlib
import json
import os
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sdslab.errors import UserError, one_line
from sdslab.files.weights import refuse_pickle
from sdslab.runs.schema import LARGEST_FILE, read_run

# What operating systems, file managers and git put into folders of their own accord.
OF_THE_SYSTEM = frozenset(
    {".DS_Store", ".directory", ".gitignore", ".gitkeep", ".localized", "Thumbs.db", "desktop.ini"}
)
PAGE = "report.html"
_HALF_WRITTEN_RECORD = re.compile(r"\.run\.\w{8}\.json")  # of a process that was killed
# In the head of each page that `sdslab.report` makes.
_PAGE_MARKS = (b'<meta name="generator" content="sdslab', " · sdslab</title>".encode())
_HEAD = 2**16  # bytes of a page in which a mark is looked for
_CHUNK = 2**20


def check_output_folder(folder: Path, carries: Callable[[Path], bool], option: str) -> None:
    """Refuses a folder that holds what is not ours.

    Args:
        folder: to write into; it need not exist.
        carries: whether a folder holds a record of ours.
        option: that names the folder, for the message.

    Raises:
        UserError: the folder holds something, and no record of ours.
    """
    with _os_errors_told(folder, option):
        if not folder.is_dir():
            return  # `check_writable` says what is wrong with a file or a dangling link
        found = sorted(path.name for path in folder.iterdir() if not does_not_count(path))
    if found and not carries(folder):
        others = f" and {len(found) - 1} more" if len(found) > 1 else ""
        raise UserError(
            f"{option} must be a folder that is empty or holds a run of this program, got "
            f"{str(folder)!r} with {one_line(found[0])!r}{others}; give another {option}"
        )


def check_inputs_apart(folder: Path, inputs: Mapping[str, str | Path], option: str) -> None:
    """Refuses inputs that lie in the folder that is written into.

    Args:
        folder: to write into.
        inputs: files and folders that are read, by the option that names them; those that do not
            exist are passed over.
        option: that names the folder.

    Raises:
        UserError: names the input.
    """
    if not folder.is_dir():
        return
    for name, given in inputs.items():
        if not os.path.exists(given):
            continue
        path = Path(given)
        real, named = path.resolve(), Path(os.path.abspath(path))
        around = (real, *real.parents, *named.parents)
        if any(os.path.samefile(folder, parent) for parent in around if parent.is_dir()):
            raise UserError(
                f"{option} must be a folder that no input lies in, got {str(folder)!r}, which "
                f"holds {name} {one_line(str(given))!r}; give another {option}"
            )


def own_files(
    folder: Path,
    names: Iterable[str],
    listed: Mapping[str, str] | None,
    option: str,
    inputs: Mapping[str, str | Path] | None = None,
) -> list[Path]:
    """The files that lie under the names that a program writes; all must be ours.

    Args:
        folder: that is written into.
        names: relative to the folder; the last part may hold wildcards.
        listed: the digests of the record, by name; None where it has no list.
        option: that names the folder.
        inputs: files that are read, by option: none may be one of these under another name.

    Raises:
        UserError: one of them is not ours: not listed, changed since, no file, or an input.
    """
    read = {name: path for name, path in (inputs or {}).items() if os.path.isfile(path)}
    own = []
    for path in _existing(folder, names, option):
        name = path.relative_to(folder).as_posix()
        if path.is_symlink() or not path.is_file():
            raise _foreign(path, "a link or a folder", option)
        if name == PAGE or name.endswith(f"/{PAGE}"):
            if not is_own_page(path):
                raise _foreign(path, "another page", option)
        elif listed is not None and name not in listed:
            raise _foreign(path, "one that its record does not list", option)
        elif listed is not None and listed[name] != digest_of(path):
            raise _foreign(path, "one that was changed since", option)
        for what, source in read.items():
            if os.path.samefile(path, source):
                raise _foreign(path, f"{what} {one_line(str(source))!r} itself", option)
        own.append(path)
    return own


def digests_of(folder: Path, names: Iterable[str]) -> dict[str, str]:
    """SHA-256 of the files under some names, for a record's list; pages have a mark instead."""
    return {
        path.relative_to(folder).as_posix(): digest_of(path)
        for path in _existing(folder, names, "--out")
        if path.is_file() and path.name != PAGE
    }


def digest_of(path: Path) -> str:
    """SHA-256 of a file."""
    sha = hashlib.sha256()
    with path.open("rb") as content:
        while chunk := content.read(_CHUNK):
            sha.update(chunk)
    return sha.hexdigest()


def is_own_page(path: Path) -> bool:
    """Whether a page is one that `sdslab.report` made."""
    with path.open("rb") as page:
        head = page.read(_HEAD)
    return any(mark in head for mark in _PAGE_MARKS)


def check_own_file(path: Path, is_ours: Callable[[Path], bool], option: str) -> None:
    """Refuses to write over a single file that is not ours.

    Args:
        path: to write.
        is_ours: whether an existing regular file is.
        option: that names the file, or what it is.

    Raises:
        UserError: something else lies there.
    """
    if not os.path.lexists(path):
        return
    if path.is_symlink() or not path.is_file() or not is_ours(path):
        raise UserError(
            f"{option} must be a new file or one that this program wrote, got "
            f"{one_line(str(path))!r}, which is neither; move it away or give another name"
        )


def record_in(path: Path) -> dict[str, Any] | None:
    """The record of a run in a JSON file, or of the study's table in it; None where it has none.

    Only what makes it ours is looked at: a record of another version is one, too.
    """
    content = _json_of(path)
    if isinstance(content, dict) and isinstance(content.get("run"), dict):
        content = {"files": content.get("files"), **content["run"]}
    if not isinstance(content, dict) or not isinstance(content.get("schema"), int):
        return None
    known = content.get("program") in ("texture", "study") and isinstance(
        content.get("config"), dict
    )
    return content if known else None


def listed_in(record: Mapping[str, Any] | None) -> dict[str, str] | None:
    """The list of files of a record; None where it has none."""
    files = (record or {}).get("files")
    return files if isinstance(files, dict) else None


def _json_of(path: Path) -> Any:
    try:
        if path.is_symlink() or not path.is_file() or path.stat().st_size > LARGEST_FILE:
            return None
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        return None


def _existing(folder: Path, names: Iterable[str], option: str) -> Iterable[Path]:
    for name in names:
        path = folder / name
        for parent in path.relative_to(folder).parents:
            if parent.name and (folder / parent).is_symlink():
                raise _foreign(folder / parent, "a link", option)
        if "*" in path.name:
            yield from sorted(path.parent.glob(path.name)) if path.parent.is_dir() else ()
        elif os.path.lexists(path):
            yield path


def does_not_count(path: Path) -> bool:
    """Files of the system, and what a process that died before it wrote its record left."""
    if path.name == "run.lock" and path.is_file() and not path.is_symlink():
        owner = _json_of(path) if path.stat().st_size else {"pid": 0}
        return isinstance(owner, dict) and "pid" in owner
    own = _HALF_WRITTEN_RECORD.fullmatch(path.name)
    return bool(own) or path.name in OF_THE_SYSTEM or path.name.startswith("._")


def _foreign(path: Path, what: str, option: str) -> UserError:
    return UserError(
        f"{one_line(str(path))!r} must be a file that this program wrote, got {what}; move it away "
        f"or give another {option}"
    )


@contextmanager
def _os_errors_told(folder: Path, option: str) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"{option} must be a folder that can be read and written, got {str(folder)!r}: "
            f"{error.strerror or error}; give another {option}"
        ) from error


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
