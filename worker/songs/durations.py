"""Durations of songs as people write them: `30`, `12,5`, `30s`, `2 min`, `1 min 30 s`, `3:00`.

The written form does not matter: `3:00` and `180` are the same number, hence the same song.
"""

import re
from decimal import Decimal

_UNITS = {
    1: ("s", "sec", "secs", "second", "seconds"),
    60: ("m", "min", "mins", "minute", "minutes"),
    3600: ("h", "hr", "hour", "hours"),
}
_SECONDS_OF = {name: seconds for seconds, names in _UNITS.items() for name in names}
_NUMBER = r"[0-9]{1,6}(?:[.,][0-9]{1,2})?"  # not 1,000: it may mean one or a thousand
_CLOCK = re.compile(r"(?:([0-9]{1,2}):)?([0-9]{1,3}):([0-5][0-9](?:[.,][0-9]{1,2})?)")
_PART = re.compile(rf"({_NUMBER})\s*([a-z]+)\.?\s*", re.I)


def in_seconds(text: str) -> Decimal | None:
    """The seconds that a text other than a plain number means; None if it is not a duration."""
    if re.fullmatch(_NUMBER, text):
        return _decimal(text)
    if clock := _CLOCK.fullmatch(text):
        return int(clock[1] or 0) * 3600 + int(clock[2]) * 60 + _decimal(clock[3])
    total, end, last_unit = Decimal(0), 0, 3601
    while end < len(text):
        part = _PART.match(text, end)
        unit = _SECONDS_OF.get(part[2].lower()) if part else None
        if part is None or unit is None or unit >= last_unit:
            return None
        total, end, last_unit = total + _decimal(part[1]) * unit, part.end(), unit
    return total if end else None


def _decimal(text: str) -> Decimal:
    return Decimal(text.replace(",", "."))
