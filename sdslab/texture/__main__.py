"""The command line of ``python -m sdslab.texture``: parses, and calls the runner."""

import sys

import tyro

from sdslab.errors import exit_on_user_error
from sdslab.interrupts import exit_code
from sdslab.texture.arguments import Arguments, check


def main() -> None:
    """Entry point."""
    if sys.argv[1:2] == ["doctor"] and not {"-h", "--help"}.intersection(sys.argv[2:]):
        from sdslab.texture.doctor import doctor

        doctor(sys.argv[2:])
        return
    arguments = tyro.cli(
        Arguments, prog="python -m sdslab.texture", config=(tyro.conf.FlagCreatePairsOff,)
    )
    with exit_on_user_error():
        check(arguments)
        from sdslab.texture.runner import run  # here, so that --help and mistakes answer at once

        try:
            run(arguments)
        except KeyboardInterrupt as interruption:
            print("\ninterrupted", file=sys.stderr)  # noqa: T201
            raise SystemExit(exit_code(interruption)) from None


if __name__ == "__main__":
    main()
