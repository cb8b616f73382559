"""Who is informed of what a run does. An observer reads and never steers.

Every method may be called from any thread.
"""

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

from worker.engine import Progress
from worker.errors import UserError
from worker.run.request import RunRequest
from worker.songs.records import Record, Survey

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Begun:
    """A song that this run gives to its engine, and what it comes with from an earlier run."""

    song: str
    at: str  # timestamp
    n_made: int = 0  # frames, from its checkpoint
    n_frames: int = 0  # that it will have; 0: not known before the engine has it
    charged_s: float = 0.0  # generation time of earlier runs
    n_resumed: int = 0  # how often it was resumed, this time included
    continues: str = ""  # the song or file that its first frames are from, if they are new to it


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
    """Several observers, informed in turn. A fault in one costs neither the song nor the others' news."""

    def __init__(self, *observers: Observer):
        self._observers = observers

    def planned(self, found: Survey, request: RunRequest) -> None:
        self._each(lambda observer: observer.planned(found, request))

    def begun(self, song: Begun) -> None:
        self._each(lambda observer: observer.begun(song))

    def progress(self, event: Progress) -> None:
        self._each(lambda observer: observer.progress(event))

    def made(self, record: Record) -> None:
        self._each(lambda observer: observer.made(record))

    def made_elsewhere(self, song: str) -> None:
        self._each(lambda observer: observer.made_elsewhere(song))

    def failed(self, song: str, reason: str) -> None:
        self._each(lambda observer: observer.failed(song, reason))

    def saved(self, songs: Sequence[str]) -> None:
        self._each(lambda observer: observer.saved(songs))

    def note(self, event: str, text: str, *, level: str = "info", **facts: object) -> None:
        self._each(lambda observer: observer.note(event, text, level=level, **facts))

    def _each(self, inform: Callable[[Observer], None]) -> None:
        for observer in self._observers:
            try:
                inform(observer)
            except UserError:  # the store takes no report, for example: that ends the run
                raise
            except Exception:
                log.exception("%s failed; the run continues", type(observer).__name__)
