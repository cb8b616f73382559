"""Helpers for this folder's tests: an interruption that polls EC2's stand-in often."""

import threading
import time
from contextlib import contextmanager

from worker.host.signals import listening

ENDPOINT = "AWS_EC2_METADATA_SERVICE_ENDPOINT"


OFF = {"AWS_EC2_METADATA_DISABLED": "true"}


@contextmanager
def watched(url, **env):
    """An interruption that polls EC2's stand-in at `url` often, and its lines."""
    said = []
    with listening({ENDPOINT: url, **env}, poll_s=0.02, say=said.append) as interruption:
        yield interruption, said


def until(true, limit_s=20.0):
    """Wait until this is true; fail if that takes too long."""
    last_s = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < last_s, "took too long"
        time.sleep(0.01)


def polling():
    """The threads that poll EC2 at this moment."""
    return [thread for thread in threading.enumerate() if thread.name == "ec2-notices"]
