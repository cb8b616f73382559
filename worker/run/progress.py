"""How far a run is: songs and frames made and left, the rate of the last minute, the time left.

Told what happens, and the time it happens at: no clock, no files, no threads. What a song came
with, from a checkpoint, counts as done and not as made.
"""

import math
from collections import deque
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from worker.songs.status import Frames, InWork, Songs

_RATE_OVER_S = 60.0
# The engine tells of a song after a second of it at most. What is there beyond that when a song is
# first seen came from a checkpoint.
_FIRST_S = 2.0


class Tally:
    """What a run has done. Every method that tells of work lets `progress` grow."""

    def __init__(self) -> None:
        self.progress = 0  # only grows; by one for each frame made, and for each other piece of work
        self._n_asked = self._n_done = self._n_made = self._n_failed = 0
        self._parts: dict[str, _Part] = {}
        self._in_work: Mapping[str, tuple[int, int]] = {}
        self._made_s = 0.0  # seconds of audio
        self._samples: deque[tuple[float, float]] = deque()  # (when, _made_s), a second apart or more

    def planned(self, n_asked: int, n_done: int, todo: Mapping[str, float]) -> None:
        """`todo`: song -> seconds, of the songs to make."""
        self._n_asked, self._n_done = n_asked, n_done
        self._parts = {song: _Part(seconds) for song, seconds in todo.items()}
        self.progress += 1

    def in_work(self, frames: Mapping[str, tuple[int, int]], now_s: float) -> None:
        """The songs in work are this far: `{song: (n_done, n_frames)}`."""
        for song, (n_done, n_frames) in frames.items():
            if part := self._parts.get(song):
                self._move(part, n_done, n_frames)
        self._in_work = frames
        self._sample(now_s)

    def made(self, song: str) -> None:
        """This run has finished a song."""
        self._n_made += 1
        if part := self._leave(song):
            if part.n_frames:  # else it came with all of them
                self._move(part, part.n_frames, part.n_frames)
            part.is_there = True

    def made_elsewhere(self, song: str) -> None:
        """Another run has made it meanwhile."""
        self._n_done += 1
        if part := self._leave(song):
            part.is_there = True

    def failed(self, song: str) -> None:
        """It will not be made."""
        self._n_failed += 1
        if part := self._leave(song):
            part.is_lost = True

    # --- what follows from it

    def songs(self) -> Songs:
        """Those that are kept as they are count as asked only."""
        return Songs(
            asked=self._n_asked,
            done=self._n_done + self._n_made,
            made=self._n_made,
            failed=self._n_failed,
            left=sum(not (part.is_there or part.is_lost) for part in self._parts.values()),
        )

    def frames(self) -> Frames:
        """Of the songs to make. Nothing is known of their number until one is in work."""
        parts = self._parts.values()
        # A song's frames cover its seconds, so each quotient is the frame rate or a little more.
        per_s = min((part.n_frames / part.seconds for part in parts if part.n_frames), default=0.0)
        each = [part.frames(per_s) for part in parts]
        return Frames(sum(n_done for n_done, _ in each), sum(n_frames for _, n_frames in each))

    def current(self) -> Iterable[InWork]:
        """The songs in work."""
        return (InWork(song, n_done, n_frames) for song, (n_done, n_frames) in self._in_work.items())

    def rate(self, now_s: float) -> float | None:
        """Seconds of audio per second, in the last minute of generation; None in its first second."""
        if not self._samples:
            return None
        self._sample(now_s)
        since, made_s = self._samples[0]
        return (self._made_s - made_s) / (now_s - since) if now_s - since >= 1 else None

    def left_s(self) -> float:
        """Seconds of audio still to make."""
        return sum(part.left_s for part in self._parts.values())

    def _move(self, part: "_Part", n_done: int, n_frames: int) -> None:
        frame_s = part.seconds / n_frames
        n_made = n_done - part.n_done
        if part.n_frames is None:
            self.progress += 1
            n_made = n_done if n_done * frame_s <= _FIRST_S else 0
        if n_made > 0:
            self.progress += n_made
            self._made_s += n_made * frame_s
        # It may be less than before: a song can start over.
        part.n_done, part.n_frames = n_done, n_frames

    def _leave(self, song: str) -> "_Part | None":
        self._in_work = {key: frames for key, frames in self._in_work.items() if key != song}
        self.progress += 1
        return self._parts.get(song)

    def _sample(self, now_s: float) -> None:
        if not self._samples or now_s - self._samples[-1][0] >= 1:
            self._samples.append((now_s, self._made_s))
        while len(self._samples) > 1 and self._samples[1][0] <= now_s - _RATE_OVER_S:
            self._samples.popleft()


@dataclass
class _Part:
    """What is known of one song to make."""

    seconds: float
    n_done: int = 0
    n_frames: int | None = None  # None: it was not in work yet
    is_there: bool = False
    is_lost: bool = False

    @property
    def left_s(self) -> float:
        """Seconds of audio."""
        if self.is_there or self.is_lost:
            return 0.0
        return self.seconds * (1 - self.n_done / self.n_frames) if self.n_frames else self.seconds

    def frames(self, per_s: float) -> tuple[int, int]:
        """(done, total); `per_s` serves until the song itself has told. A lost one has no more to do."""
        n_frames = self.n_frames or math.ceil(self.seconds * per_s - 1e-6)
        if self.is_there:
            return n_frames, n_frames
        return self.n_done, self.n_done if self.is_lost else n_frames
