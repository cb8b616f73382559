"""Listen for what interrupts a run: Ctrl-C, SIGTERM, a closed terminal, or EC2's spot notice.

    with listening(env) as interruption:
        for event in engine.stream(songs, sampling):
            if interruption.notice: ...

The first signal becomes a notice and raises nothing. The second raises KeyboardInterrupt and restores
the earlier handlers. Signals are handled only if the main thread enters the block.
RunPod gives no advance notice: its stop sends SIGTERM to the container, some 5 s before SIGKILL, and
the container's first process passes the signal on to the worker.
"""

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from queue import SimpleQueue
from types import FrameType

from worker.host.notice import Interruption, Notice
from worker.host.spot_notice import SpotNotices

# One stop may arrive twice: sent to the process group, and passed on by the parent process.
_SAME_SIGNAL_S = 0.5

_HANGUP = "the terminal is gone"
_SIGNALS = {
    "SIGINT": "Ctrl-C",
    "SIGTERM": "SIGTERM",
    "SIGHUP": _HANGUP,  # not on Windows
    "SIGBREAK": "Ctrl-Break",  # on Windows only
}


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextmanager
def listening(
    env: Mapping[str, str] = os.environ,
    poll_s: float = 5.0,
    say: Callable[[str], None] = _to_stderr,
) -> Iterator[Interruption]:
    """Listen for everything that may interrupt a run. Calls `say` with a line for each, in a thread.

    Polls EC2's metadata at AWS_EC2_METADATA_SERVICE_ENDPOINT, unless AWS_EC2_METADATA_DISABLED is
    true, and stops polling once it is clear that this is not an EC2 machine. Raises BadInput if that
    endpoint is not an http:// address.
    """
    spot = None
    if env.get("AWS_EC2_METADATA_DISABLED", "").lower() != "true":
        spot = SpotNotices(env.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or "http://169.254.169.254")
    interruption = Interruption()
    with ExitStack() as parts:
        tell = parts.enter_context(_speaking(say))
        parts.enter_context(_handling_signals(interruption, tell))
        if spot:
            parts.enter_context(spot.polled(interruption, tell, poll_s))
        yield interruption


@contextmanager
def _speaking(say: Callable[[str], None]) -> Iterator[Callable[[str], None]]:
    """A `say` that signal handlers can call: it only puts the line into a queue, and a thread says it.

    A handler may interrupt a write to the same stream, or a holder of the same lock; SimpleQueue is
    safe against both."""
    lines: SimpleQueue[str | None] = SimpleQueue()

    def speak() -> None:
        while (line := lines.get()) is not None:
            with suppress(OSError, ValueError):  # a closed terminal must not end the run
                say(line)

    speaker = threading.Thread(target=speak, name="interruption-lines", daemon=True)
    speaker.start()
    try:
        yield lines.put
    finally:
        lines.put(None)
        speaker.join(1)  # not longer: the terminal may be stopped


@contextmanager
def _handling_signals(interruption: Interruption, tell: Callable[[str], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    names = {getattr(signal, name): text for name, text in _SIGNALS.items() if hasattr(signal, name)}
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        del names[signal.SIGHUP]  # nohup: ignore hangups
    # Handle the others even if they are ignored (SIGINT, in a script's background job): stopping must work.
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in names}
    heard_s: float | None = None

    def restore(*, hangup: bool = True) -> None:
        for number, handler in before.items():
            if hangup or names[number] != _HANGUP:
                signal.signal(number, handler)

    def hear(number: int, _frame: FrameType | None) -> None:
        nonlocal heard_s
        if heard_s is not None:
            # A closing terminal may send SIGHUP twice; only the first counts.
            if time.monotonic() - heard_s < _SAME_SIGNAL_S or names[number] == _HANGUP:
                return
            restore(hangup=False)
            raise KeyboardInterrupt
        heard_s = time.monotonic()
        interruption.end(Notice(names[number], "signal"))
        tell(f"stopping: {names[number]}; again to stop at once")

    try:
        for number in names:
            signal.signal(number, hear)
        yield
    finally:
        restore()
