"""The training's own Python environment, on the box's own disk, keyed by its requirements.

Made with the image's Python and what that has, so that an image's torch that fits is used and gigabytes are
not fetched again. Whatever has a wrong version there is installed anew, in the environment alone.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

from .output import Output
from .refusal import Failure, Refusal

_INCLUDE = re.compile(r"(?:-r|-c|--requirement|--constraint)[ =]*(\S+)")
_DISK_FULL = re.compile(r"no space left on device|disk quota exceeded|os error (28|122)|errno (28|122)", re.I)
_SECRET = re.compile(r"TOKEN|KEY|SECRET|PASSWORD")


def prepare(requirements: Path, home: Path) -> Path:
    """The Python of the environment for these requirements, made if it is not there.

    Raises Refusal, or Failure if it cannot be made.
    """
    if not requirements.is_file():
        raise Refusal(f"there are no requirements {requirements}; name the file with --requirements")
    environments = home / "training"
    made = environments / key(requirements)
    python = made / "bin" / "python"
    if (made / "complete").exists():
        print("--- environment is up to date", flush=True)
        return python
    # one training at a time: the others are of earlier requirements
    shutil.rmtree(environments, ignore_errors=True)
    environments.mkdir(parents=True)
    print(f"--- environment for {requirements.name}", flush=True)
    _run([sys.executable, "-m", "venv", "--without-pip", "--system-site-packages", str(made)])
    _run([*_installer(python, home), "-r", str(requirements)])
    (made / "complete").touch()
    return python


def key(requirements: Path) -> str:
    """The name of the environment: it changes with any file of requirements, and with the image's Python."""
    digest = hashlib.sha256(f"{sys.executable} {sys.version}".encode())
    for file in _included(requirements):
        digest.update(file.read_bytes() + b"\0")
    return digest.hexdigest()[:16]


def _included(file: Path, seen: frozenset[Path] = frozenset()) -> Iterator[Path]:
    """This file and those that its lines name."""
    if file in seen or not file.is_file():
        return
    yield file
    for line in file.read_text("utf-8", "replace").splitlines():
        if found := _INCLUDE.match(line.strip()):
            yield from _included(file.parent / found[1], seen | {file})


def _installer(python: Path, home: Path) -> list[str]:
    # The image's pip, which the environment sees, knows of the image's packages; uv does not.
    if subprocess.run([python, "-m", "pip", "--version"], capture_output=True).returncode == 0:
        return [str(python), "-m", "pip", "install", "--no-input"]
    uv = shutil.which("uv", path=f"{os.environ.get('PATH', '')}:{home / 'uv' / 'bin'}")
    if uv is None:
        raise Failure(
            f"{sys.executable} has no pip, and there is no uv; run the install phase first: fab install"
        )
    return [uv, "pip", "install", "--python", str(python)]


def _run(command: list[str]) -> None:
    env = {
        name: value
        for name, value in os.environ.items()
        if name.startswith(("PIP_", "UV_")) or not _SECRET.search(name)
    }
    process = subprocess.Popen(
        command, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
    )
    with process:
        assert process.stdout is not None  # noqa: S101
        output = Output(process.stdout, 1)  # as it comes: the watchdog takes a log that grows for work
        try:
            process.wait()
        except BaseException:
            process.kill()
            raise
        finally:
            tail = output.close()
    if process.returncode == 0:
        return
    if _DISK_FULL.search(tail):
        raise Failure("the environment cannot be made: this box's disk is full; rent a box with a larger one")
    raise Failure("the environment cannot be made, its last lines are above; correct the requirements")
