"""A user's own class or function, named ``module:name`` on a command line or in TOML."""

import importlib
import importlib.util
import sys
from pathlib import Path
from typing import Any

from sdslab.errors import UserError, one_line


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
