"""Ctrl-C and SIGTERM, held back until there is something whole to stop at."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


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
