"""Moments as every file, message and tag holds them: UTC, to the second, `2026-11-22T19:50:59Z`.

Also the names of runs, which begin with one and so sort by time. Compares no clocks.
"""

import secrets
from datetime import UTC, datetime

_FORMAT = "%Y-%m-%dT%H:%M:%SZ"
_COMPACT = "%Y%m%dT%H%M%SZ"  # in names, where a colon may not stand


def now() -> str:
    """The timestamp of this moment, by this machine's clock."""
    return stamp(datetime.now(UTC))


def stamp(moment: datetime) -> str:
    """The timestamp of a moment, which has a time zone."""
    return moment.astimezone(UTC).strftime(_FORMAT)


def parse(text: str) -> datetime:
    """The moment of a timestamp. Raises ValueError."""
    return datetime.strptime(text, _FORMAT).replace(tzinfo=UTC)


def compact(moment: datetime) -> str:
    """`20261122T195059Z`: a timestamp fit for names of files and objects."""
    return moment.astimezone(UTC).strftime(_COMPACT)


def new_run_id(moment: datetime | None = None) -> str:
    """`20261122T195059Z-3f9a`: sorts by time, unique among machines."""
    return f"{compact(moment or datetime.now(UTC))}-{secrets.token_hex(2)}"
