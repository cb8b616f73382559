"""What asks a run to end: Ctrl-C, SIGTERM, a terminal that is gone, or EC2 taking its machine back.

    with watching(say=display.say) as interruption:
        for event in engine.stream(songs, sampling):
            if interruption.notice:        # keep what there is, and end by notice.deadline
            if interruption.no_new_songs:  # finish what is begun, begin nothing

The first signal becomes a notice and raises nothing; the second raises KeyboardInterrupt, and leaves
later ones to whoever had them before. Signals are heard only if the main thread enters the block.
RunPod gives no notice: its stop is a SIGTERM to the container, seconds before SIGKILL, which the
container's first process hands on to the worker.
Ends nothing itself and powers nothing off: a machine that EC2 takes back in its first hour costs
nothing, one that ended itself a minute before does.
"""

import json
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from http.client import HTTPConnection, HTTPException
from queue import SimpleQueue
from types import FrameType
from typing import Literal
from urllib.parse import urlsplit

from worker.errors import BadInput

# Between EC2's time and ours: for the last checkpoint, the report and their uploads.
MARGIN_S = 20.0
# EC2 gives two minutes. A clock that is wrong must not make more of them.
_LONGEST_NOTICE_S = 120.0

_TIMEOUT_S = 2.0
_TRIES = 3  # polls without an answer before this machine counts as none of EC2's
_GLANCE_S = 0.1
# One stop may arrive twice: sent to a whole process group, and handed on by the parent in it.
_SAME_SIGNAL_S = 0.5
_TOKEN_LIFE_S = 6 * 3600  # the longest there is

_HANGUP = "the terminal is gone"
_SIGNALS = {
    "SIGINT": "Ctrl-C",
    "SIGTERM": "SIGTERM",
    "SIGHUP": _HANGUP,  # not on Windows
    "SIGBREAK": "Ctrl-Break",  # on Windows alone
}


@dataclass(frozen=True)
class Notice:
    """Why the run must end, in one line, and when at the latest."""

    reason: str
    kind: Literal["signal", "spot"]
    deadline: float | None = None  # time.monotonic() by which all must be kept; None: now


class Interruption:
    """What a run looks at between two events. Safe to share between threads; one that nobody
    feeds never interrupts."""

    # No lock: a signal handler would wait for ever for one that its own thread holds. Each field
    # has one writer.
    def __init__(self) -> None:
        self._signal: Notice | None = None
        self._spot: Notice | None = None
        self._drain_reason: str | None = None

    @property
    def notice(self) -> Notice | None:
        """The run must end. Once there it stays, but a later signal makes its deadline now."""
        asked, spot = self._signal, self._spot
        if asked and spot:
            return Notice(f"{asked.reason}, and {spot.reason}", "spot")
        return asked or spot

    @property
    def drain_reason(self) -> str | None:
        """Why no song should be begun although the run may go on, in one line."""
        return self._drain_reason

    @property
    def no_new_songs(self) -> bool:
        """Begin no song: the run drains or ends."""
        return self._drain_reason is not None or self.notice is not None

    @property
    def reason(self) -> str:
        """Why the run ends or begins no song, in one line."""
        notice = self.notice
        return f"stopped ({notice.reason if notice else self._drain_reason})"

    def wait(self, timeout_s: float) -> bool:
        """Sleep until there is a notice, at most this long; True if there is one."""
        last_s = time.monotonic() + timeout_s
        # In naps: on Windows a signal ends no longer wait.
        while self.notice is None and (left_s := last_s - time.monotonic()) > 0:
            time.sleep(min(left_s, _GLANCE_S))
        return self.notice is not None

    def end(self, notice: Notice) -> None:
        """Ask the run to end."""
        if notice.kind == "signal":
            self._signal = notice
        else:
            self._spot = notice

    def drain(self, reason: str) -> None:
        """Ask the run to begin no song."""
        self._drain_reason = reason


def _to_stderr(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


@contextmanager
def watching(
    env: Mapping[str, str] = os.environ,
    poll_s: float = 5.0,
    say: Callable[[str], None] = _to_stderr,
) -> Iterator[Interruption]:
    """Listen for whatever may interrupt a run. `say` gets a line, in a thread of its own, for each.

    EC2 is asked at AWS_EC2_METADATA_SERVICE_ENDPOINT, not at all if AWS_EC2_METADATA_DISABLED is
    true, and no longer once it is clear that this is no machine of EC2. Raises BadInput if that
    endpoint is none.
    """
    metadata = None
    if env.get("AWS_EC2_METADATA_DISABLED", "").lower() != "true":
        metadata = _Metadata(env.get("AWS_EC2_METADATA_SERVICE_ENDPOINT") or "http://169.254.169.254")
    interruption = Interruption()
    over = threading.Event()
    with _speaking(say) as tell, _signals_heard(interruption, tell):
        if metadata:
            asked = (metadata, interruption, tell, over, poll_s)
            threading.Thread(target=_poll, args=asked, name="ec2-notices", daemon=True).start()
        try:
            yield interruption
        finally:
            over.set()  # a request under way ends by its timeout: nobody waits for it


@contextmanager
def _speaking(say: Callable[[str], None]) -> Iterator[Callable[[str], None]]:
    """A `say` for signal handlers: one may interrupt a write to the very stream that `say` writes
    to, or hold no lock that it takes. A SimpleQueue takes lines from a handler safely."""
    lines: SimpleQueue[str | None] = SimpleQueue()

    def speak() -> None:
        while (line := lines.get()) is not None:
            with suppress(OSError, ValueError):  # a closed terminal must not end the run
                say(line)

    speaker = threading.Thread(target=speak, name="interruption-said", daemon=True)
    speaker.start()
    try:
        yield lines.put
    finally:
        lines.put(None)
        speaker.join(1)  # no longer: the terminal may be stopped


@contextmanager
def _signals_heard(interruption: Interruption, tell: Callable[[str], None]) -> Iterator[None]:
    if threading.current_thread() is not threading.main_thread():
        yield  # only the main thread may set handlers
        return
    names = {getattr(signal, name): text for name, text in _SIGNALS.items() if hasattr(signal, name)}
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) == signal.SIG_IGN:
        del names[signal.SIGHUP]  # nohup means it
    # The others also where they are ignored, as SIGINT is for a script's background job: stopping must work.
    before = {number: signal.getsignal(number) or signal.SIG_DFL for number in names}
    heard_s: float | None = None

    def restore(*, hangup: bool = True) -> None:
        for number, handler in before.items():
            if hangup or names[number] != _HANGUP:
                signal.signal(number, handler)

    def hear(number: int, _frame: FrameType | None) -> None:
        nonlocal heard_s
        if heard_s is not None:
            # A closing terminal may say so twice, and means no more than it did at first.
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


def _poll(
    metadata: "_Metadata",
    interruption: Interruption,
    tell: Callable[[str], None],
    over: threading.Event,
    poll_s: float,
) -> None:
    """Ask EC2 until it takes the machine back, the block ends, or this is no machine of EC2."""
    failed, answered = 0, False
    while not over.is_set():
        try:
            action = metadata.get("spot/instance-action")
            advice = metadata.get("events/recommendations/rebalance")
        except (OSError, HTTPException):
            failed += 1
            if not answered and failed == _TRIES:
                return
        else:
            answered = True
            if action and (notice := spot_notice(action, datetime.now(UTC), time.monotonic())):
                interruption.end(notice)
                tell(f"stopping: {notice.reason}")
                return
            if advice and not interruption.drain_reason:
                interruption.drain("EC2 may soon take this spot machine back (rebalance recommendation)")
                tell(f"no new songs: {interruption.drain_reason}")
        over.wait(poll_s)


def spot_notice(text: str, now: datetime, now_s: float) -> Notice | None:
    """What `spot/instance-action` says, `now_s` being now on the monotonic clock; None if it says nothing.

    `{"action": "terminate", "time": "2026-11-22T19:50:59Z"}`; stop and hibernate end the run alike.
    """
    try:
        at = datetime.fromisoformat(json.loads(text)["time"])
        left_s = (at - now).total_seconds()
    except (ValueError, KeyError, TypeError):
        return None
    deadline = now_s + min(max(left_s, 0.0), _LONGEST_NOTICE_S) - MARGIN_S
    when = at.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")
    return Notice(f"EC2 takes this spot machine back at {when}", "spot", deadline)


class _Metadata:
    """EC2's instance metadata, version 2. Plain connections: never through a proxy, no redirects."""

    def __init__(self, endpoint: str) -> None:
        try:
            url = urlsplit(endpoint)
            host, self._port = url.hostname, url.port or 80
        except ValueError:
            host = None
        if not host or url.scheme != "http":
            raise BadInput(
                f"AWS_EC2_METADATA_SERVICE_ENDPOINT is {endpoint!r}, no http:// address; correct or unset it"
            )
        self._host, self._path = host, url.path.rstrip("/")
        self._token: str | None = None

    def get(self, path: str) -> str | None:
        """The text at a path, or None if there is none. Raises OSError or HTTPException."""
        for _ in range(2):  # once more when the token has expired
            if self._token is None:
                life = {"X-aws-ec2-metadata-token-ttl-seconds": str(_TOKEN_LIFE_S)}
                status, text = self._ask("PUT", "/latest/api/token", life)
                if status != 200:
                    raise ConnectionError(f"no token: HTTP {status}")
                self._token = text
            token = {"X-aws-ec2-metadata-token": self._token}
            status, text = self._ask("GET", f"/latest/meta-data/{path}", token)
            if status in (200, 404):
                return text if status == 200 else None
            self._token = None
            if status != 401:
                break
        raise ConnectionError(f"HTTP {status}")

    def _ask(self, method: str, path: str, headers: dict[str, str]) -> tuple[int, str]:
        connection = HTTPConnection(self._host, self._port, timeout=_TIMEOUT_S)
        try:
            connection.request(method, self._path + path, headers=headers)
            answer = connection.getresponse()
            return answer.status, answer.read(1 << 16).decode("utf-8", "replace").strip()
        finally:
            connection.close()
