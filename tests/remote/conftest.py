"""A box of its own for each test."""

import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.parts import need
from tests.remote.boxes import Box


@contextmanager
def made(folder):
    """A box in this folder; it ends with the block."""
    need("tmux", shutil.which("tmux") is not None)
    need("flock of util-linux", shutil.which("flock") is not None)
    tmux = Path(tempfile.mkdtemp(prefix="tmux-"))  # a socket's path has at most 107 characters
    box = Box(folder, tmux)
    try:
        yield box
    finally:
        box.close()
        shutil.rmtree(tmux)


@pytest.fixture
def box(tmp_path):
    with made(tmp_path) as box:
        yield box


@pytest.fixture(scope="module")
def shared_box(tmp_path_factory):
    """One for all tests of a file that leave it as the next one can use it."""
    with made(tmp_path_factory.mktemp("box")) as box:
        yield box
