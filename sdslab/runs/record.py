"""``run.json``: what ran, from which code, on what."""

import hashlib
import importlib.metadata
import json
import math
import os
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

import torch

import sdslab
from sdslab.errors import first_line, one_line
from sdslab.files.atomic_write import atomic_write
from sdslab.machine import device_name, peak_memory_mb
from sdslab.runs.folder import digests_of
from sdslab.runs.schema import SCHEMA

PACKAGES = (
    "torch", "diffusers", "transformers", "numpy", "scikit-image", "safetensors", "numba", "triton",
)  # fmt: skip

# Of ``seconds``: what comes before the first `run.json`, and what sums others up.
NO_PARTS = ("loading", "total", "last_process")


def run_record(
    config: dict[str, Any],
    device: torch.device,
    *,
    program: Literal["study", "texture"],
    kind: str,
    seeds: Sequence[int] = (),
) -> dict[str, Any]:
    """Everything about a run that its results depend on, as `sdslab.runs.schema.FIELDS` lists it.

    Args:
        config: the resolved configuration, JSON-able.
        device: where it computes.
        program: which one runs.
        kind: of study, or the guidance of a texture.
        seeds: of its noise.
    """
    commit, dirty = _commit()
    return {
        "schema": SCHEMA,
        "program": program,
        "kind": kind,
        "command": " ".join(map(_shell_word, ["python", "-m", _module(), *sys.argv[1:]])),
        "started": _now(),
        "ended": None,
        "outcome": "running",
        "error": None,
        "config": config,
        "seeds": list(seeds),
        "sdslab": sdslab.__version__,
        "commit": commit,
        "dirty": dirty,
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
        "metrics": {},
        "seconds": {},
        "peak_memory_mb": {},
        "details": {"folder": str(Path.cwd())},
    }


@contextmanager
def recorded(
    path: Path, record: dict[str, Any], device: torch.device, outputs: Sequence[str] = ()
) -> Iterator[None]:
    """Writes a run's record when the block begins, and again when it ends, in whatever way.

    What the block puts into ``metrics``, ``seconds`` and ``details`` is kept; the outcome, the
    total time and the peak memory come from here. A record that still says "running" is of a run
    that goes on, or was killed.

    Args:
        path: of the ``run.json``.
        record: from `run_record`; changed in place.
        device: where it computes.
        outputs: names of the files that the run may write beside ``path``: those that are there in
            the end are listed with their digests, which makes them its own.
    """
    write_json(path, record)
    start = time.perf_counter()
    error: BaseException | None = None
    try:
        yield
    except BaseException as raised:
        error = raised
        raise
    finally:
        record["ended"] = _now()
        record["outcome"] = "finished" if error is None else "failed"
        if isinstance(error, KeyboardInterrupt):
            record["outcome"] = "interrupted"
        elif error is not None:
            record["error"] = one_line(first_line(error))
        record["seconds"] |= _totals(record["seconds"], time.perf_counter() - start)
        record["peak_memory_mb"] = peak_memory_mb(device)
        if outputs:
            record["files"] = digests_of(path.parent, outputs)
        write_json(path, record)


def _totals(parts: dict[str, float], process: float) -> dict[str, float]:
    """What a run took, of all the processes that worked at it.

    Args:
        parts: seconds of its stages or cells, of all the processes that ran them.
        process: seconds of the last process.

    Returns:
        ``total``, and ``last_process`` where that is less, for parts were made before.
    """
    known = sum(value for name, value in parts.items() if name not in NO_PARTS)
    process, total = round(process, 2), round(max(process, known), 2)
    return {"total": total} | ({"last_process": process} if total > process else {})


def write_json(path: Path, content: Any) -> None:
    """Writes strict JSON, whole or not at all: NaN becomes null and infinities "inf" or "-inf"."""
    with atomic_write(path) as temporary:
        text = json.dumps(_json_able(content), indent=2, ensure_ascii=False, allow_nan=False)
        # What is no text is part of a file's name, and in JSON such an escape gives it back.
        temporary.write_text(f"{text}\n", encoding="utf-8", errors="backslashreplace")


def _json_able(value: Any) -> Any:
    """``value`` with None for NaN and "inf" for infinities, which JSON lacks."""
    if isinstance(value, dict):
        return {key: _json_able(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_able(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def code_digests(without: Collection[str] = ()) -> dict[str, str]:
    """SHA-256 of the source of each part of the package, without which no two runs need be alike.

    Args:
        without: parts that a run's results do not depend on, such as "report".
    """
    root = Path(__file__).parents[1]
    parts: dict[str, Any] = {}
    for path in sorted(root.rglob("*.py")):
        name = path.relative_to(root)
        part = name.parts[0].removesuffix(".py")
        if part not in without:
            sha = parts.setdefault(part, hashlib.sha256())
            sha.update(os.fsencode(name) + b"\0" + path.read_bytes())
    return {part: sha.hexdigest() for part, sha in parts.items()}


def version_of(record: dict[str, Any]) -> str:
    """Version and commit of the code that wrote a record."""
    commit = one_line(record["commit"] or "unknown")[:10]
    changed = " with changes" if record["dirty"] else ""
    return f"sdslab {one_line(record['sdslab'])[:20]} (commit {commit}{changed})"


def _module() -> str:
    spec = sys.modules["__main__"].__spec__
    return spec.name.removesuffix(".__main__") if spec else Path(sys.argv[0]).stem


def _shell_word(word: str) -> str:
    """A word of a command line as one line of text that a shell reads back."""
    if word.isprintable():
        return shlex.quote(word)
    content = os.fsencode(word)
    letters = (chr(b) if 32 <= b < 127 and b not in b"'\\" else f"\\x{b:02x}" for b in content)
    return f"$'{''.join(letters)}'"


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")


def _commit() -> tuple[str | None, bool | None]:
    """The checkout's commit, and whether files differ from it; None outside a checkout."""
    root = Path(__file__).parents[2]
    if not (root / ".git").exists():
        return None, None
    git = ["git", "-C", str(root)]
    try:
        commit = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "sdslab", "studies"])
    except (OSError, subprocess.CalledProcessError):
        return None, None
    return commit, changed.returncode != 0
