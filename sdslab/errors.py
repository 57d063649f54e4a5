"""The one kind of error that a user can mend, and how a program ends on it."""

import sys
from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Bad input: one line that says what must hold, what came and what to do."""


def first_line(error: BaseException) -> str:
    """An error's text, cut to its first line; its type's name where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(" .") if lines else type(error).__name__


def one_line(text: str) -> str:
    """What a file holds, fit for a message: control characters and line ends become "?"."""
    return "".join(character if character.isprintable() else "?" for character in text)


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turns a `UserError` into one line on stderr and exit code 2."""
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)  # noqa: T201
        raise SystemExit(2) from None
