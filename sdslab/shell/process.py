"""A program among others: the signals that end it, and streams that may be closed or full."""

import contextlib
import io
import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from sdslab.errors import NAMES


class Terminated(KeyboardInterrupt):
    """SIGTERM: what a scheduler sends before it kills. Handled wherever Ctrl-C is."""


def exit_code(interrupt: KeyboardInterrupt) -> int:
    """128 + the signal's number, as a shell has it: 130 for Ctrl-C, 143 for SIGTERM."""
    return 128 + (signal.SIGTERM if isinstance(interrupt, Terminated) else signal.SIGINT)


@contextmanager
def interrupts_held() -> Iterator[Callable[[], None]]:
    """Holds the first Ctrl-C or SIGTERM back until the yielded function is called, which raises it.

    A second one is not held back. A block within a block hears of what came before it began.
    Outside the main thread, where Python delivers no signals, nothing is held.

    Raises:
        KeyboardInterrupt: from the yielded function, after Ctrl-C; `Terminated` after SIGTERM.
    """
    received: list[int] = getattr(signal.getsignal(signal.SIGINT), "received", [])

    def hold(number: int, frame: FrameType | None) -> None:
        del frame
        received.append(number)
        if len(received) > 1:
            raise _interrupt(number)

    hold.received = received  # type: ignore[attr-defined]  for blocks within this one

    def raise_if_received() -> None:
        if received:
            number = received[0]
            received.clear()  # the blocks around this one need not raise it again
            raise _interrupt(number)

    if threading.current_thread() is not threading.main_thread():
        yield raise_if_received
        return
    before = {number: signal.signal(number, hold) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield raise_if_received
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def terminations_raised() -> Iterator[None]:
    """Makes SIGTERM raise `Terminated` wherever the block is, as Ctrl-C raises its own error.

    Python's own answer is to end at once, with nothing cleaned up. Outside the main thread nothing
    changes.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def terminate(number: int, frame: FrameType | None) -> None:
        del number, frame
        raise Terminated

    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _interrupt(number: int) -> KeyboardInterrupt:
    return Terminated() if number == signal.SIGTERM else KeyboardInterrupt()


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
