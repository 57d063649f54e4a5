"""One process at a time in a run folder."""

import contextlib
import fcntl
import json
import os
import platform
import shlex
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Self

from sdslab.errors import UserError, one_line

LOCK_NAME = "run.lock"
_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")


class RunLock:
    """Holds a run folder while the block runs.

    The kernel lets go of the lock when its process ends, in whatever way; the file says who held
    it. It is removed at the end, so one that is found unlocked was left by a process that died.

    Args:
        folder: of the run; made if need be.

    Attributes:
        note: one line for the user where a dead process's lock was taken over; otherwise None.

    Raises:
        UserError: on entry, if another process holds it, or the folder cannot be written.
    """

    def __init__(self, folder: Path) -> None:
        self.path = folder / LOCK_NAME
        self.note: str | None = None
        self._handle: int | None = None

    def __enter__(self) -> Self:
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._handle = self._acquire()
            before = _read_owner(self._handle)
            self._refuse_if_on_another_machine(before)
            if before is not None:
                who = _describe(before)
                self.note = f"{self.path.parent}: took over from {who}, which ended without notice"
            os.ftruncate(self._handle, 0)
            os.pwrite(self._handle, json.dumps(_owner()).encode(), 0)
        except OSError as error:
            self._close()
            raise UserError(
                f"the run folder {str(self.path.parent)!r} must be one that can be written and "
                f"locked, got {error.strerror or error}; give another --out"
            ) from error
        except UserError:
            self._close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        with contextlib.suppress(OSError):
            self.path.unlink()
        self._close()

    def _acquire(self) -> int:
        while True:
            handle = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o666)
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                if self._is_file_of(handle):
                    return handle
            except BlockingIOError:
                owner = _read_owner(handle)
                os.close(handle)
                raise UserError(
                    f"the run folder {str(self.path.parent)!r} must be used by one process at a "
                    f"time, got one at work in it: {_describe(owner)}; wait for it, stop it or "
                    f"give another --out"
                ) from None
            except OSError:
                os.close(handle)
                raise
            os.close(handle)  # removed by its owner in between: try the new one

    def _is_file_of(self, handle: int) -> bool:
        try:
            return os.path.samestat(os.fstat(handle), self.path.stat())
        except FileNotFoundError:
            return False

    def _refuse_if_on_another_machine(self, owner: dict[str, Any] | None) -> None:
        """Where locks are not shared between machines, only the file tells that one is at work."""
        if not owner or owner.get("boot") == _boot_id() or owner.get("host") == platform.node():
            return
        raise UserError(
            f"the run folder {str(self.path.parent)!r} must be used by one process at a time, got "
            f"one on another machine: {_describe(owner)}; if it is no longer running there, "
            f"delete {str(self.path)!r}"
        )

    def _close(self) -> None:
        if self._handle is not None:
            os.close(self._handle)
            self._handle = None


def _owner() -> dict[str, Any]:
    return {
        "pid": os.getpid(),
        "host": platform.node(),
        "boot": _boot_id(),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": shlex.join(sys.argv),
    }


def _boot_id() -> str | None:
    try:
        return _BOOT_ID.read_text(encoding="ascii").strip()
    except OSError:
        return None


def _read_owner(handle: int) -> dict[str, Any] | None:
    """Who wrote the file: None for an empty one, an empty table for one that makes no sense."""
    content = os.pread(handle, 65536, 0)
    if not content:
        return None
    try:
        owner = json.loads(content)
    except (ValueError, RecursionError):
        return {}
    return owner if isinstance(owner, dict) and isinstance(owner.get("host"), str) else {}


def _describe(owner: dict[str, Any] | None) -> str:
    if not owner:
        return "an unknown process"
    command = str(owner.get("command", "?"))
    command = command if len(command) <= 80 else f"{command[:77]}..."
    pid, host = str(owner.get("pid", "?"))[:20], str(owner.get("host", "?"))[:60]
    since = _age(owner.get("started"))
    return one_line(f"process {pid} on {host} since {since} ({command})")


def _age(started: Any) -> str:
    try:
        seconds = (datetime.now(UTC) - datetime.fromisoformat(started)).total_seconds()
    except (TypeError, ValueError):
        return "an unknown time"
    for unit, length in (("days", 86400), ("hours", 3600), ("minutes", 60)):
        if seconds >= 2 * length:
            return f"{seconds / length:.0f} {unit}"
    return f"{max(seconds, 0):.0f} seconds"
