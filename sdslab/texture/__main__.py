"""The command line of ``python -m sdslab.texture``: parses, and calls the runner."""

import contextlib
import functools
import sys
from pathlib import Path

import tyro

from sdslab.errors import exit_on_user_error
from sdslab.interrupts import exit_code, terminations_raised
from sdslab.texture.argument_checks import check
from sdslab.texture.arguments import Arguments


def main() -> None:
    """Entry point."""
    if sys.argv[1:2] == ["doctor"] and not {"-h", "--help"}.intersection(sys.argv[2:]):
        from sdslab.texture.doctor import doctor

        doctor(sys.argv[2:])
        return
    parse = functools.partial(
        tyro.cli, Arguments, prog="python -m sdslab.texture", config=(tyro.conf.FlagCreatePairsOff,)
    )
    arguments = parse()
    folder = Path.cwd()
    with exit_on_user_error(), terminations_raised():
        if arguments.output.resume is not None:
            from sdslab.texture.resume import resumed_run

            resumed = resumed_run(arguments, lambda own: parse(default=own))
            arguments, folder = resumed.arguments, resumed.folder
        check(arguments)
        try:
            from sdslab.texture.runner import run  # here: --help and mistakes answer at once

            with contextlib.chdir(folder):
                run(arguments)
        except KeyboardInterrupt as interruption:
            raise SystemExit(exit_code(interruption)) from None


if __name__ == "__main__":
    main()
