"""``python -m sdslab.texture`` as a function."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from sdslab.shell.command_line import options_of, parse
from sdslab.texture.argument_checks import check, default_out
from sdslab.texture.arguments import Arguments


def texture_mesh(mesh: str | Path = "apple", **options: Any) -> Path:
    """Textures a mesh as the command line does: the same checks, files, checkpoints and report.

    Args:
        mesh: a file, or the name of a built-in mesh.
        options: those of ``python -m sdslab.texture --help``, with ``_`` for ``-``:
            ``exemplar="moss.jpg"``, ``steps=200``, ``unlit=True``. Those that take several values,
            or may be repeated, take a sequence; None and False leave an option out.

    Returns:
        The run's folder: mesh.glb, maps/, run.json, report.html and the rest.

    Raises:
        UserError: an option is unknown or something cannot work; nothing was written.
        KeyboardInterrupt: after what was reached has been written; the same call goes on.
    """
    arguments = parse(Arguments, "texture_mesh", [*_command_line(options), "--", os.fspath(mesh)])
    check(arguments)
    from sdslab.texture.runner import run  # here: mistakes answer at once

    run(arguments)
    return Path(arguments.output.out or default_out(arguments))


def _command_line(options: dict[str, Any]) -> Iterator[str]:
    """The words that say the same."""
    known = {name: option for option in options_of(Arguments) for name in option.names}
    for name, value in options.items():
        option = "--" + name.replace("_", "-")
        several = known[option].count != 1 if option in known else False
        if value is None or value is False:
            value = []
        values = value if isinstance(value, (tuple, list)) else [value]
        words = [os.fspath(v) if isinstance(v, os.PathLike) else str(v) for v in values]
        if value is True:
            yield option
        elif several and words:
            yield from (option, *words)
        else:  # a repeated option, or one value
            yield from (f"{option}={word}" for word in words)
