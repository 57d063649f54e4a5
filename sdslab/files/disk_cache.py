"""Results that are slow to make and depend on nothing but their inputs, kept between runs."""

import hashlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import platformdirs
import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor

from sdslab.errors import UserError
from sdslab.files.atomic_write import atomic_write


def content_hash(*parts: Any) -> str:
    """SHA-256 of tensors (dtype, shape and bytes) and JSON-able values."""
    sha = hashlib.sha256()
    for part in parts:
        if isinstance(part, Tensor):
            sha.update(f"{part.dtype}{list(part.shape)}".encode())
            sha.update(part.detach().cpu().contiguous().view(-1).view(torch.uint8).numpy().data)
        else:
            sha.update(json.dumps(part, sort_keys=True).encode())
    return sha.hexdigest()


def cache_folder() -> Path:
    """The user's cache folder for this package (on Linux ~/.cache/sdslab)."""
    return Path(platformdirs.user_cache_dir("sdslab"))


def cached_tensors(
    kind: str, key: str, compute: Callable[[], dict[str, Tensor]]
) -> dict[str, Tensor]:
    """Returns ``compute()``, or what it returned before for the same kind and key.

    A damaged file is made again; where the folder cannot be written, nothing is kept.

    Args:
        kind: what it is, such as "unwrap": a subfolder's name.
        key: `content_hash` of everything that the result depends on, a version number included.
        compute: makes the tensors, on the CPU.
    """
    path = cache_folder() / kind / f"{key}.safetensors"
    try:
        return safetensors.torch.load(path.read_bytes())
    except (OSError, SafetensorError, ValueError):
        tensors = compute()
    try:
        with atomic_write(path) as temporary:
            content = safetensors.torch.save({n: t.contiguous() for n, t in tensors.items()})
            temporary.write_bytes(content)
    except UserError:
        pass
    return tensors
