"""How far a run is and how fast: the one source of every speed, ETA and count of frames.

Speed counts only what this run makes: what a song brings from a checkpoint is done, not made.
An observer of the run, read by the console, the heartbeat and the ledger. Safe to share between
threads. Has a clock, and neither files nor threads.
"""

import heapq
import math
import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from statistics import fmean

from worker.engine import Progress
from worker.run.observer import Begun
from worker.run.request import RunRequest
from worker.songs.records import Record, Survey
from worker.songs.status import Frames, InProgress, Songs

_RATE_OVER_S = 60.0
# Notes of work done. Others, such as waiting for the store, can come while nothing is done.
_WORK = {"checkpoint", "stopping", "finishing"}


class ProgressMeter:
    """Counts one run's songs and frames. `work` only grows: by one for each frame made or other work done."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        # Reentrant: a signal handler may call in the middle of a call.
        self._lock = threading.RLock()
        self.work = 0
        self._n_asked = self._n_done_before = 0
        self._songs: dict[str, _Song] = {}  # the songs to make
        self._in_progress: list[str] = []
        self._n_slots = 0  # as far as they were seen in use
        self._made_s = 0.0
        self._speed = _Speed()
        self._generating_s = 0.0  # as of _changed_s
        self._changed_s = 0.0  # when _in_progress last changed

    # --- what happens (Observer)

    def planned(self, found: Survey, request: RunRequest) -> None:
        chosen = {job.song for job in request.selected}
        with self._lock:
            self._n_asked = len(chosen)
            self._n_done_before = sum(job.song in chosen for job in found.done)
            self._songs = {job.song: _Song(job.seconds) for job in found.todo if job.song in chosen}
            self.work += 1

    def begun(self, song: Begun) -> None:
        with self._lock:
            self.work += 1
            if known := self._songs.get(song.song):
                known.n_done = song.n_made
                known.n_frames = song.n_frames or known.n_frames
                known.speed = _Speed()

    def progress(self, event: Progress) -> None:
        with self._lock:
            before, current = self._in_progress, [name for name in event.frames if name in self._songs]
            # Out of memory, the engine puts songs off and continues with fewer slots.
            put_off = any(self._songs[name].left_s for name in before if name not in current)
            self._n_slots = len(current) if put_off or not before else max(self._n_slots, len(current))
            self._change(current)
            for name in current:
                song = self._songs[name]
                if name not in before:
                    song.speed = _Speed()
                self._advance(song, *event.frames[name])
                song.speed.note(self._now_s(), song.done_s)
            self._speed.note(self._now_s(), self._made_s)

    def made(self, record: Record) -> None:
        with self._lock:
            song = self._ended(record.song, "made")
            if song and song.n_frames:
                n_made = round(song.n_frames * record.length_s / record.seconds)
                self._advance(song, max(song.n_done, n_made), song.n_frames)

    def made_elsewhere(self, song: str) -> None:
        with self._lock:
            self._ended(song, "made elsewhere")

    def failed(self, song: str, reason: str) -> None:
        with self._lock:
            self._ended(song, "failed")

    def saved(self, songs: Sequence[str]) -> None:
        with self._lock:
            self.work += len(songs)
            self._change([name for name in self._in_progress if name not in songs])

    def note(self, event: str, text: str, *, level: str = "info", **facts: object) -> None:
        if event in _WORK:
            self.alive()
        if event == "overflow":  # the song starts over in a wider engine, which is loaded later
            with self._lock:
                self._change([name for name in self._in_progress if name != facts.get("song")])
                if song := self._songs.get(str(facts.get("song"))):
                    song.n_done = 0

    def alive(self, n: int = 1) -> None:
        """Work was done that no other call reports: a part loaded, decoded, uploaded."""
        with self._lock:
            self.work += n

    # --- what follows from it

    @property
    def made_s(self) -> float:
        """Seconds of audio that this run has generated."""
        with self._lock:
            return self._made_s

    def songs(self) -> Songs:
        """Those that are kept as they are count as asked only."""
        with self._lock:
            n = Counter(song.end for song in self._songs.values())
            return Songs(
                asked=self._n_asked,
                done=self._n_done_before + n["made"] + n["made elsewhere"],
                made=n["made"],
                failed=n["failed"],
                left=n[None],
            )

    def frames(self) -> Frames:
        """Of the songs to make. Their number is not known until the first is in progress."""
        with self._lock:
            songs = self._songs.values()
            # A song's frames cover its seconds, so each quotient is the frame rate or a little more.
            per_s = min((song.n_frames / song.seconds for song in songs if song.n_frames), default=0.0)
            each = [song.frames(per_s) for song in songs]
            return Frames(sum(n_done for n_done, _ in each), sum(n_frames for _, n_frames in each))

    def seconds(self) -> tuple[float, float]:
        """Audio of the songs to make: (done, total), failed songs left out."""
        with self._lock:
            kept = [song for song in self._songs.values() if song.end != "failed"]
            total_s = sum(song.seconds for song in kept)
            return total_s - sum(song.left_s for song in kept), total_s

    def current(self) -> list[InProgress]:
        """The songs in progress."""
        with self._lock:
            return [
                InProgress(name, self._songs[name].n_done, self._songs[name].n_frames or 0)
                for name in self._in_progress
            ]

    def rate(self) -> float | None:
        """Seconds of audio per second, over the last minute of generation.

        None in the first second, and while no song is in progress.
        """
        with self._lock:
            if not self._in_progress:
                return None
            self._speed.note(self._now_s(), self._made_s)
            return self._speed.rate()

    def song_rate(self, name: str) -> float | None:
        """Seconds of audio per second of one song in progress; None in its first second."""
        with self._lock:
            return self._songs[name].speed.rate() if name in self._in_progress else None

    def song_left_s(self, name: str) -> float | None:
        """Seconds until a song in progress is complete; None while its pace is not known."""
        with self._lock:
            rate = self.song_rate(name)
            if not rate:
                return None
            song = self._songs[name]
            return max(0.0, song.left_s / rate - (self._now_s() - song.speed.noted_s))

    def eta_s(self) -> float | None:
        """Seconds until the whole list is made; None while its pace is not known.

        A song's pace does not grow when others end, so the last long song may set the end: the songs
        that wait are given to the slots as these become free, the longest first.
        """
        with self._lock:
            left = {name: song.left_s for name, song in self._songs.items() if song.left_s}
            if self._n_asked and not left:
                return 0.0
            rate = self.rate()
            if not rate:
                return None
            rates = [self._songs[name].speed.rate() for name in self._in_progress]
            pace = fmean([each for each in rates if each] or [rate / len(rates)])  # of one song
            ends = [
                left.pop(name, 0.0) / (each or pace)
                for name, each in zip(self._in_progress, rates, strict=True)
            ]
            ends += [0.0] * (self._n_slots - len(ends))
            heapq.heapify(ends)
            for left_s in sorted(left.values(), reverse=True):
                heapq.heapreplace(ends, ends[0] + left_s / pace)
            return max(ends)

    def _now_s(self) -> float:
        """Seconds in which songs were in progress: loading and waiting do not slow the speed."""
        return self._generating_s + (self._clock() - self._changed_s if self._in_progress else 0.0)

    def _change(self, in_progress: list[str]) -> None:
        self._generating_s, self._changed_s = self._now_s(), self._clock()
        self._in_progress = in_progress

    def _advance(self, song: "_Song", n_done: int, n_frames: int) -> None:
        n_made = n_done - song.n_done
        if n_made > 0:
            self.work += n_made
            self._made_s += n_made * song.seconds / n_frames
        elif n_made < 0:  # it was started over
            song.speed = _Speed()
        song.n_done, song.n_frames = n_done, n_frames

    def _ended(self, name: str, how: str) -> "_Song | None":
        self.work += 1
        self._change([other for other in self._in_progress if other != name])
        if song := self._songs.get(name):
            song.end = how
        return song


class _Speed:
    """Seconds of audio per second, over the last minute."""

    def __init__(self) -> None:
        # (when, seconds made by then): a second apart or more, but for the last
        self._samples: deque[tuple[float, float]] = deque()

    def note(self, now_s: float, made_s: float) -> None:
        """So much is made by now."""
        samples = self._samples
        if len(samples) > 1 and samples[-1][0] - samples[-2][0] < 1:
            samples.pop()
        samples.append((now_s, made_s))
        # When reports are rare, the last two are kept, however long ago.
        while samples[0][0] < now_s - _RATE_OVER_S and samples[1][0] <= now_s - 1:
            samples.popleft()

    @property
    def noted_s(self) -> float:
        """When the last note was taken."""
        return self._samples[-1][0]

    def rate(self) -> float | None:
        """None while less than a second is known."""
        if not self._samples:
            return None
        (since_s, before_s), (until_s, made_s) = self._samples[0], self._samples[-1]
        return (made_s - before_s) / (until_s - since_s) if until_s - since_s >= 1 else None


@dataclass
class _Song:
    """What is known of one song to make."""

    seconds: float
    n_done: int = 0  # frames, those of earlier runs included
    n_frames: int | None = None  # None: it was not in progress yet
    end: str | None = None  # made, made elsewhere, failed; None: it is still to be made
    speed: _Speed = field(default_factory=_Speed)

    @property
    def done_s(self) -> float:
        """Seconds of its audio that are generated."""
        return self.seconds * (self.n_done / self.n_frames) if self.n_frames else 0.0

    @property
    def left_s(self) -> float:
        """Seconds of audio still to generate."""
        return 0.0 if self.end else self.seconds - self.done_s

    def frames(self, per_s: float) -> tuple[int, int]:
        """(done, total); `per_s` serves until the song itself has frames. A failed one has no more to do."""
        n_frames = self.n_frames or math.ceil(self.seconds * per_s - 1e-6)
        if self.end == "failed":
            return self.n_done, self.n_done
        return n_frames if self.end else self.n_done, n_frames
