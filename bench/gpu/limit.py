"""Measurements in the order of their importance, until a time limit; one that fails stops no other."""

import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

from bench.figures import Fault, Figure


@dataclass(frozen=True)
class Measurement:
    """What can be measured by itself."""

    case: str
    what: str
    run: Callable[[], Iterator[Figure]]


@dataclass(frozen=True)
class LeftOut:
    """A measurement that was not begun: the longest one so far took longer than what was left."""

    case: str
    what: str
    left_s: float

    def line(self) -> str:
        """As text."""
        return f"{self.case:6} {self.what}: left out, {max(self.left_s, 0):.0f} s are left"


def within(
    limit_s: float,
    measurements: Sequence[Measurement],
    recover: Callable[[], None],
    clock: Callable[[], float] = time.monotonic,
) -> Iterator[Figure | LeftOut]:
    """Each figure as it comes. What raises becomes a Fault, and `recover` is called.

    A measurement begins if at least as much time is left as the longest one took so far.
    """
    began, longest = clock(), 0.0
    for measurement in measurements:
        started = clock()
        left = began + limit_s - started
        if left <= longest:
            yield LeftOut(measurement.case, measurement.what, left)
            continue
        try:
            yield from measurement.run()
        except Exception as error:
            traceback.print_exc()
            reason = str(error).strip().partition("\n")[0][:200]
            note = f"failed: {type(error).__name__}: {reason}"
            yield Fault(measurement.case, measurement.what, "", None, note=note)
            recover()
        longest = max(longest, clock() - started)
