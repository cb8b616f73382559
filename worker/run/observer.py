"""Who is informed of what a run does. An observer reads and never steers.

Every method may be called from any thread.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from worker.engine import Progress
from worker.run.request import RunRequest
from worker.songs.records import Record, Survey


@dataclass(frozen=True)
class Begun:
    """A song that this run gives to its engine, and what it comes with from an earlier run."""

    song: str
    at: str  # timestamp
    n_made: int = 0  # frames, from its checkpoint
    n_frames: int = 0  # that it will have; 0: not known before the engine has it
    charged_s: float = 0.0  # generation time of earlier runs
    n_resumed: int = 0  # how often it was resumed, this time included


class Observer(Protocol):
    """What a run reports."""

    def planned(self, found: Survey, request: RunRequest) -> None: ...
    def begun(self, song: Begun) -> None: ...
    def progress(self, event: Progress) -> None: ...
    def made(self, record: Record) -> None: ...
    def made_elsewhere(self, song: str) -> None:
        """Another run has made it meanwhile."""

    def failed(self, song: str, reason: str) -> None:
        """This run will not make it."""

    def saved(self, songs: Sequence[str]) -> None:
        """The run ends, and these are left for the next one to resume."""

    def note(self, event: str, text: str, *, level: str = "info", **facts: object) -> None:
        """Anything else worth a line: `event` is a stable word, `text` is for people."""


class Observers:
    """Several observers, informed in turn."""

    def __init__(self, *observers: Observer):
        self._observers = observers

    def planned(self, found: Survey, request: RunRequest) -> None:
        for observer in self._observers:
            observer.planned(found, request)

    def begun(self, song: Begun) -> None:
        for observer in self._observers:
            observer.begun(song)

    def progress(self, event: Progress) -> None:
        for observer in self._observers:
            observer.progress(event)

    def made(self, record: Record) -> None:
        for observer in self._observers:
            observer.made(record)

    def made_elsewhere(self, song: str) -> None:
        for observer in self._observers:
            observer.made_elsewhere(song)

    def failed(self, song: str, reason: str) -> None:
        for observer in self._observers:
            observer.failed(song, reason)

    def saved(self, songs: Sequence[str]) -> None:
        for observer in self._observers:
            observer.saved(songs)

    def note(self, event: str, text: str, *, level: str = "info", **facts: object) -> None:
        for observer in self._observers:
            observer.note(event, text, level=level, **facts)
