"""The result of one check of check.py, and what the checks share."""

import os
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.append(str(Path(__file__).resolve().parents[1]))  # the release, for `worker`

from worker.models import needs
from worker.models.needs import Needs

GB = 10**9


class Check(NamedTuple):
    """One check; `ok` may be "warn": the run will work, but see the detail."""

    name: str
    ok: bool | str
    detail: str
    remedy: str = ""


Checks = Callable[[], Iterator[Check]]


def model_name() -> str:
    """The model that a run here would load, as it is set."""
    return os.environ.get("MUSICGEN_MODEL") or "facebook/musicgen-medium"


def needed() -> Needs:
    """What that model needs of this machine."""
    return needs.of(model_name(), os.environ)


def existing(path: Path) -> Path:
    """The path, or the nearest folder above it that exists."""
    return next(folder for folder in (path, *path.parents) if folder.exists())


def not_writable(folder: Path) -> str:
    """Why a real write fails there; empty if it works. A volume over its quota still reports free space."""
    try:
        with tempfile.TemporaryFile(dir=folder) as file:
            file.write(b"0" * 2**20)
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        return error.strerror or str(error)
    return ""


def line(error: BaseException) -> str:
    """One line on an error. Of an AWS error only the code: its text may quote the request."""
    answer = getattr(error, "response", None)
    if isinstance(answer, dict) and "Error" in answer:
        return f"{getattr(error, 'operation_name', 'AWS')}: {answer['Error'].get('Code')}"
    text = (str(error).strip().splitlines() or [""])[0]
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def tried(name: str, what: Callable[[], str], remedy: str) -> Check:
    """A check that has passed if `what` returns its detail, and failed if it raises."""
    try:
        return Check(name, True, what())
    except Exception as error:  # botocore's errors and the network's have no common base
        return Check(name, False, line(error), remedy)
