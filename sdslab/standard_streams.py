"""Standard output and error that outlast their readers: a closed pipe is no failure of the work."""

import contextlib
import io
import os
import sys

_OUTPUT, _ERROR = 1, 2


def keep_streams() -> None:
    """Makes writing go on, into nothing, once a stream's reader has gone or where there is none.

    To be called first of all by a program. Streams that were replaced, by a test or a notebook,
    stay as they are.
    """
    # Were a descriptor left closed, the next file that is opened would become standard output.
    with contextlib.suppress(OSError):
        while (handle := os.open(os.devnull, os.O_RDWR)) <= _ERROR:
            pass
        os.close(handle)
    if sys.stdout is sys.__stdout__:
        sys.stdout = sys.__stdout__ = _lasting(sys.stdout, _OUTPUT)
    if sys.stderr is sys.__stderr__:
        sys.stderr = sys.__stderr__ = _lasting(sys.stderr, _ERROR)


def _lasting(stream: object, descriptor: int) -> io.TextIOWrapper:
    """A stream on the same descriptor, with the same encoding."""
    encoding, errors = "utf-8", "backslashreplace"
    if isinstance(stream, io.TextIOWrapper):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
        encoding, errors = stream.encoding, stream.errors or errors
    raw = _LastingPipe(descriptor, "wb", closefd=False)
    by_line = descriptor == _ERROR or raw.isatty()
    return io.TextIOWrapper(
        io.BufferedWriter(raw), encoding=encoding, errors=errors, line_buffering=by_line
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
