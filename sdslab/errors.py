"""What a program says to its user in one line: an error that can be mended, or a note."""

import sys
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


class UserError(ValueError):
    """Bad input: one line that says what must hold, what came and what to do."""


class UserNote(UserWarning):
    """Something about the input that a user may want to know; ``warnings.warn`` takes it."""


def first_line(error: BaseException) -> str:
    """An error's text, cut to its first line; its type's name where it has none."""
    lines = str(error).strip().splitlines()
    return lines[0].rstrip(" .") if lines else type(error).__name__


def one_line(text: str) -> str:
    """What a file holds, fit for a message: control characters and line ends become "?"."""
    return "".join(character if character.isprintable() else "?" for character in text)


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turns a `UserError` into one line on stderr and exit code 2, a `UserNote` into one line."""
    show = warnings.showwarning

    def show_note(message: Warning | str, category: type[Warning], *place: Any) -> None:
        if issubclass(category, UserNote):
            print(f"note: {message}", file=sys.stderr)  # noqa: T201
        else:
            show(message, category, *place)

    with warnings.catch_warnings():
        warnings.showwarning = show_note
        try:
            yield
        except UserError as error:
            print(f"error: {error}", file=sys.stderr)  # noqa: T201
            raise SystemExit(2) from None
