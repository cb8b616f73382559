"""A box of its own for each test."""

import shutil
import tempfile
from pathlib import Path

import pytest

from tests.parts import need
from tests.remote.boxes import Box


@pytest.fixture
def box(tmp_path):
    need("tmux", shutil.which("tmux") is not None)
    need("flock of util-linux", shutil.which("flock") is not None)
    tmux = Path(tempfile.mkdtemp(prefix="tmux-"))  # a socket's path has at most 107 characters
    made = Box(tmp_path, tmux)
    yield made
    made.close()
    shutil.rmtree(tmux)
