"""`fab` and `inv` as processes of their own, without the second that each would import for.

A parent that has imported everything and done nothing forks a child for each command. The child has its own
folder, environment, streams and exit code, and reads our tasks anew, like a command that a user types.
"""

import importlib
import io
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from tests.fakes.forking import end_with, fork_for_each
from tests.parts import need

ROOT = Path(__file__).resolve().parents[2]
_MODULES = {"fab": "fabric.main", "inv": "invoke.main"}
_SLOW = [
    "boto3",
    "rich.table",
    "ops.ssh.phases",
    "ops.ssh.run_log",
    "ops.aws.account.bucket",
    "ops.aws.account.credentials",
    "ops.aws.cli",
    "ops.runpod.cli",
]


class Commands:
    """The parent, seen from the tests."""

    def __init__(self, address: str, folder: Path):
        self._address, self._folder, self._count = address, folder, itertools.count()

    def __call__(
        self,
        *argv: str,
        cwd: Path,
        env: Mapping[str, str],
        limit_s: float = 240,
        started: Callable[[int], object] = lambda pid: None,
    ) -> "subprocess.CompletedProcess[bytes]":
        """Run a command line that begins with `fab` or `inv` to its end, without a terminal.

        `started` is called with its process id.
        """
        own = f"{os.getpid()}-{next(self._count)}"
        out, err = (Path(self._folder, f"{own}.{name}") for name in ("out", "err"))
        asked = {"argv": argv, "cwd": str(cwd), "env": dict(env), "out": str(out), "err": str(err)}
        with socket.socket(socket.AF_UNIX) as line:
            line.settimeout(limit_s)
            line.connect(self._address)
            line.sendall(json.dumps(asked).encode() + b"\n")
            answers = line.makefile()
            pid = int(answers.readline())
            started(pid)
            try:
                code = int(answers.readline())
            except TimeoutError:
                os.kill(pid, signal.SIGKILL)
                raise
        return subprocess.CompletedProcess(argv, code, out.read_bytes(), err.read_bytes())


@contextmanager
def serving() -> Iterator[Commands]:
    """The parent of the commands. It ends with the block. Skips on a system that cannot fork."""
    need("fork", hasattr(os, "fork"))
    with tempfile.TemporaryDirectory(prefix="commands-") as folder:  # a socket's path is at most 107 long
        address = str(Path(folder, "socket"))
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(address)
            listener.listen()
            parent = subprocess.Popen(
                [sys.executable, "-m", "tests.fakes.commands", str(listener.fileno())],
                cwd=ROOT,
                stdin=subprocess.PIPE,
                pass_fds=[listener.fileno()],
            )
        with parent:  # its stdin is closed and it is waited for
            yield Commands(address, Path(folder))


def _parent(listener: socket.socket) -> None:
    for name in (*_MODULES.values(), *_SLOW):
        importlib.import_module(name)
    fork_for_each(listener, _mind)


def _mind(line: socket.socket) -> None:
    """Start one command and answer with its process, then its exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    asked = json.loads(line.makefile().readline())
    pid = os.fork()
    if pid == 0:
        line.close()
        end_with(lambda: _command(**asked))
    line.sendall(f"{pid}\n".encode())
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    line.sendall(f"{code}\n".encode())
    os._exit(0)


def _command(argv: list[str], cwd: str, env: dict[str, str], out: str, err: str) -> None:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    for number, path in ((0, os.devnull), (1, out), (2, err)):
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_TRUNC, 0o600)
        os.dup2(file, number)
        os.close(file)
    encoding = env.get("PYTHONIOENCODING", "utf-8")
    sys.stdin = open(0, closefd=False)  # noqa: SIM115
    sys.stdout = io.TextIOWrapper(open(1, "wb", closefd=False), encoding)  # noqa: SIM115
    sys.stderr = io.TextIOWrapper(
        open(2, "wb", buffering=0, closefd=False),  # noqa: SIM115
        encoding,
        errors="backslashreplace",
        write_through=True,
    )
    sys.argv = argv
    sys.modules[_MODULES[argv[0]]].program.run(argv)


if __name__ == "__main__":
    os.set_inheritable(number := int(sys.argv[1]), False)
    _parent(socket.socket(fileno=number))
