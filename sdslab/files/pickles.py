"""Pickled weights, which run whatever code they hold when they are read: refused, never opened."""

import os
import shlex
from pathlib import Path

from sdslab.errors import UserError

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle")
_CONVERT = (
    "import sys, torch, safetensors.torch as s; d = torch.load(sys.argv[1], 'cpu', "
    "weights_only=True); s.save_file(d.get('state_dict', d), sys.argv[2])"
)


def refuse_pickle(path: Path) -> None:
    """Refuses a file that a pickle's name or first bytes give away; others pass.

    Raises:
        UserError: with the line that converts it.
    """
    if os.path.isfile(path) and (path.suffix.lower() in SUFFIXES or _begins_like_a_pickle(path)):
        raise UserError(
            f"weights and states must be safetensors (a pickle can run any code), got "
            f"{str(path)!r}; if you trust it, convert it: {conversion_line(path)}"
        )


def require_safetensors(owner: str, folder: Path) -> None:
    """Refuses a model's folder without safetensors.

    Args:
        owner: whose weights they are, for the message.
        folder: of the weights and their config.

    Raises:
        UserError: with the line that converts the first pickle there, if there is one.
    """
    if any(folder.glob("*.safetensors")):
        return
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        refuse_pickle(path)
    raise UserError(
        f"{owner} must have safetensors weights (pickles are never read), got none in "
        f"{folder.name}; save it there with save_pretrained"
    )


def conversion_line(path: Path) -> str:
    """A shell line that writes the tensors of a pickled state dict beside it as safetensors."""
    return shlex.join(["python", "-c", _CONVERT, str(path), str(path.with_suffix(".safetensors"))])


def _begins_like_a_pickle(path: Path) -> bool:
    """A bare pickle of protocol 2 to 5, or the zip archive that torch.save writes one into."""
    try:
        with path.open("rb") as file:
            start = file.read(4)
    except OSError:
        return False
    return start == b"PK\3\4" or (
        start[:1] == b"\x80" and start[1:2] in (b"\2", b"\3", b"\4", b"\5")
    )
