"""What a program says to its user in one line: an error that can be fixed, or a note."""

import codecs
import re
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


def bytes_of_names(error: UnicodeError) -> tuple[bytes, int]:
    """An error handler for encoders: file names are written as the bytes that they are.

    File names need not be text; Python holds what is none of its encoding as lone surrogates (PEP
    383), which no encoder takes. Other characters that the encoding lacks are escaped.
    """
    if not isinstance(error, UnicodeEncodeError):
        raise error
    content = b"".join(
        bytes([ord(character) - 0xDC00])
        if "\udc80" <= character <= "\udcff"
        else character.encode("ascii", "backslashreplace")
        for character in error.object[error.start : error.end]
    )
    return content, error.end


NAMES = "sdslab.names"
codecs.register_error(NAMES, bytes_of_names)


def readable(text: str) -> str:
    r"""A file's name as text that any encoder takes: bytes that are no UTF-8 become ``\xf6``.

    So they do where `repr` has escaped them already, as it does in most messages.
    """
    text = re.sub(r"\\udc([89a-f][0-9a-f])", r"\\x\1", text)
    return text.encode("utf-8", NAMES).decode("utf-8", "backslashreplace")


def one_line(text: str) -> str:
    """What a file holds, or its name, fit for a message: control characters become "?"."""
    return "".join(letter if letter.isprintable() else "?" for letter in readable(text))


@contextmanager
def exit_on_user_error() -> Iterator[None]:
    """Turns a `UserError` into one line on stderr and exit code 2, a `UserNote` into one line."""
    show = warnings.showwarning

    def show_note(message: Warning | str, category: type[Warning], *place: Any) -> None:
        if issubclass(category, UserNote):
            print(one_line(f"note: {message}"), file=sys.stderr)  # noqa: T201
        else:
            show(message, category, *place)

    with warnings.catch_warnings():
        warnings.showwarning = show_note
        try:
            yield
        except UserError as error:
            print(one_line(f"error: {error}"), file=sys.stderr)  # noqa: T201
            raise SystemExit(2) from None
