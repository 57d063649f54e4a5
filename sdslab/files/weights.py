"""Weights of models: from the hub or a folder, as safetensors and never as pickles."""

import os
import shlex
from pathlib import Path

from sdslab.errors import UserError, first_line

SUFFIXES = (".pt", ".pth", ".ckpt", ".bin", ".pkl", ".pickle")
TIMEOUT_SECONDS = 10
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


def require_hub_id(option: str, name: str, example: str) -> None:
    """Refuses what is neither a folder nor a hub id; called when there is no such folder.

    Args:
        option: command-line option that gave the name, for the message.
        name: what the option was given.
        example: a hub id that it could be given.

    Raises:
        UserError: says which it is: a pickle, or a path to nothing.
    """
    path = Path(name)
    refuse_pickle(path)
    if path.is_absolute() or name.startswith((".", "~")) or name.count("/") != 1:
        raise UserError(
            f"{option} must be an existing folder or a hub id like {example}, got {name!r}, which "
            f"is neither; check the path"
        )


def ask_hub(name: str, revision: str | None = None) -> list[str] | Exception:
    """A model's files, or why the hub does not name them: offline, gated, missing.

    Asked before a download, which retries for half a minute before it gives up.
    """
    from huggingface_hub import HfApi

    try:
        info = HfApi().model_info(name, revision=revision, timeout=TIMEOUT_SECONDS)
    except Exception as error:  # the hub and its transport have many types
        return error
    return [sibling.rfilename for sibling in info.siblings or ()]


def not_available(option: str, name: str, error: Exception, otherwise: str = "") -> UserError:
    """The error for a model that cannot be had; ``otherwise`` says what would do without it."""
    kind = type(error).__name__
    if kind == "GatedRepoError":
        return UserError(
            f"{option} {name} is gated: accept its licence at https://huggingface.co/{name}, then "
            f"run: hf auth login"
        )
    if kind in ("RepositoryNotFoundError", "RevisionNotFoundError"):
        return UserError(
            f"{option} {name} is not on the hub (or private, or gated without a login: hf auth "
            f"login); check its name"
        )
    return UserError(
        f"{option} {name} is no folder here and cannot be fetched from the hub: "
        f"{first_line(error)}; connect to the network, or download it elsewhere with: hf download "
        f"{name} --local-dir FOLDER, and give that folder{otherwise}"
    )
