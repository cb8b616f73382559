"""What ends train.py in one line: `error: what happened; what to do`, with its exit code."""

from __future__ import annotations


class Refusal(Exception):
    """Something is wrong that the user can put right; no training was started."""

    code = 2


class Failure(Exception):
    """A step failed that may work another time."""

    code = 1
