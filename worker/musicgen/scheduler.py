"""Continuous batching: which song is in which slot, and what runs next.

A song that ends is replaced at once by the next. Songs are at different columns of different
windows. The known columns of a continued window are computed in chunks that take about as long as a
step, one chunk between two steps, so that the other songs are hardly delayed.
The wall clock is shared: while n songs are in progress, each is charged 1/n of it. What the caller
does between two events is not charged.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from worker.decoding.device import is_out_of_memory
from worker.decoding.sampling import draws
from worker.engine import TO_GENERATE, Failed, Finished, Progress, Song, Tokens
from worker.errors import UserError
from worker.musicgen import windows
from worker.musicgen.stepper import Stepper
from worker.musicgen.windows import Window

# The most between two progress events: about a second of music, and on a slow device half a second
# of time, so that a stop is noticed soon.
_REPORT_STEPS, _REPORT_S = 50, 0.5
# A GPU runs asynchronously: the host is ahead of it by twice this many steps at most. What is reported is
# then about what is made, and whoever saves the songs in progress hardly waits.
_STEPS_PER_MARK = 8


@dataclass
class Work:
    """A song in progress: its tokens so far, and the seconds charged so far."""

    song: Song
    tokens: Tokens  # [n_codebooks, n_frames]; TO_GENERATE marks a missing token
    generation_s: float = 0.0


@dataclass(frozen=True)
class WindowDone:
    """A window of a song is complete: the song can be saved here and resumed exactly."""

    work: Work


class _Slot:
    """A song in a slot and its position in the window, as the stepper has it on the device."""

    def __init__(self, work: Work, plan: list[Window]):
        self.work, self.plan = work, plan
        self.filled = 0
        self.position = 0
        self.n_columns = 0  # of the window in the stepper; 0: none yet

    @property
    def window(self) -> Window:
        return self.plan[0]

    @property
    def is_filling(self) -> bool:
        return self.filled < self.position

    @property
    def steps_left(self) -> int:
        return self.n_columns - 1 - self.position

    @property
    def n_done(self) -> int:
        return self.window.start + min(max(self.position, 0), self.window.length)


@dataclass
class Occupancy:
    """How well the slots were used, in slot-steps."""

    steps: int = 0
    offered: int = 0  # steps times slots, in use or not
    held: int = 0  # with a song
    running: int = 0  # with a song that advanced a column


@dataclass(frozen=True)
class Windowing:
    """How songs are cut into windows, and how fast a continued window is filled."""

    window: int  # frames
    stride: int  # frames
    chunk: int  # known columns that are computed between two steps, at most
    channels: int = 1


class Scheduler:
    """Runs songs through a stepper's slots.

    `encode` returns a song's text states, [n_text, hidden].
    """

    def __init__(
        self,
        stepper: Stepper,
        encode: Callable[[Song], Tensor],
        windowing: Windowing,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._stepper, self._encode, self._windowing, self._clock = stepper, encode, windowing, clock
        self._slots: list[_Slot | None] = [None] * stepper.slots
        self._charged_at = clock()
        self._marks: deque[Callable[[], None]] = deque()
        self.occupancy = Occupancy()

    def run(self, works: Iterator[Work]) -> Iterator[Progress | WindowDone | Finished | Failed]:
        """Generate all works, taking each from the iterator only when a slot is free.

        After the iterator was closed or an exception, `in_progress` returns the songs in the slots.
        """
        self._charged_at = self._clock()
        for event in self._events(works):
            self._charge()
            yield event
            self._charged_at = self._clock()

    def _events(self, works: Iterator[Work]) -> Iterator[Progress | WindowDone | Finished | Failed]:
        while True:
            yield from self._admit(works)
            held = self._held_first()
            if not held:
                return
            try:
                self._advance(held)
            finally:  # time spent on a failed step counts too
                self._charge()
            yield Progress({s.work.song.key: (s.n_done, s.work.tokens.shape[1]) for s in held.values()})
            for i, slot in held.items():
                if not slot.is_filling and not slot.steps_left:
                    yield from self._close(i, slot)

    def in_progress(self) -> list[Work]:
        """The songs in the slots, with every token generated so far."""
        for i, slot in self._held().items():
            if slot.n_columns:  # else the stepper has nothing of it
                self._save(i, slot)
        return [slot.work for slot in self._held().values()]

    def _held(self) -> dict[int, _Slot]:
        return {i: slot for i, slot in enumerate(self._slots) if slot}

    def _held_first(self) -> dict[int, _Slot]:
        """The held slots, moved to the front: a step costs what is in use."""
        held = self._held()
        for target in range(len(held)):
            if target not in held:
                source = max(held)
                slot = held[target] = held.pop(source)
                self._stepper.move(source, target, slot.filled)
                self._slots[source], self._slots[target] = None, slot
        return held

    def _admit(self, works: Iterator[Work]) -> Iterator[WindowDone | Finished | Failed]:
        for i in range(len(self._slots)):
            while self._slots[i] is None and (work := next(works, None)):
                plan = windows.plan(work.tokens.shape[1], self._windowing.window, self._windowing.stride)
                left = [window for window in plan if not _is_made(work.tokens, window)]
                if not left:
                    yield WindowDone(work)
                    yield Finished(work.song.key, work.tokens, work.generation_s)
                    continue
                slot = self._slots[i] = _Slot(work, left)
                try:
                    self._stepper.set_text(i, self._encode(work.song))
                    self._open(i, slot)
                except Exception as error:  # this song's fault alone; the others continue
                    if is_out_of_memory(error):
                        raise
                    self._charge()
                    self._free(i)
                    yield Failed(work.song.key, _one_line(error), work.generation_s)

    def _open(self, i: int, slot: _Slot) -> None:
        """Begin the slot's next window."""
        window, n_codebooks = slot.window, len(slot.work.tokens)
        channels = self._windowing.channels
        columns = windows.delayed(slot.work.tokens, window, self._stepper.special, channels)
        drawn = draws(slot.work.song.seed, window.start, window.length, n_codebooks)
        slot.filled, slot.position = 0, windows.first_unmade(columns) - 1
        self._stepper.open(i, columns, windows.in_columns(drawn, window, channels), slot.position)
        slot.n_columns = columns.shape[1]  # from here on the stepper has tokens to save
        if not slot.is_filling:
            self._stepper.start(i)

    def _advance(self, held: dict[int, _Slot]) -> None:
        """Fill one chunk if a slot needs it, then step until the next event."""
        filling = next(((i, slot) for i, slot in held.items() if slot.is_filling), None)
        if filling:
            i, slot = filling
            end = min(slot.filled + self._windowing.chunk, slot.position)
            self._stepper.fill(i, slot.filled, end)
            slot.filled = end
            if not slot.is_filling:
                self._stepper.start(i)
        running = [slot for slot in held.values() if not slot.is_filling]
        if not running:
            return
        n_steps = 1 if filling else min(_REPORT_STEPS, *(slot.steps_left for slot in running))
        until = self._clock() + _REPORT_S
        for _ in range(n_steps):
            self._stepper.step(1 + max(slot.position for slot in running), len(held))
            for slot in running:
                slot.position += 1
                slot.filled += 1
            self._keep_pace()
            self.occupancy.steps += 1
            self.occupancy.offered += len(self._slots)
            self.occupancy.held += len(held)
            self.occupancy.running += len(running)
            if self._clock() >= until:
                break

    def _keep_pace(self) -> None:
        """After a step: wait for the device if it is far behind."""
        if self.occupancy.steps % _STEPS_PER_MARK == 0:
            self._marks.append(self._stepper.mark())
            if len(self._marks) > 1:
                self._marks.popleft()()

    def _close(self, i: int, slot: _Slot) -> Iterator[WindowDone | Finished | Failed]:
        """A window is complete: begin the next, or finish the song and free the slot."""
        work = slot.work
        self._stepper.stop(i)
        self._save(i, slot)
        self._charge()  # after the read, which waited for the GPU
        if self._stepper.is_broken(i):
            self._free(i)
            narrow = self._stepper.dtype == torch.float16
            yield Failed(work.song.key, _NARROW if narrow else _DAMAGED, work.generation_s, overflowed=narrow)
        elif slot.plan[1:]:
            slot.n_columns, slot.plan = 0, slot.plan[1:]
            self._open(i, slot)
            yield WindowDone(work)
        else:
            self._free(i)
            yield WindowDone(work)
            yield Finished(work.song.key, work.tokens, work.generation_s)

    def _free(self, i: int) -> None:
        self._stepper.leave(i)
        self._slots[i] = None

    def _save(self, i: int, slot: _Slot) -> None:
        columns = self._stepper.read(i, slot.n_columns)
        frames = windows.undelayed(columns, slot.window, self._windowing.channels)
        slot.work.tokens[:, slot.window.start : slot.window.end] = frames

    def _charge(self) -> None:
        """Share the time since the last call among the songs in progress."""
        now = self._clock()
        held = self._held()
        for slot in held.values():
            slot.work.generation_s += (now - self._charged_at) / len(held)
        self._charged_at = now


_NARROW = "its logits became infinite or NaN: the model overflows in fp16; use dtype bf16 or fp32"
_DAMAGED = (
    "its logits became infinite or NaN, and no precision is wider: the checkpoint's weights are damaged; "
    "download it again or use another"
)


def _is_made(tokens: Tokens, window: Window) -> bool:
    return bool((tokens[:, window.start : window.end] != TO_GENERATE).all())


def _one_line(error: Exception) -> str:
    text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return text.partition("\n")[0]
