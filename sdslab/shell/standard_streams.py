"""Standard output and error that take any text, and outlast their readers.

A closed pipe is no failure of the work, and a name that the locale has no letters for is none.
"""

import contextlib
import io
import os
import sys

from sdslab.errors import NAMES

_OUTPUT, _ERROR = 1, 2


def keep_streams() -> None:
    """Makes writing go on, into nothing, once a stream's reader has gone or where there is none.

    To be called first of all by a program. Streams that were replaced, by a test or a notebook,
    stay as they are.
    """
    _use_utf8_for_names()
    # Were a descriptor left closed, the next file that is opened would become standard output.
    with contextlib.suppress(OSError):
        while (handle := os.open(os.devnull, os.O_RDWR)) <= _ERROR:
            pass
        os.close(handle)
    if sys.stdout is sys.__stdout__:
        sys.stdout = sys.__stdout__ = _lasting(sys.stdout, _OUTPUT)
    if sys.stderr is sys.__stderr__:
        sys.stderr = sys.__stderr__ = _lasting(sys.stderr, _ERROR)


def _use_utf8_for_names() -> None:
    """Starts the program anew where Python, told so or by its locale, knows ASCII alone.

    Python decodes the command line and names of files before any program runs. Files hold UTF-8,
    so that a name must be the same text in them and on the command line. Not where the program
    runs inside another one, or ``-X utf8=0`` asks for this.
    """
    program = sys.modules["__main__"].__spec__
    ours = program is not None and program.name.startswith("sdslab.")
    if ours and sys.getfilesystemencoding() == "ascii" and "utf8" not in sys._xoptions:
        os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])


def _lasting(stream: object, descriptor: int) -> io.TextIOWrapper:
    """A stream on the same descriptor, with the same encoding."""
    encoding = "utf-8"
    if isinstance(stream, io.TextIOWrapper):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
        encoding = stream.encoding
    raw = _LastingPipe(descriptor, "wb", closefd=False)
    by_line = descriptor == _ERROR or raw.isatty()
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=encoding, errors=NAMES, line_buffering=by_line
    )


class _LastingPipe(io.FileIO):
    def write(self, content, /) -> int:
        try:
            return super().write(content) or 0
        except BrokenPipeError:
            nothing = os.open(os.devnull, os.O_WRONLY)
            os.dup2(nothing, self.fileno())
            os.close(nothing)
            return len(memoryview(content).cast("B"))
