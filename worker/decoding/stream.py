"""Works through the scheduler to their end, with fewer slots each time that memory runs out."""

from collections.abc import Callable, Iterator
from itertools import chain, takewhile

from worker.decoding.device import is_out_of_memory
from worker.decoding.plan import Work
from worker.decoding.scheduler import Occupancy, Scheduled, Scheduler


class SongStream:
    """One run over some works.

    `schedule` returns a scheduler whose slots are empty. `make_room` is called when memory ran out: it
    frees what is there and has the next scheduler use fewer slots, or raises UserError.
    """

    def __init__(
        self, works: Iterator[Work], schedule: Callable[[], Scheduler], make_room: Callable[[], None]
    ):
        self._works, self._schedule, self._make_room = works, schedule, make_room
        self._scheduler: Scheduler | None = None
        self._waiting: list[Work] = []  # begun, but without a slot since memory ran out
        self._may_begin = True
        self.occupancy = Occupancy()

    def run(self) -> Iterator[Scheduled]:
        """The scheduler's events. Begun works come before new ones."""
        while True:
            try:
                self._scheduler = self._schedule()
                self.occupancy = self._scheduler.occupancy
                new = takewhile(lambda _: self._may_begin, self._works)
                yield from self._scheduler.run(chain(self._begun(), new))
                return
            except RuntimeError as error:
                if not is_out_of_memory(error):
                    raise
                self._waiting = self.in_progress()
                self._scheduler = None
            self._make_room()  # not above: there the error's traceback holds what is to be freed

    def in_progress(self) -> list[Work]:
        """The works that are begun and not finished, with every token generated so far."""
        in_slots = self._scheduler.in_progress() if self._scheduler else []
        return [*in_slots, *self._waiting]

    def begin_no_more(self) -> None:
        """Finish the works in progress and begin no others, not even one that was taken ahead."""
        self._may_begin = False

    def _begun(self) -> Iterator[Work]:
        while self._waiting:
            yield self._waiting.pop(0)
