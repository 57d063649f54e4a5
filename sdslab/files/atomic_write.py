"""Files that appear whole or not at all."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from sdslab.errors import UserError, readable

_LONGEST = 40  # letters of a name that a temporary one repeats, for names may have 255 bytes


@contextmanager
def atomic_write(path: Path) -> Iterator[Path]:
    """Yields a temporary path beside ``path`` that replaces it when the block ends without error.

    Raises:
        UserError: the folder cannot be written or the disk is full; ``path`` is as it was.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.stem[:_LONGEST]}.", suffix=path.suffix
        )
        os.close(handle)
    except OSError as error:
        raise _cannot_write(path, error) from error
    temporary = Path(name)
    try:
        yield temporary
        # mkstemp makes private files; give the result what open() would have given it.
        mask = os.umask(0)
        os.umask(mask)
        temporary.chmod(0o666 & ~mask)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise _cannot_write(path, error) from error
    finally:
        temporary.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """Writes UTF-8, whole or not at all; names of files in it that are no text are escaped.

    Raises:
        UserError: as `atomic_write`.
    """
    with atomic_write(path) as temporary:
        temporary.write_bytes(readable(text).encode())


def check_writable(folder: Path, option: str = "--out") -> None:
    """Refuses an output folder that cannot be made or written, leaving nothing behind.

    Raises:
        UserError: says why not.
    """
    try:
        existing = folder
        while not os.path.lexists(existing) and existing != existing.parent:
            existing = existing.parent
        if not existing.is_dir():
            what = "a link that leads nowhere" if existing.is_symlink() else "a file"
            raise NotADirectoryError(f"{existing} is {what}")
        with tempfile.TemporaryFile(dir=existing):
            pass
    except OSError as error:
        raise UserError(
            f"{option} must be a folder that can be written, got {str(folder)!r}: {error}; give "
            f"another one"
        ) from error


def _cannot_write(path: Path, error: OSError) -> UserError:
    return UserError(
        f"{str(path)!r} cannot be written: {error.strerror or error}; free some space or give "
        f"another --out (what was finished before is kept)"
    )
