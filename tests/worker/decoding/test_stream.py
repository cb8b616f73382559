"""Works to their end, when memory runs out on the way; the scheduler is one that a test can break."""

import pytest
import torch

from worker.decoding.plan import Work
from worker.decoding.scheduler import Occupancy, ResumePoint
from worker.decoding.stream import SongStream
from worker.engine import TO_GENERATE, Finished, Song
from worker.errors import UserError
from worker.musicgen import windows

pytestmark = pytest.mark.xdist_group("engine")


class Slots:
    """A scheduler that finishes one song after another."""

    def __init__(self):
        self.held, self.occupancy = [], Occupancy()

    def run(self, works):
        for work in works:
            self.held.append(work)
            yield ResumePoint(work)
            yield Finished(work.song.key, work.tokens, 0.0)
            self.held.remove(work)

    def in_progress(self):
        return list(self.held)


class Rig:
    """A stream over songs a, b, ... whose schedulers are these, one after another."""

    def __init__(self, *schedulers, n=3):
        self.schedulers, self.n_freed = list(schedulers), 0
        works = (Work(Song(key, "", 1.0, 0), windows.unmade(4, 50)) for key in "abcdef"[:n])
        self.stream = SongStream(works, lambda: self.schedulers.pop(0), self.free)

    def free(self):
        self.n_freed += 1
        if not self.schedulers:
            raise UserError("not enough memory for one song")

    def run(self):
        return [event.key for event in self.stream.run() if isinstance(event, Finished)]


class Breaking(Slots):
    """One that takes two songs, and then raises this."""

    def __init__(self, fault):
        super().__init__()
        self.fault = fault

    def run(self, works):
        for work in works:
            self.held.append(work)
            if len(self.held) == 2:
                raise self.fault
        yield from ()


OUT = torch.OutOfMemoryError("CUDA out of memory")


def test_songs_that_lost_their_slot_come_before_new_ones():
    rig = Rig(Breaking(OUT), Slots())
    assert rig.run() == ["a", "b", "c"]
    assert rig.n_freed == 1


def test_out_of_memory_again_no_song_is_lost():
    assert Rig(Breaking(OUT), Breaking(OUT), Slots(), n=4).run() == ["a", "b", "c", "d"]


def test_when_there_is_no_room_for_one_song_the_songs_can_still_be_saved():
    rig = Rig(Breaking(OUT))
    with pytest.raises(UserError):
        rig.run()
    assert [work.song.key for work in rig.stream.in_progress()] == ["a", "b"]
    assert all((work.tokens == TO_GENERATE).all() for work in rig.stream.in_progress())


def test_other_faults_are_not_retried():
    rig = Rig(Breaking(RuntimeError("device-side assert")), Slots())
    with pytest.raises(RuntimeError, match="device-side assert"):
        rig.run()
    assert rig.n_freed == 0


def test_nothing_is_held_of_the_scheduler_when_memory_is_freed():
    """Its stepper's cache is most of the memory."""
    rig, seen = Rig(Breaking(OUT), Slots()), []
    rig.stream._make_room = lambda: seen.append(rig.stream._scheduler)
    rig.run()
    assert seen == [None]


def test_after_begin_no_more_no_work_is_begun():
    rig = Rig(Slots())
    keys = []
    for event in rig.stream.run():
        if isinstance(event, Finished):
            keys.append(event.key)
            rig.stream.begin_no_more()
    assert keys == ["a"]
