"""The processes of a training: started, and all ended, also those that its main process left behind.

They stay in the caller's process group, so that killing that group ends them too. Linux only.
"""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36


def adopt_orphans() -> None:
    """From now on children of a child that has ended are this process's own, so that they are seen."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def start(command: Sequence[str], folder: Path, env: Mapping[str, str]) -> subprocess.Popen[bytes]:
    """Start it, with its output in a pipe. Ctrl-C does not reach it: Trainer would save nothing."""
    before = signal.signal(signal.SIGINT, signal.SIG_IGN)  # inherited, and Python leaves it so
    try:
        return subprocess.Popen(
            command,
            cwd=folder,
            env=env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
        )
    finally:
        signal.signal(signal.SIGINT, before)


def descendants() -> list[int]:
    """Every process below this one, parents first."""
    children: dict[int, list[int]] = {}
    for file in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError, ValueError, IndexError):
            # the name before the last bracket may hold anything
            parent = int(file.read_text(errors="replace").rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(file.parent.name))
    found = [os.getpid()]
    for pid in found:
        found += children.get(pid, [])
    return found[1:]


def kill_all() -> None:
    """Kill every process below this one."""
    for pid in descendants():
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGKILL)


def clear_up(limit_s: float = 10.0) -> None:
    """Kill what a training left behind when it ended, which may still hold GPU memory."""
    end = time.monotonic() + limit_s  # one that the kernel holds cannot be killed
    while (pids := descendants()) and time.monotonic() < end:
        kill_all()
        for pid in pids:
            with suppress(ChildProcessError):  # a child's child becomes ours in the next round
                os.waitpid(pid, os.WNOHANG)
        time.sleep(0.02)
