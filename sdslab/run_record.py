"""``run.json``: what ran, from which code, on what."""

import hashlib
import importlib.metadata
import json
import math
import platform
import shlex
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

import sdslab
from sdslab.atomic_write import atomic_write
from sdslab.devices import device_name

PACKAGES = ("torch", "diffusers", "numpy", "scikit-image", "safetensors", "triton")


def run_record(config: dict[str, Any], device: torch.device) -> dict[str, Any]:
    """Everything about a run that its results depend on.

    Args:
        config: the resolved configuration, JSON-able.
        device: where it computes.
    """
    return {
        "command": shlex.join(["python", "-m", _module(), *sys.argv[1:]]),
        "started": datetime.now(UTC).isoformat(timespec="seconds"),
        "config": config,
        "sdslab": sdslab.__version__,
        "commit": _commit(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in PACKAGES},
        "device": device_name(device),
        "threads": torch.get_num_threads(),
        "system": platform.platform(),
    }


def write_json(path: Path, content: Any) -> None:
    """Writes strict JSON, whole or not at all: NaN becomes null and infinities "inf" or "-inf"."""
    with atomic_write(path) as temporary:
        temporary.write_text(
            json.dumps(_json_able(content), indent=2, ensure_ascii=False, allow_nan=False) + "\n",
            encoding="utf-8",
        )


def _json_able(value: Any) -> Any:
    """``value`` with None for NaN and "inf" for infinities, which JSON lacks."""
    if isinstance(value, dict):
        return {key: _json_able(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_json_able(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None if math.isnan(value) else str(value)
    return value


def package_digest() -> str:
    """SHA-256 of the package's own source, without which no two runs need be alike."""
    root = Path(__file__).parent
    sha = hashlib.sha256()
    for path in sorted(root.rglob("*.py")):
        sha.update(str(path.relative_to(root)).encode() + b"\0" + path.read_bytes())
    return sha.hexdigest()


def _module() -> str:
    spec = sys.modules["__main__"].__spec__
    return spec.name.removesuffix(".__main__") if spec else Path(sys.argv[0]).stem


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    """The checkout's commit, marked where files differ from it; None outside a checkout."""
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return None
    git = ["git", "-C", str(root)]
    try:
        commit = subprocess.run(
            [*git, "rev-parse", "HEAD"], capture_output=True, text=True, check=True
        ).stdout.strip()
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", "sdslab", "studies"])
    except (OSError, subprocess.CalledProcessError):
        return None
    return commit + (" with changes" if changed.returncode else "")
