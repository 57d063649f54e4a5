"""The command line of ``python -m sdslab.texture``: parses, and calls the runner."""

import contextlib
import sys
from pathlib import Path

from sdslab.errors import exit_on_user_error
from sdslab.shell.command_line import parse
from sdslab.shell.process import exit_code, keep_streams, terminations_raised
from sdslab.texture.argument_checks import check
from sdslab.texture.arguments import Arguments, DoctorArguments

PROGRAM = "python -m sdslab.texture"


def main() -> None:
    """Entry point."""
    keep_streams()
    if sys.argv[1:2] == ["doctor"]:
        _look(sys.argv[2:])
        return
    folder = Path.cwd()
    with exit_on_user_error(), terminations_raised():
        arguments = parse(Arguments, PROGRAM, sys.argv[1:])
        if arguments.output.resume is not None:
            from sdslab.texture.run_folder import resumed_run

            resumed = resumed_run(
                arguments, lambda own: parse(Arguments, PROGRAM, sys.argv[1:], own)
            )
            arguments, folder = resumed.arguments, resumed.folder
        try:
            with contextlib.chdir(folder):
                check(arguments)
                from sdslab.texture.runner import run  # here: --help and mistakes answer at once

                run(arguments)
        except KeyboardInterrupt as interruption:
            raise SystemExit(exit_code(interruption)) from None


def _look(arguments: list[str]) -> None:
    with exit_on_user_error():
        models = parse(DoctorArguments, f"{PROGRAM} doctor", arguments).models
        from sdslab.texture.doctor import doctor

        doctor(models)


if __name__ == "__main__":
    main()
