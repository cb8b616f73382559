"""Interleaved timing: on a noisy machine only ratios within one repetition are reliable."""

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Spread:
    """Median, least and greatest of the repetitions."""

    median: float
    least: float
    greatest: float
    n: int

    @classmethod
    def of(cls, values: list[float]) -> "Spread":
        """From one value for each repetition."""
        return cls(statistics.median(values), min(values), max(values), len(values))


def seconds(act: Callable[[], object]) -> float:
    """Wall-clock seconds of one call, including the work on the GPU."""
    started = time.perf_counter()
    act()
    return now() - started


def now() -> float:
    """The clock's seconds once the GPU has done what it was asked."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return time.perf_counter()


def interleaved(
    sides: Mapping[str, Callable[[], object]],
    repetitions: int,
    before: Mapping[str, Callable[[], object]] | None = None,
) -> dict[str, list[float]]:
    """Seconds of each side, run in the order A B C A B C ...; one value for each repetition.

    `before`: what each side runs first, untimed. A system that is short of memory pages out what the
    other sides left unused for minutes.
    """
    took: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repetitions):
        for name, act in sides.items():
            if before:
                before[name]()
            took[name].append(seconds(act))
    return took


def rates(units: float, took: list[float]) -> list[float]:
    """Units per second of each repetition."""
    return [units / t for t in took]


def ratios(fast: list[float], slow: list[float]) -> list[float]:
    """For each pair, how many times as fast."""
    return [f / s for f, s in zip(fast, slow, strict=True)]
