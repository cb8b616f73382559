"""A box in temporary folders: root, home, HOME and tmux server; its jobs do what their arguments say."""

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

REPOSITORY = Path(__file__).parents[2]

REQUIREMENTS = "songbird==1.0\n"
# What of the worker needs packages that a box's own Python lacks is not asked there.
_ENGINES = shutil.ignore_patterns("__pycache__", "musicgen", "heartmula", "decoding", "run", "observe")

# Stands for `python -m worker`: notes what it was given, then does what its arguments say.
WORKER = """
import json, os, signal, sys, time
from pathlib import Path

state = Path(os.environ["MUSICGEN_STATE_DIR"])
seen = {"argv": sys.argv[1:], "env": dict(os.environ), "cwd": os.getcwd()}
(state / "seen.json").write_text(json.dumps(seen))
doing = sys.argv[3:]
if "child" in doing and os.fork() == 0:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    (state / "child").write_text(str(os.getpid()))
    time.sleep(60)
if "deaf" in doing:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
if "stone-deaf" in doing:
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
for word in doing:
    if word.startswith("status="):
        (state / "status.json").write_text(word.partition("=")[2])
print("working", flush=True)
try:
    (state / "ready").touch()
    while "progress" in doing:
        (state / "status.json").write_text(json.dumps({"progress": time.time_ns()}))
        time.sleep(0.05)
    while "exit" not in doing:
        time.sleep(0.05)
except KeyboardInterrupt:
    print("checkpoint written", flush=True)
    sys.exit(75)
sys.exit(int(doing[doing.index("exit") + 1]))
"""

# Stands for remote/train.py: ends at SIGTERM with a checkpoint, and at SIGINT without one, as Trainer does.
TRAINING = """
import json, os, signal, sys, time
from pathlib import Path

state = Path(os.environ["MUSICGEN_STATE_DIR"])
seen = {"argv": sys.argv[1:], "env": dict(os.environ), "cwd": os.getcwd()}
(state / "seen.json").write_text(json.dumps(seen))
doing = sys.argv[1:]

def save(number, frame):
    print("checkpoint written", flush=True)
    sys.exit(75)

signal.signal(signal.SIGTERM, signal.SIG_IGN if "deaf" in doing else save)
for word in doing:
    if word.startswith("status="):
        (state / "status.json").write_text(word.partition("=")[2])
print("training", flush=True)
(state / "ready").touch()
while "exit" not in doing:
    if "talking" in doing:
        print("one more line", flush=True)
    time.sleep(0.05)
sys.exit(int(doing[doing.index("exit") + 1]))
"""


def until(true: Callable[[], object], seconds: float = 60) -> None:
    """Wait for a condition; fail if it does not come."""
    last = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < last, "it did not come true"
        time.sleep(0.02)


class Box:
    """A stand-in box with one release. Settings go to worker.env, as a user's do."""

    def __init__(self, folder: Path, tmux: Path):
        self.root, self.home = folder / "root", folder / "home"
        self.release = self.root / "releases" / "aaaa"
        self.env = {
            "HOME": str(folder / "user"),
            "PATH": "/usr/local/bin:/usr/bin:/bin",
            "LANG": "C.UTF-8",
            "TMUX_TMPDIR": str(tmux),
            "MUSICGEN_BOX_ROOT": str(self.root),
            "MUSICGEN_BOX_HOME": str(self.home),
            "MUSICGEN_WORKSPACE": str(folder / "workspace"),
            "MUSICGEN_PLATFORM_ENV": str(folder / "platform.env"),
        }
        (folder / "user").mkdir()
        (folder / "platform.env").touch()
        self.home.mkdir(mode=0o700)
        self.make_release(self.release)
        (self.root / "current").symlink_to(self.release)
        python = self.home / "venv" / "bin" / "python"
        python.parent.mkdir(parents=True)
        python.symlink_to(sys.executable)
        made_from = hashlib.sha256(REQUIREMENTS.encode()).hexdigest()
        (self.home / "venv.stamp").write_text(f"{made_from}  - python3\n")

    @staticmethod
    def make_release(release: Path) -> None:
        shutil.copytree(REPOSITORY / "remote", release / "remote")
        (release / "prompts.txt").write_text("calm ; 1 ; calm\n")
        (release / "requirements").mkdir()
        (release / "requirements" / "worker.txt").write_text(REQUIREMENTS)
        shutil.copytree(REPOSITORY / "worker", release / "worker", ignore=_ENGINES)
        (release / "worker" / "__main__.py").write_text(WORKER)
        (release / "remote" / "train.py").write_text(TRAINING)

    def settings(self, **values: str) -> None:
        file = self.home / "worker.env"
        file.write_text("".join(f"{name}='{value}'\n" for name, value in values.items()))
        file.chmod(0o600)

    def command(self, script: str, *arguments: str) -> list[str]:
        return ["bash", str(self.root / "current" / "remote" / script), *arguments]

    def sh(self, script: str, *arguments: str, **env: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            self.command(script, *arguments),
            env=self.env | env,
            capture_output=True,
            text=True,
            timeout=60,
            stdin=subprocess.DEVNULL,
        )

    def json(self, script: str, *arguments: str, **env: str) -> dict:
        """The answer of a command that succeeds."""
        done = self.sh(script, *arguments, **env)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout.splitlines()[-1])

    def status(self) -> dict:
        return self.json("session.sh", "status")

    def start(self, *worker: str, options: tuple[str, ...] = ()) -> dict:
        """Start a worker and wait until it works."""
        answer = self.json("session.sh", "start", *options, "--", *worker)
        state = Path(answer["state_dir"])
        until(lambda: (state / "ready").exists() or (state / "exit_code").exists())
        return answer

    def train(self, *training: str, options: tuple[str, ...] = ()) -> dict:
        """Start a training and wait until it trains."""
        return self.start(*training, options=("--job", "train", *options))

    @property
    def state(self) -> Path:
        return (self.root / "state" / "current").resolve()

    def ended(self) -> str:
        """The exit code of the newest run, once it has one."""
        until((self.state / "exit_code").exists)
        return (self.state / "exit_code").read_text()

    def hook(self, name: str = "hook", body: str = "") -> Path:
        """An executable that counts its calls in NAME.calls, one reason a line."""
        file = self.home / name
        file.write_text(f'#!/bin/sh\necho "$MUSICGEN_STOP_REASON" >> {file}.calls\n{body}\n')
        file.chmod(0o700)
        return file

    def calls(self, name: str = "hook") -> list[str]:
        file = self.home / f"{name}.calls"
        return file.read_text().splitlines() if file.exists() else []

    def close(self) -> None:
        pids = [self.home / "watchdog.pid", self.home / "worker.run"]
        numbers = [
            int(word) for file in pids if file.exists() for word in file.read_text().split() if word.isdigit()
        ]
        for pid in numbers:
            environ = Path(f"/proc/{pid}/environ")
            try:  # only what runs with this box's folders: a number may have been given again
                if str(self.root).encode() in environ.read_bytes():
                    os.kill(pid, signal.SIGKILL)
            except OSError:
                pass
        subprocess.run(["tmux", "kill-server"], env=self.env, capture_output=True)
