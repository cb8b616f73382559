"""What a model family gives the scheduler: its stepper, and a plan for each song.

A position is one key and value of a song in its slot's cache. A song goes through a slot in passes: it
can be resumed exactly at the end of each.
"""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from typing import Protocol

import torch

from worker.engine import Song, Tokens


@dataclass
class Work:
    """A song in progress: its tokens so far, and the seconds charged so far."""

    song: Song
    tokens: Tokens  # [n_codebooks, n_frames]; TO_GENERATE marks a missing token
    generation_s: float = 0.0


class Stepper(Protocol):
    """All slots on the device, and the step that advances every running one by a position."""

    slots: int
    dtype: torch.dtype

    def fill(self, slot: int, start: int, end: int) -> None:
        """Compute the keys and values of positions [start, end), whose tokens are known."""

    def start(self, slot: int) -> None:
        """Let the slot advance from the next step on."""

    def stop(self, slot: int) -> None:
        """Make the slot idle. Its pass was saved; the next one is opened, or the slot is left."""

    def move(self, source: int, target: int, n_filled: int) -> None:
        """Move a song into an idle slot, with the keys and values of its first `n_filled` positions."""

    def leave(self, slot: int) -> None:
        """The slot's song is over."""

    def is_broken(self, slot: int) -> bool:
        """True if the slot's logits were not finite at some step. Waits for the device."""

    def mark(self) -> Callable[[], None]:
        """A function that waits until the device has made all steps so far."""

    def step(self, n_reached: int, n_slots: int) -> None:
        """Advance the running ones of the first `n_slots` slots by one position.

        Each of them is at a position before `n_reached`.
        """


@dataclass(frozen=True)
class Pass:
    """A pass that was put into a slot: it is at `position`, and complete when it is at `last`.

    Keys and values of the positions before `filled` are there; those up to `position` are filled next.
    """

    filled: int
    position: int
    last: int


class Plan(Protocol):
    """One song's way through a slot. It alone knows how its family lays tokens out."""

    work: Work

    @property
    def is_complete(self) -> bool:
        """True if no pass is left."""

    def begin(self, slot: int) -> None:
        """Give the slot the song's text."""

    def open(self, slot: int) -> Pass:
        """Put the next pass into the slot."""

    def save(self, slot: int) -> None:
        """Copy every token that the slot has made to `work`. Waits for the device."""

    def close(self) -> None:
        """The pass was saved and is over: the next one is the following, if there is any.

        A song that ended before the length that was asked has none; its tokens are cut to what it has.
        """

    def n_done(self, position: int) -> int:
        """Frames that are made when the pass is at this position."""


@dataclass(frozen=True)
class Endings:
    """Songs may end before the length that was asked: how to know which have.

    `ended` returns those of the first slots that are running no more, and waits for the device; it is
    asked after every so many steps.
    """

    ended: Callable[[int], Collection[int]]
    every: int
