"""Streams with a closed pipe or a full disk: no error, and what can be written is written."""

import os
from pathlib import Path

import pytest

from worker.host.streams import Lasting

posix_only = pytest.mark.skipif(os.name == "nt", reason="needs /dev/full")


def test_everything_is_written_however_little_is_taken_at_a_time():
    class Slow:
        def __init__(self):
            self.taken = b""

        def write(self, content):
            self.taken += bytes(content[:3])
            return min(len(content), 3)

    slow = Slow()
    assert Lasting(slow).write(b"ten bytes!") == 10
    assert slow.taken == b"ten bytes!"


def test_closed_pipe_is_no_error():
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "wb", buffering=0) as raw:
        assert Lasting(raw).write(b"nobody reads") == 12


@posix_only
def test_full_disk_is_no_error():
    with Path("/dev/full").open("wb", buffering=0) as raw:
        assert Lasting(raw).write(b"no room") == 7
