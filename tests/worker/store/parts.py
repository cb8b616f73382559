"""What the tests of stores share."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from worker.errors import UserError

posix_only = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals, pipes or users")


def child(script: str, *args: object, **options) -> subprocess.Popen:
    """A Python process that runs `script` with our modules at hand."""
    root = Path(__file__).parents[3]
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, args)],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        text=True,
        **options,
    )


def names_in(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def error_of(act, *args) -> UserError:
    """The UserError that this raises: one line, what happened and what to do, no traceback below it."""
    with pytest.raises(UserError) as caught:
        act(*args)
    text = str(caught.value)
    assert "; " in text and "\n" not in text
    assert caught.value.__suppress_context__ or caught.value.__context__ is None
    assert "planted-secret" not in text
    return caught.value
