"""Continuous batching: which song is in which slot, and what runs next.

A song that ends is replaced at once by the next. Songs are at different positions of different passes
(plan.py). The known positions of a pass are computed in chunks that take about as long as a step, one
chunk between two steps, so that the other songs are hardly delayed.
The wall clock is shared: while n songs are in progress, each is charged 1/n of it. What the caller
does between two events is not charged.
"""

import time
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch

from worker.decoding.device import is_out_of_memory
from worker.decoding.plan import Endings, Pass, Plan, Stepper, Work
from worker.engine import Failed, Finished, Progress
from worker.errors import UserError

# The most between two progress events: about a second of music, and on a slow device half a second
# of time, so that a stop is noticed soon.
_REPORT_STEPS, _REPORT_S = 50, 0.5
# A GPU runs asynchronously: the host is ahead of it by twice this many steps at most. What is reported is
# then about what is made, and whoever saves the songs in progress hardly waits.
_STEPS_PER_MARK = 8


@dataclass(frozen=True)
class ResumePoint:
    """A pass of a song is complete: the song can be saved here and resumed exactly."""

    work: Work


Scheduled = Progress | ResumePoint | Finished | Failed


class _Slot:
    """A song in a slot and its position in the pass, as the stepper has it on the device."""

    def __init__(self, plan: Plan):
        self.plan, self.work = plan, plan.work
        self.filled = self.position = 0
        self.current: Pass | None = None  # None: the stepper has nothing of it yet
        self.has_ended = False  # before its last position

    @property
    def is_filling(self) -> bool:
        return self.filled < self.position

    @property
    def steps_left(self) -> int:
        return self.current.last - self.position if self.current and not self.has_ended else 0

    @property
    def n_done(self) -> int:
        return self.plan.n_done(self.position)


@dataclass
class Occupancy:
    """How well the slots were used, in slot-steps."""

    steps: int = 0
    offered: int = 0  # steps times slots, in use or not
    held: int = 0  # with a song
    running: int = 0  # with a song that advanced a position


class Scheduler:
    """Runs songs through a stepper's slots.

    `plan` makes a work's plan. `chunk`: known positions that are computed between two steps, at most.
    `endings`: for songs that may end before the length that was asked.
    """

    def __init__(
        self,
        stepper: Stepper,
        plan: Callable[[Work], Plan],
        chunk: int,
        endings: Endings | None = None,
        clock: Callable[[], float] = time.monotonic,
    ):
        self._stepper, self._plan, self._chunk, self._endings = stepper, plan, chunk, endings
        self._clock = clock
        self._slots: list[_Slot | None] = [None] * stepper.slots
        self._charged_at = clock()
        self._marks: deque[Callable[[], None]] = deque()
        self.occupancy = Occupancy()

    def run(self, works: Iterator[Work]) -> Iterator[Scheduled]:
        """Generate all works, taking each from the iterator only when a slot is free.

        After the iterator was closed or an exception, `in_progress` returns the songs in the slots.
        """
        self._charged_at = self._clock()
        for event in self._events(works):
            self._charge()
            yield event
            self._charged_at = self._clock()

    def _events(self, works: Iterator[Work]) -> Iterator[Scheduled]:
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
            if slot.current:  # else the stepper has nothing of it
                slot.plan.save(i)
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

    def _admit(self, works: Iterator[Work]) -> Iterator[Scheduled]:
        for i in range(len(self._slots)):
            while self._slots[i] is None and (work := next(works, None)):
                plan = self._plan(work)
                if plan.is_complete:
                    yield ResumePoint(work)
                    yield Finished(work.song.key, work.tokens, work.generation_s)
                    continue
                slot = self._slots[i] = _Slot(plan)
                try:
                    plan.begin(i)
                    self._open(i, slot)
                except Exception as error:  # this song's fault alone; the others continue
                    if is_out_of_memory(error):
                        raise
                    self._charge()
                    self._free(i)
                    yield Failed(work.song.key, _one_line(error), work.generation_s)

    def _open(self, i: int, slot: _Slot) -> None:
        """Begin the slot's next pass."""
        opened = slot.plan.open(i)
        slot.filled, slot.position, slot.has_ended = opened.filled, opened.position, False
        slot.current = opened  # from here on the stepper has tokens to save
        if not slot.is_filling:
            self._stepper.start(i)

    def _advance(self, held: dict[int, _Slot]) -> None:
        """Fill one chunk if a slot needs it, then step until the next event."""
        filling = next(((i, slot) for i, slot in held.items() if slot.is_filling), None)
        if filling:
            i, slot = filling
            end = min(slot.filled + self._chunk, slot.position)
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
            if self._notice_endings(held) or self._clock() >= until:
                break

    def _notice_endings(self, held: dict[int, _Slot]) -> bool:
        """After a step, if it is time to ask: note which songs have ended; True if one has."""
        if not self._endings or self.occupancy.steps % self._endings.every:
            return False
        slots = [held[i] for i in self._endings.ended(len(held))]
        ended = [slot for slot in slots if not slot.is_filling]  # what is being filled is not running either
        for slot in ended:
            slot.has_ended = True
        return bool(ended)

    def _keep_pace(self) -> None:
        """After a step: wait for the device if it is far behind."""
        if self.occupancy.steps % _STEPS_PER_MARK == 0:
            self._marks.append(self._stepper.mark())
            if len(self._marks) > 1:
                self._marks.popleft()()

    def _close(self, i: int, slot: _Slot) -> Iterator[Scheduled]:
        """A pass is complete: begin the next, or finish the song and free the slot."""
        work = slot.work
        slot.plan.save(i)
        self._stepper.stop(i)
        self._charge()  # after the read, which waited for the GPU
        if self._stepper.is_broken(i):
            self._free(i)
            narrow = self._stepper.dtype == torch.float16
            yield Failed(work.song.key, _NARROW if narrow else _DAMAGED, work.generation_s, overflowed=narrow)
            return
        slot.current = None
        slot.plan.close()
        if slot.plan.is_complete:
            self._free(i)
            yield ResumePoint(work)
            yield Finished(work.song.key, work.tokens, work.generation_s)
        else:
            self._open(i, slot)
            yield ResumePoint(work)

    def _free(self, i: int) -> None:
        self._stepper.leave(i)
        self._slots[i] = None

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


def _one_line(error: Exception) -> str:
    text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
    return text.partition("\n")[0]
