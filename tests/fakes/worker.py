"""Real workers as real processes, without the ten seconds that each would take to start.

A parent that has imported everything, loaded the rehearsal model and built its kernel forks one
child for each run: `python -m worker` in all but that. Children can be signalled and killed like
any process.
"""

import functools
import importlib
import json
import os
import select
import signal
import subprocess
import sys
import threading
import time
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent.parent


class Worker:
    """One run. `log` is what it printed, stdout and stderr."""

    def __init__(self, nursery: "Nursery", pid: int, log: Path):
        self._nursery, self.pid, self.log = nursery, pid, log

    def send(self, number: int) -> None:
        """Signal it; nothing happens if it has ended."""
        if self.code is None:
            os.kill(self.pid, number)

    def wait(self, timeout_s: float) -> int:
        """Its exit code (negative: the signal that ended it)."""
        last = time.monotonic() + timeout_s
        while (code := self.code) is None:
            if time.monotonic() > last:
                raise TimeoutError(f"still running after {timeout_s} s:\n{self.said}")
            time.sleep(0.01)
        return code

    @property
    def code(self) -> int | None:
        """Its exit code, once it has ended."""
        return self._nursery.code_of(self.pid)

    @property
    def said(self) -> str:
        return self.log.read_text("utf-8", "replace")


class Nursery:
    """The parent, seen from the test."""

    def __init__(self, process: "subprocess.Popen[bytes]", folder: Path):
        self._process, self._folder = process, folder
        self._codes: dict[int, int] = {}
        self._pids: list[int] = []
        self._unread = b""
        self._n = 0

    def start(self, *argv: str, **env: str) -> Worker:
        """Start a worker with this command line and environment besides the test's own."""
        self._n += 1
        log = self._folder / f"worker-{self._n}.log"
        asked = {"argv": argv, "env": dict(os.environ) | env, "log": str(log)}
        os.write(self._process.stdin.fileno(), json.dumps(asked).encode() + b"\n")
        while not self._pids:
            self._hear(60)
        return Worker(self, self._pids.pop(), log)

    def code_of(self, pid: int) -> int | None:
        """A child's exit code, if it has ended."""
        self._hear(0)
        return self._codes.get(pid)

    def _hear(self, timeout_s: float) -> None:
        """What the parent has said: `pid N` or `ended N CODE`, a line each."""
        while select.select([self._process.stdout], [], [], timeout_s)[0]:
            if not (chunk := os.read(self._process.stdout.fileno(), 1 << 16)):
                raise RuntimeError("the parent of the workers has ended")
            *lines, self._unread = (self._unread + chunk).split(b"\n")
            for word, pid, *code in (line.split() for line in lines):
                if word == b"pid":
                    self._pids.append(int(pid))
                elif word == b"ended":
                    self._codes[int(pid)] = int(code[0])
            timeout_s = 0


@contextmanager
def nursery(folder: Path, family: str = "worker.musicgen", model: str = "rehearsal") -> Iterator[Nursery]:
    """A parent for workers of a rehearsal model; it and its children end with the block."""
    process = subprocess.Popen(
        [sys.executable, "-u", "-m", "tests.fakes.worker", family, model],
        cwd=ROOT,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        bufsize=0,
    )
    try:
        assert process.stdout.readline() == b"ready\n"
        yield Nursery(process, folder)
    finally:
        process.stdin.close()  # it kills its children and ends
        process.wait(30)
        process.stdout.close()


def _parent(family: str, model: str) -> None:
    import boto3
    import botocore.session
    import torch
    from botocore.loaders import Loader

    importlib.import_module("worker.audio.quality")  # SciPy takes each run two seconds

    loader = Loader()  # one for all: it remembers S3's long description
    botocore.session.create_loader = lambda path=None: loader
    boto3.session.Session("none", "none", region_name="us-east-1").client("s3")
    # OpenMP's threads do not survive a fork, so none may start here. The engine takes no more for
    # so small a model.
    torch.set_num_threads(1)
    if family == "worker.musicgen":
        from worker.musicgen import pretrained

        loaded, load = pretrained.load(model), pretrained.load
        pretrained.load = lambda name: loaded if name == model else load(name)
    importlib.import_module(family).Engine.load(model, slots=1)
    children: set[int] = set()
    print("ready")
    buffer = b""
    while True:
        readable, _, _ = select.select([0], [], [], 0.02)
        if readable:
            chunk = os.read(0, 1 << 20)
            if not chunk:
                break
            buffer += chunk
        while b"\n" in buffer:
            line, _, buffer = buffer.partition(b"\n")
            pid = os.fork()
            if not pid:
                _child(json.loads(line))
            children.add(pid)
            print("pid", pid)
        while children:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                break
            children.discard(pid)
            print("ended", pid, os.waitstatus_to_exitcode(status))
    for pid in children:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    os._exit(0)  # taking torch down takes a second


def _child(asked: dict[str, object]) -> None:
    from worker.__main__ import main

    code = 1
    try:
        log = os.open(str(asked["log"]), os.O_CREAT | os.O_WRONLY | os.O_APPEND)
        null = os.open(os.devnull, os.O_RDONLY)
        for file, number in ((null, 0), (log, 1), (log, 2)):
            os.dup2(file, number)
        os.environ.clear()
        os.environ.update(asked["env"])
        if frames := os.environ.get("MUSICGEN_TEST_FRAMES"):
            _record_frames(frames)
        if window_s := os.environ.get("MUSICGEN_TEST_WINDOW_S"):
            _shorten_windows(float(window_s))
        if positions := os.environ.get("MUSICGEN_TEST_POSITIONS"):
            _shorten_songs(int(positions))
        if poll_s := os.environ.get("MUSICGEN_TEST_POLL_S"):
            _ask_ec2_often(float(poll_s))
        if point := os.environ.get("MUSICGEN_TEST_KILL_AT"):
            _kill_at(point)
        code = main(list(asked["argv"]), os.environ)
    except SystemExit as error:
        code = error.code if isinstance(error.code, int) else 1
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _record_frames(path: str) -> None:
    """Have each progress event in a file, at once: what a killed worker had made is known exactly.

    And each checkpoint before the next window, however slow the disk is: what was saved is known too.
    It takes a while after each, so that who watches can stop it soon after a frame on any machine.
    """
    from worker.observe.console import ConsoleDisplay
    from worker.run import checkpoints

    checkpoints._GRACE_S = 60
    file = os.open(path, os.O_CREAT | os.O_WRONLY | os.O_APPEND)
    shown = ConsoleDisplay.progress

    def progress(self, event):
        os.write(file, (json.dumps(dict(event.frames)) + "\n").encode())
        time.sleep(0.003)
        shown(self, event)

    ConsoleDisplay.progress = progress


def _kill_at(point: str) -> None:
    """Die by SIGKILL at `MOMENT:KEYS`: before, during or after the first change of such a key.

    KEYS is the beginning of a key, or its end where it starts with `*`. During: a folder has written the
    bytes and not yet given them their name; a bucket has the request, and its answer is not read.
    """
    import http.client

    from worker.store.folder import FolderStore
    from worker.store.s3 import S3Store

    moment, keys = point.split(":", 1)
    armed = threading.Event()

    def die() -> None:
        os.kill(os.getpid(), signal.SIGKILL)
        time.sleep(60)

    def is_meant(key: str) -> bool:
        return key.endswith(keys[1:]) if keys.startswith("*") else key.startswith(keys)

    def deadly(inner):
        @functools.wraps(inner)
        def change(self, key, *rest):
            if not is_meant(key):
                return inner(self, key, *rest)
            if moment == "before":
                die()
            if moment == "during":
                armed.set()
            result = inner(self, key, *rest)
            die()
            return result

        return change

    def dying_when_armed(inner):
        @functools.wraps(inner)
        def call(*arguments, **more):
            if armed.is_set():
                die()
            return inner(*arguments, **more)

        return call

    for store in (FolderStore, S3Store):
        for name in ("write", "create", "create_file", "replace", "delete"):
            setattr(store, name, deadly(getattr(store, name)))
    os.fsync = dying_when_armed(os.fsync)
    http.client.HTTPConnection.getresponse = dying_when_armed(http.client.HTTPConnection.getresponse)


def _ask_ec2_often(poll_s: float) -> None:
    import worker.__main__

    worker.__main__.listening = functools.partial(worker.__main__.listening, poll_s=poll_s)


def _shorten_windows(window_s: float) -> None:
    from worker.musicgen import Engine

    Engine.load = functools.partial(Engine.load, window_s=window_s)


def _shorten_songs(positions: int) -> None:
    """Have HeartMuLa's songs saved every so many positions."""
    from worker.heartmula import engine

    engine._EVERY = positions


if __name__ == "__main__":
    _parent(*sys.argv[1:])
