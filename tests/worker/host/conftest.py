"""Python processes to signal, and EC2's metadata stand-in."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.fakes import imds

ROOT = Path(__file__).parents[3]


@pytest.fixture
def child():
    """Starts Python processes that run a script that can import this project; they end with the test."""
    started = []

    def start(script, *arguments, **env):
        process = subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT), **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def metadata():
    with imds.serving() as machine:
        yield machine
