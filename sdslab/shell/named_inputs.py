"""What is given by name: built-in inputs and files, and the user's own code as MODULE:NAME."""

import difflib
import importlib
import importlib.util
import itertools
import os
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from sdslab.errors import UserError, one_line

MESHES = ("apple", "sphere", "torus")
MESH_SUFFIXES = (".obj", ".glb", ".gltf", ".ply", ".stl", ".off")
LIGHTS = ("studio", "sky", "constant", "white")
# Those whose pixels lie in scikit-image's wheel: nothing is downloaded.
PHOTOGRAPHS = {
    "astronaut": "astronaut",
    "brick": "brick",
    "chelsea": "chelsea",
    "coffee": "coffee",
    "grass": "grass",
    "gravel": "gravel",
    "hubble": "hubble_deep_field",
    "ihc": "immunohistochemistry",
    "moon": "moon",
    "retina": "retina",
    "rocket": "rocket",
}
_MOST_FILES = 10_000  # of a folder that are compared with a mistyped name


def check_file_or_name(given: str, names: Iterable[str], what: str) -> None:
    """Refuses what is neither a file, nor a folder, nor one of some names.

    Args:
        given: by the user.
        names: that stand for something built in.
        what: must be given, to begin the message.

    Raises:
        UserError: with what is meant, where something like it is there.
    """
    if given not in names and not os.path.exists(given):
        known = f"an existing file or one of {', '.join(names)}" if names else "an existing file"
        raise UserError(
            f"{what} must be {known}, got {one_line(given)!r}{did_you_mean(given, names)}"
        )


def did_you_mean(given: str, names: Iterable[str]) -> str:
    """The end of a message: the name, or the path that exists, that is most like ``given``."""
    near = difflib.get_close_matches(given.lower(), list(names), 1)
    meant = near[0] if near else _like_path(given)
    return f"; did you mean {meant!r}?" if meant else _missing_folder(given)


def tag_and_file(source: str) -> tuple[str | None, str]:
    """Splits ``TAG=FILE``; a file of the whole name wins."""
    tag, equals, file = source.partition("=")
    if not equals or os.path.exists(source) or not tag or "/" in tag:
        return None, source
    return tag, file


def stem_of(given: str) -> str:
    """A file's name without folder and suffix, as one line that captions and tables can show."""
    return one_line(Path(given).stem)


def _like_path(given: str) -> str | None:
    """The file or folder whose name is most like the last part of a path, in its folder."""
    path = Path(given)
    try:
        entries = [entry.name for entry in itertools.islice(path.parent.iterdir(), _MOST_FILES)]
    except (OSError, ValueError):
        return None
    by_case = {name.lower(): name for name in entries}
    near = difflib.get_close_matches(path.name.lower(), by_case, 1, 0.7)
    near += [name for name in by_case if Path(name).stem == path.name.lower()]
    return one_line(str(path.parent / by_case[near[0]])) if near else None


def _missing_folder(given: str) -> str:
    parent = Path(given).parent
    if os.path.isdir(parent):
        return ""
    text = f"; there is no folder {one_line(str(parent))!r}"
    like = _like_path(str(parent))
    return f"{text}, did you mean {like!r}?" if like else text


def is_named_object(given: str | None) -> bool:
    """Whether a text names an object of a module, rather than one of ours."""
    module, colon, name = (given or "").partition(":")
    return bool(colon) and all(part.isidentifier() for part in (*module.split("."), name))


def named_object(given: str, option: str) -> Any:
    """Imports what ``module:name`` names; modules in the present folder are found, too.

    Args:
        given: the text.
        option: that it was given to, for messages.

    Raises:
        UserError: there is no such module, it cannot be imported, or it has no such name.
    """
    module_name, _, name = given.partition(":")
    _find_modules_here()
    must = f"{option} must name MODULE:NAME that can be imported from here, got {one_line(given)!r}"
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # the module's own code may raise anything
        raise UserError(f"{must}: {type(error).__name__}: {one_line(str(error))}") from error
    if not hasattr(module, name):
        names = [known for known in vars(module) if not known.startswith("_")]
        raise UserError(f"{must}: {module_name} has {', '.join(names) or 'no names'}")
    return getattr(module, name)


def file_of(given: str) -> str | None:
    """The source of the module that ``module:name`` names; of ``a.b`` only ``a`` is run for it.

    Returns:
        Its path, from the present folder where it lies below; None if there is no such file.
    """
    _find_modules_here()
    try:
        spec = importlib.util.find_spec(given.partition(":")[0])
    except (ImportError, ValueError, AttributeError):
        return None
    if spec is None or not spec.has_location or not spec.origin:
        return None
    path = Path(spec.origin)
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)


def _find_modules_here() -> None:
    folder = str(Path.cwd())
    if folder not in sys.path and "" not in sys.path:
        sys.path.insert(0, folder)
