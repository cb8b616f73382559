"""One attempt of a training: started, watched, and asked to end when a limit is reached.

It is asked with SIGTERM, on which a Trainer with `enable_jit_checkpoint` saves at its next step, and killed
when it has not ended after the grace. Whoever calls decides what its end means.
"""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from . import gpu, processes
from .curves import Curves, Point
from .output import Output

IDLE_GPU_PERCENT = 5.0
_OOM_EVENTS = Path("/sys/fs/cgroup/memory.events")


@dataclass(frozen=True)
class Limits:
    """When to end it. `until` is on the monotonic clock; None: no limit. `why_until`: which limit that is."""

    until: float | None = None
    why_until: str = ""
    stall_s: float = 1200.0
    grace_s: float = 280.0  # `fab stop` kills everything after 300 s
    poll_s: float = 0.5


@dataclass(frozen=True)
class Ended:
    """How an attempt ended. `code` is negative for a signal.

    `step`: the last one seen. `saved`: that of the newest valid checkpoint; 0 for none.
    `asked`: why it was asked to end: `signal`, `limit` or `stall`; empty if it ended by itself.
    `oom_killed`: the machine's kernel killed a process for want of memory meanwhile.
    """

    code: int
    step: int = 0
    saved: int = 0
    asked: str = ""
    tail: str = ""
    oom_killed: bool = False


class Signals:
    """SIGTERM and SIGINT are noted from now on, instead of ending this process."""

    def __init__(self) -> None:
        self.asked = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._note)

    def _note(self, *_: object) -> None:
        self.asked = True


def run(
    command: Sequence[str],
    folder: Path,
    env: Mapping[str, str],
    curves: Curves,
    limits: Limits,
    signals: Signals,
    report: Callable[[list[Point], int, str], None],
) -> Ended:
    """Run it to its end. `report` is given the new points, the bytes printed so far, and why it is to end."""
    oom_before = _oom_kills()
    process = processes.start(command, folder, env)
    assert process.stdout is not None  # noqa: S101
    output = Output(process.stdout, 1)
    watch = _Watch(process.pid, limits, signals, env.get("PATH", ""))
    step = 0
    while True:
        ended = _wait(process, limits.poll_s)
        points = curves.poll()
        step = max([step, *(point.step for point in points)])
        if ended:
            break
        watch.look((step, output.n_bytes))
        report(points, output.n_bytes, watch.asked)
    processes.clear_up()
    tail = output.close()
    report(points + curves.poll(), output.n_bytes, watch.asked)
    # The same signal may have ended the training itself, as when a whole group is killed.
    asked = watch.asked or ("signal" if signals.asked else "")
    return Ended(process.returncode, step, 0, asked, tail, _oom_kills() > oom_before)


class _Watch:
    """Judges a running training against its limits, asks it to end, and sees to it that it does."""

    def __init__(self, pid: int, limits: Limits, signals: Signals, path: str):
        self.asked = ""
        self._pid, self._limits, self._signals, self._path = pid, limits, signals, path
        self._seen: object = None
        self._quiet_since = time.monotonic()
        self._kill_at = 0.0

    def look(self, seen: object) -> None:
        now = time.monotonic()
        if seen != self._seen:
            self._seen, self._quiet_since = seen, now
        if self.asked:
            if now >= self._kill_at:
                processes.kill_all()
            return
        if self._signals.asked:
            self._ask("signal")
        elif self._limits.until is not None and now >= self._limits.until:
            self._ask("limit")
        elif now - self._quiet_since >= self._limits.stall_s:
            if (gpu.utilization() or 0.0) < IDLE_GPU_PERCENT:
                dump_stacks(self._path)
                self._ask("stall")
            else:
                self._quiet_since = now  # a long evaluation may print nothing

    def _ask(self, why: str) -> None:
        self.asked = why
        self._kill_at = time.monotonic() + self._limits.grace_s
        os.kill(self._pid, signal.SIGTERM)


def dump_stacks(path: str) -> None:
    """Where each Python process of the training is, into the log, if py-spy is on this PATH."""
    program = shutil.which("py-spy", path=path)
    if program is None:
        print("--- no stacks: py-spy is not installed; add it to the requirements to see them", flush=True)
        return
    for pid in processes.descendants():
        command = [program, "dump", "--pid", str(pid)]
        with suppress(OSError, subprocess.TimeoutExpired):
            subprocess.run(command, stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, timeout=60)


def _wait(process: subprocess.Popen[bytes], limit_s: float) -> bool:
    try:
        process.wait(limit_s)
    except subprocess.TimeoutExpired:
        return False
    return True


def _oom_kills() -> int:
    try:
        lines = dict(line.split() for line in _OOM_EVENTS.read_text().splitlines())
        return int(lines.get("oom_kill", 0))
    except (OSError, ValueError):
        return 0
