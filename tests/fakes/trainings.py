"""A `python` that trains examples/train for real, without the imports that take longer than the training.

A parent that has imported transformers and done nothing forks a child for each training. The `python` passes
on its folder, environment, streams and SIGTERM, ends as the child ends, and takes it along if it is killed.
Whatever else it is asked to run, it runs itself.
"""

import array
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.fakes.forking import end_with, fork_for_each
from tests.parts import need

ROOT = Path(__file__).resolve().parents[2]
EXAMPLE = ROOT / "examples" / "train"

_PYTHON = """#!{base} -IS
import json, os, signal, socket, sys

argv = sys.argv[1:]
if not (argv and argv[0].endswith("examples/train/train.py")):
    os.execv({python!r}, [{python!r}, *argv])
line = socket.socket(socket.AF_UNIX)
line.connect({address!r})
socket.send_fds(line, [b"\\n"], [1, 2])
line.sendall(json.dumps([argv, os.getcwd(), dict(os.environ)]).encode() + b"\\n")
answers = line.makefile()
pid = int(answers.readline())
signal.signal(signal.SIGTERM, lambda *_: os.kill(pid, signal.SIGTERM))
code = int(answers.readline())
if code < 0:
    signal.signal(-code, signal.SIG_DFL)
    os.kill(os.getpid(), -code)
sys.exit(code)
"""


@contextmanager
def serving() -> Iterator[Path]:
    """The path of that `python`. The parent ends with the block. Skips on a system without what it takes."""
    need("pidfd_open of Linux", hasattr(os, "pidfd_open"))
    with tempfile.TemporaryDirectory(prefix="trainings-") as folder:  # a socket's path is at most 107 long
        address = str(Path(folder, "socket"))
        python = Path(folder, "python")
        base = getattr(sys, "_base_executable", sys.executable)
        python.write_text(_PYTHON.format(base=base, python=sys.executable, address=address))
        python.chmod(0o755)
        with socket.socket(socket.AF_UNIX) as listener:
            listener.bind(address)
            listener.listen()
            parent = subprocess.Popen(
                [sys.executable, "-m", "tests.fakes.trainings", str(listener.fileno())],
                cwd=ROOT,
                env=os.environ | {"OMP_NUM_THREADS": "1"},  # no threads that a fork would lose
                stdin=subprocess.PIPE,
                pass_fds=[listener.fileno()],
            )
        with parent:  # its stdin is closed and it is waited for
            yield python


def _parent(listener: socket.socket) -> None:
    import accelerate  # noqa: F401
    import torch.utils.tensorboard  # noqa: F401
    from transformers import Seq2SeqTrainer  # noqa: F401
    from transformers.models.whisper import WhisperFeatureExtractor, WhisperForConditionalGeneration  # noqa: F401

    fork_for_each(listener, _mind)


def _mind(line: socket.socket) -> None:
    """Start one training, answer with its process, then its exit code."""
    signal.signal(signal.SIGCHLD, signal.SIG_DFL)
    _, streams, _, _ = socket.recv_fds(line, 1, 2)
    argv, cwd, env = json.loads(line.makefile().readline())
    pid = os.fork()
    if pid == 0:
        line.close()
        end_with(lambda: _train(argv, cwd, env, array.array("i", streams).tolist()))
    line.sendall(f"{pid}\n".encode())
    ended = os.pidfd_open(pid)
    if ended not in select.select([ended, line.fileno()], [], [])[0]:
        os.kill(pid, signal.SIGKILL)  # its `python` was killed
    code = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
    try:
        line.sendall(f"{code}\n".encode())
    finally:
        os._exit(0)


def _train(argv: list[str], cwd: str, env: dict[str, str], streams: list[int]) -> None:
    os.chdir(cwd)
    os.environ.clear()
    os.environ.update(env)
    for number, stream in enumerate(streams, start=1):
        os.dup2(stream, number)
        os.close(stream)
    sys.argv = argv
    runpy.run_path(argv[0], run_name="__main__")


if __name__ == "__main__":
    os.set_inheritable(number := int(sys.argv[1]), False)
    _parent(socket.socket(fileno=number))
