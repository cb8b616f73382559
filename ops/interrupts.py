"""Ctrl-C at a moment when it must wait: while an answer is outstanding that must not be lost.

    with held(tell):
        instance = rent()       # a Ctrl-C now is remembered ...
    # ... and raised here

SIGTERM counts as Ctrl-C. Outside of the main thread, which alone receives signals, nothing changes.
What is told meanwhile is told `quietly`: nor must a closed stderr stop what saves money.
"""

import signal
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from types import FrameType

_SIGNALS = (signal.SIGINT, signal.SIGTERM)


def quietly(tell: Callable[[str], None]) -> Callable[[str], None]:
    """The same, where nobody may be listening any more."""

    def told(text: str) -> None:
        with suppress(OSError, ValueError):  # a broken pipe, a closed stream
            tell(text)

    return told


@contextmanager
def held(tell: Callable[[str], None], waiting_for: str) -> Iterator[None]:
    """Run the block to its end, then raise KeyboardInterrupt if Ctrl-C was pressed meanwhile."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    pressed = False

    def remember(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        quietly(tell)(f"stopping as soon as {waiting_for} is done; nothing will be left running")

    before = {number: signal.signal(number, remember) for number in _SIGNALS}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if pressed:
            raise KeyboardInterrupt


@contextmanager
def remembered() -> Iterator[Callable[[], None]]:
    """Ctrl-C as usual, and a check that raises it again: Python drops it inside a library's `__del__`."""
    pressed = False

    def press(number: int, frame: FrameType | None) -> None:
        nonlocal pressed
        pressed = True
        raise KeyboardInterrupt

    def check() -> None:
        if pressed:
            raise KeyboardInterrupt

    if threading.current_thread() is not threading.main_thread():
        yield check
        return
    before = signal.signal(signal.SIGINT, press)
    try:
        yield check
    finally:
        signal.signal(signal.SIGINT, before)


@contextmanager
def terminate_as_interrupt() -> Iterator[None]:
    """Within the block SIGTERM raises KeyboardInterrupt, so that the same clean-up runs.

    While one is handled, a further Ctrl-C or SIGTERM raises none: there is a moment before a clean-up can
    hold it back.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def interrupt(number: int, frame: FrameType | None) -> None:
        if not isinstance(sys.exc_info()[1], KeyboardInterrupt):
            raise KeyboardInterrupt

    # Who ignores Ctrl-C, as in the background, goes on doing so.
    usual = signal.getsignal(signal.SIGINT) is signal.default_int_handler
    before = {number: signal.signal(number, interrupt) for number in _SIGNALS[0 if usual else 1 :]}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
