"""A run's state on disk: whole or not there, checked when read, the one before it kept as well."""

import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from sdslab.errors import UserError, one_line
from sdslab.files.atomic_write import atomic_write
from sdslab.files.weights import refuse_pickle

FORMAT = 1
KEPT = 2
_NAME = re.compile(r"checkpoint-(\d{6,18})\.safetensors")
# The digest is taken with zeros in its own place, so that it covers every byte of the file.
_DIGEST = re.compile(rb'"sha256":"([0-9a-f]{64})"')
_ZEROS = b"0" * 64
_OF_THE_CODE = ("code", "versions")  # keys of an identity that tell of the program itself
_LONGEST_HEADER = 100_000_000  # safetensors' own bound


@dataclass(frozen=True)
class Checkpoint:
    """What a run goes on from.

    Attributes:
        tensors: on the CPU, as they were saved.
        state: as it was saved.
        note: one line for the user where a newer checkpoint was damaged; otherwise None.
        code_changes: what of the code is another than the one that saved it, a few words each.
    """

    tensors: dict[str, Tensor]
    state: dict[str, Any]
    note: str | None
    code_changes: tuple[str, ...] = ()


class OtherCodeError(UserError):
    """A checkpoint of the same run, saved by other code.

    Attributes:
        changes: what differs, a few words each.
    """

    def __init__(self, message: str, changes: tuple[str, ...]) -> None:
        super().__init__(message)
        self.changes = changes


class Checkpoints:
    """The numbered checkpoints of one run folder; only the holder of its `RunLock` may save.

    Args:
        folder: of the run; made when something is saved.
        identity: JSON-able; everything that must be the same for a run to go on, such as its
            configuration and digests of the code. Nested tables are compared key by key.
            ``code`` and ``versions`` tell the program itself from what it was told.
        accept_code: go on where nothing but the program itself has changed.
    """

    def __init__(
        self, folder: Path, identity: Mapping[str, Any], *, accept_code: bool = False
    ) -> None:
        self.folder = folder
        self.accept_code = accept_code
        self.identity = _flat(
            json.loads(json.dumps({"checkpoint format": FORMAT, **identity}, sort_keys=True))
        )
        self._damaged: list[Path] = []

    def save(self, tensors: Mapping[str, Tensor], state: Mapping[str, Any]) -> Path:
        """Writes a checkpoint beside the ones before it, and then removes all but two.

        Args:
            tensors: on any device; none may share memory with another.
            state: JSON-able.

        Returns:
            The file, which is on the disk: not only in its cache.

        Raises:
            UserError: the folder cannot be written or the disk is full; earlier checkpoints are
                as they were, and nothing half-written is left.
        """
        content = _packed(tensors, state, self.identity)
        files = self._files()
        path = self.folder / f"checkpoint-{max(files, default=0) + 1:06}.safetensors"
        with _os_errors_told(self.folder):
            self._remove_leftovers()
            with atomic_write(path) as temporary:
                temporary.write_bytes(content)
            _flush_folder(self.folder)
            whole = [file for _, file in sorted(files.items()) if file not in self._damaged]
            for file in (*whole[: 1 - KEPT], *self._damaged):
                file.unlink(missing_ok=True)
        self._damaged = []
        return path

    def latest(self) -> Checkpoint | None:
        """Reads the newest checkpoint that is whole; None where there is none at all.

        Raises:
            OtherCodeError: it was saved by other code, and that is not accepted.
            UserError: it belongs to another configuration, all are damaged, or the folder is none.
        """
        if self.folder.is_file():
            refuse_pickle(self.folder)
            raise UserError(
                f"a run must be a folder, got the file {str(self.folder)!r}; give the folder that "
                f"holds its checkpoints"
            )
        reasons = []
        self._damaged = []
        for _, file in sorted(self._files().items(), reverse=True):
            try:
                tensors, state, saved = _unpacked(file.read_bytes())
            except (_Damaged, OSError) as error:
                self._damaged.append(file)
                reasons.append(f"{file.name} ({error})")
                continue
            changes = self._check_identity(saved)
            note = None
            if reasons:
                note = f"{', '.join(reasons)} cannot be used: went back to {file.name}"
            return Checkpoint(tensors, state, note, changes)
        if reasons:
            raise UserError(
                f"a checkpoint in {str(self.folder)!r} must be whole, got {', '.join(reasons)}; "
                f"give --fresh to start over"
            )
        return None

    def clear(self) -> None:
        """Removes all checkpoints, for a fresh start or after the end; an empty folder goes too."""
        with _os_errors_told(self.folder):
            self._remove_leftovers()
            for file in self._files().values():
                file.unlink(missing_ok=True)
            if self.folder.is_dir() and not any(self.folder.iterdir()):
                self.folder.rmdir()

    def _remove_leftovers(self) -> None:
        """Removes what a process that was killed in `save` had not yet renamed."""
        for file in self.folder.glob(".checkpoint-*.safetensors"):
            file.unlink(missing_ok=True)

    def _files(self) -> dict[int, Path]:
        matches = ((_NAME.fullmatch(file.name), file) for file in _entries(self.folder))
        return {int(match[1]): file for match, file in matches if match}

    def _check_identity(self, saved: Mapping[str, str]) -> tuple[str, ...]:
        """What of the code has changed; all else must be the same."""
        different = [
            key
            for key in sorted({*saved, *self.identity})
            if saved.get(key) != self.identity.get(key)
        ]
        other = [
            f"{key}: {_short(saved.get(key))} → {_short(self.identity.get(key))}"
            for key in different
            if not key.startswith(_OF_THE_CODE)
        ]
        if other:
            raise UserError(
                f"the run in {str(self.folder)!r} must have been saved with the same configuration "
                f"to go on, got another (saved → now): {one_line('; '.join(other))}; give --fresh "
                f"to start over, or what it was saved with"
            )
        changes = tuple(
            _code_change(key, saved.get(key), self.identity.get(key)) for key in different
        )
        if changes and not self.accept_code:
            raise OtherCodeError(
                f"the run in {str(self.folder)!r} must have been saved by the same code to go on, "
                f"got another ({', '.join(changes)}); give --accept-code-change to go on, or "
                f"--fresh to start over",
                changes,
            )
        return changes


class _Damaged(Exception):
    """Why a file is no whole checkpoint."""


def _packed(
    tensors: Mapping[str, Tensor], state: Mapping[str, Any], identity: Mapping[str, str]
) -> bytearray:
    content = bytearray(
        safetensors.torch.save(
            {name: tensor.detach().contiguous() for name, tensor in tensors.items()},
            {
                "sha256": _ZEROS.decode(),
                "state": json.dumps(state),
                "identity": json.dumps(identity),
            },
        )
    )
    place = _digest_place(content)
    content[place] = hashlib.sha256(content).hexdigest().encode()
    return content


def _unpacked(content: bytes) -> tuple[dict[str, Tensor], dict[str, Any], dict[str, str]]:
    place = _digest_place(content)
    sha = hashlib.sha256(memoryview(content)[: place.start])
    sha.update(_ZEROS)
    sha.update(memoryview(content)[place.stop :])
    if sha.hexdigest().encode() != content[place]:
        raise _Damaged("its checksum is wrong")
    try:
        header_size = int.from_bytes(content[:8], "little")
        metadata = json.loads(content[8 : 8 + header_size])["__metadata__"]
        state, identity = json.loads(metadata["state"]), json.loads(metadata["identity"])
        tensors = safetensors.torch.load(content)
    except (KeyError, TypeError, ValueError, RecursionError, SafetensorError) as error:
        raise _Damaged(f"it is no checkpoint: {type(error).__name__}") from error
    if not (isinstance(state, dict) and isinstance(identity, dict)):
        raise _Damaged("it is no checkpoint: its state is no table")
    if not all(isinstance(value, str) for value in identity.values()):
        raise _Damaged("it is no checkpoint: its identity is not text")
    return tensors, state, identity


def _digest_place(content: bytes | bytearray) -> slice:
    """Where the digest stands in the header; quotes in the other metadata are escaped."""
    header_size = int.from_bytes(content[:8], "little")
    if len(content) < 8 or header_size > min(len(content) - 8, _LONGEST_HEADER):
        raise _Damaged("it is cut off")
    match = _DIGEST.search(content, 8, 8 + header_size)
    if match is None:
        raise _Damaged("it has no checksum")
    return slice(match.start(1), match.end(1))


def _flat(value: Any, name: str = "") -> dict[str, str]:
    """The leaves of nested tables, as JSON, under dotted names."""
    if not isinstance(value, dict) or not value:
        return {name: json.dumps(value, ensure_ascii=False)}
    leaves = {}
    for key, item in value.items():
        leaves |= _flat(item, f"{name}.{key}" if name else key)
    return leaves


def code_changes(saved: Mapping[str, Any], now: Mapping[str, Any]) -> tuple[str, ...]:
    """Words for what differs between two tables ``code`` and ``versions`` of the program itself."""
    before, after = _flat(dict(saved)), _flat(dict(now))
    return tuple(
        _code_change(key, before.get(key), after.get(key))
        for key in sorted({*before, *after} - {""})
        if before.get(key) != after.get(key)
    )


def _code_change(key: str, saved: str | None, now: str | None) -> str:
    """Words for one change, such as "sdslab/kernels" or "torch 2.12 → 2.13"."""
    kind, _, name = key.partition(".")
    if kind != "versions":
        return f"sdslab/{name}" if name else "sdslab"
    old, new = ("none" if value is None else one_line(value.strip('"')) for value in (saved, now))
    return f"{name} {old} → {new}"


def _short(value: str | None) -> str:
    if value is None:
        return "absent"
    return value if len(value) <= 40 else f"{value[:37]}..."


@contextmanager
def _os_errors_told(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise UserError(
            f"the checkpoints in {str(folder)!r} must be files that can be written and removed, "
            f"got {error.strerror or error}; fix that or give another --out"
        ) from error


def _entries(folder: Path) -> Iterator[Path]:
    return folder.iterdir() if folder.is_dir() else iter(())


def _flush_folder(folder: Path) -> None:
    """Puts a rename on the disk, before what it replaces is removed."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
