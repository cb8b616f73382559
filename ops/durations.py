"""Durations as users write them: `90m`, `12h`, `7d`."""

import re
from datetime import timedelta

from worker.errors import BadInput

_UNITS = {"s": 1, "m": 60, "h": 3600, "d": 86400}
_DURATION = re.compile(r"([0-9]+(?:\.[0-9]+)?)\s*([smhd])")


def parse(text: str, what: str) -> timedelta:
    """The duration that a text like `12h` gives. Raises BadInput, which names it `what`."""
    match = _DURATION.fullmatch(text.strip().lower())
    amount = float(match[1]) * _UNITS[match[2]] if match else 0.0
    if not 0 < amount <= 366 * 86400:
        raise BadInput(f"{what} {text!r} is not a duration; write it like 90m, 12h or 7d")
    return timedelta(seconds=amount)
