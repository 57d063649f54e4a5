"""Tensors and numbers of a finished piece of work in one file, whole or not at all."""

import json
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
from torch import Tensor

from sdslab.atomic_write import atomic_write


def write_result(path: Path, tensors: dict[str, Tensor], numbers: dict[str, Any]) -> None:
    """Writes tensors and JSON-able numbers as safetensors."""
    held = {name: tensor.cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_write(path) as temporary:
        content = safetensors.torch.save(held, {"result": json.dumps(numbers)})
        temporary.write_bytes(content)


def read_result(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]] | None:
    """Reads them back; None where there is no such file, or only a damaged one."""
    if not path.is_file():
        return None
    try:
        with safetensors.safe_open(path, "pt") as file:
            numbers = json.loads(file.metadata()["result"])
            return {name: file.get_tensor(name) for name in file.keys()}, numbers  # noqa: SIM118
    except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError):
        return None
