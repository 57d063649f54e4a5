"""Models on Hugging Face's hub: what names one, what it holds, and why it cannot be had."""

from pathlib import Path

from sdslab.errors import UserError, first_line
from sdslab.files.pickles import refuse_pickle

TIMEOUT_SECONDS = 10


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
