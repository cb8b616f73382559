"""Continuous batching, with a stepper that only counts and advances the clock itself.

Most songs go in MusicGen's windows; those of the second half in passes of one song, which may end early.
"""

import random
from collections import Counter
from itertools import count

import numpy as np
import pytest
import torch

from tests.worker.musicgen.plan_steps import n_steps
from worker.decoding.plan import Endings, Pass, Work
from worker.decoding.scheduler import ResumePoint, Scheduler
from worker.engine import TO_GENERATE, Failed, Finished, Progress, Song
from worker.musicgen import windows
from worker.musicgen.passes import Windowing, WindowPlan

pytestmark = pytest.mark.xdist_group("engine")

SPECIAL, K = 2048, 4
STEP_S, FILL_S = 1.0, 0.25


class Counting:
    """A stepper without a model: a token is its column's number. Logs its calls."""

    def __init__(self, slots):
        self.slots, self.special, self.dtype = slots, SPECIAL, torch.float32
        self.log, self.now_s = [], 0.0
        self.columns, self.position, self.running = {}, {}, set()
        self.broken, self.at_step = set(), lambda _: None

    def set_text(self, slot, states):
        self.log.append(("text", slot))

    def open(self, slot, columns, uniform, position):
        self.columns[slot], self.position[slot] = columns.copy(), position
        self.log.append(("open", slot, position))

    def fill(self, slot, start, end):
        self.now_s += FILL_S
        self.log.append(("fill", slot, start, end))

    def start(self, slot):
        self.running.add(slot)
        self.log.append(("start", slot))

    def stop(self, slot):
        self.running.discard(slot)
        self.log.append(("stop", slot))

    def read(self, slot, n):
        columns = self.columns[slot][:, :n]
        made = (columns == TO_GENERATE) & (np.arange(n) <= self.position[slot])
        return np.where(made, np.arange(n), columns)

    def is_broken(self, slot):
        return slot in self.broken

    def mark(self):
        return lambda: None

    def leave(self, slot):
        self.log.append(("leave", slot))

    def move(self, source, target, n_filled):
        assert target not in self.running
        for of_slots in (self.columns, self.position):
            of_slots[target] = of_slots.pop(source)
        if source in self.running:
            self.running.remove(source)
            self.running.add(target)
        self.log.append(("move", source, target, n_filled))

    def step(self, n_reached, n_slots):
        assert all(slot < n_slots for slot in self.running)
        self.at_step(n_reached)
        self.now_s += STEP_S
        for slot in self.running:
            self.position[slot] += 1
        self.log.append(("step", n_reached, frozenset(self.running), n_slots))


class Device(Counting):
    """Steps are queued in 20 µs on the host and take 40 ms on the device, as on a GPU."""

    def __init__(self, slots):
        super().__init__(slots)
        self.idle_at_s = 0.0

    def step(self, n_reached, n_slots):
        super().step(n_reached, n_slots)
        self.now_s += 20e-6 - STEP_S
        self.idle_at_s = max(self.idle_at_s, self.now_s) + 0.04

    def mark(self):
        made_s = self.idle_at_s

        def wait():
            self.now_s = max(self.now_s, made_s)

        return wait

    def read(self, slot, n):
        self.now_s = max(self.now_s, self.idle_at_s)
        return super().read(slot, n)

    @property
    def n_queued(self):
        return round((self.idle_at_s - self.now_s) / 0.04)


class Rig:
    """A scheduler over a counting stepper, in windows of 40 frames with a stride of 30."""

    def __init__(
        self, slots=2, window=40, stride=30, chunk=4, encode=lambda song: None, stepper_kind=Counting
    ):
        self.stepper = stepper_kind(slots)
        windowing = Windowing(window, stride)
        self.scheduler = Scheduler(
            self.stepper,
            lambda work: WindowPlan(work, self.stepper, encode, windowing),
            chunk,
            clock=lambda: self.stepper.now_s,
        )
        self.taken = []

    def works(self, *lengths):
        for i, n_frames in enumerate(lengths):
            self.taken.append(i)
            yield Work(Song(str(i), "", n_frames / 50, i), windows.unmade(K, n_frames))

    def run(self, *lengths):
        return list(self.scheduler.run(self.works(*lengths)))

    def logged(self, kind):
        return [entry[1:] for entry in self.stepper.log if entry[0] == kind]


def of(kind, events):
    return [event for event in events if isinstance(event, kind)]


# --- a step costs what is in use


def test_step_computes_no_more_slots_than_songs_are_in_progress():
    rig = Rig(slots=16)
    rig.run(90, 20, 60)
    computed = [n_slots for *_, n_slots in rig.logged("step")]
    assert computed == sorted(computed, reverse=True) and set(computed) == {1, 2, 3}


def test_song_that_is_moved_keeps_its_tokens():
    alone = {event.key: event.tokens for event in of(Finished, Rig(slots=1).run(20, 90, 60))}
    rig = Rig(slots=3)
    together = {event.key: event.tokens for event in of(Finished, rig.run(20, 90, 60))}
    assert rig.logged("move")
    assert all(np.array_equal(alone[key], together[key]) for key in alone)


def test_host_is_never_more_than_a_few_steps_ahead_of_the_device():
    rig = Rig(slots=2, window=1500, stride=900, stepper_kind=Device)
    ahead = [
        rig.stepper.n_queued
        for event in rig.scheduler.run(rig.works(1200, 600))
        if isinstance(event, Progress)
    ]
    assert len(ahead) > 20
    assert max(ahead) <= 16


def test_songs_are_charged_for_the_time_of_the_device():
    rig = Rig(slots=1, window=1500, stride=900, stepper_kind=Device)
    (finished,) = of(Finished, rig.run(1000))
    assert finished.generation_s == pytest.approx(1003 * 0.04, rel=0.01)


# --- slots are kept busy


def test_40_songs_of_10_to_300_s_keep_8_slots_busy():
    lengths = sorted((50 * random.Random(i).randint(10, 300) for i in range(40)), reverse=True)
    rig = Rig(slots=8, window=1500, stride=900, chunk=32)
    assert len(of(Finished, rig.run(*lengths))) == 40
    occupancy = rig.scheduler.occupancy
    assert occupancy.held / occupancy.offered >= 0.95


def test_every_step_of_the_plan_is_made_once_and_no_more():
    rig = Rig(slots=3)
    lengths = [100, 40, 71, 3, 55]
    rig.run(*lengths)
    moved = sum(len(running) for _, running, _ in rig.logged("step"))
    assert moved == sum(n_steps(windows.plan(n, 40, 30), K) for n in lengths)


def test_a_finished_slot_is_refilled_before_the_next_step():
    rig = Rig(slots=2)
    rig.run(40, 10, 10, 10, 5)
    free, left = 2, 5
    for entry in rig.stepper.log:
        if entry[0] == "text":
            free, left = free - 1, left - 1
        elif entry[0] == "stop":
            free += 1
        elif entry[0] == "step":
            assert not (free and left)


def test_works_are_taken_only_when_there_is_a_slot():
    rig = Rig(slots=2)
    n_done = 0
    for event in rig.scheduler.run(rig.works(*[10] * 9)):
        n_done += isinstance(event, Finished)
        assert len(rig.taken) <= n_done + 2
    assert n_done == 9


def test_no_works_are_no_events():
    assert Rig().run() == []


def test_step_reaches_beyond_every_running_slot():
    rig = Rig(slots=3)
    rig.stepper.at_step = lambda n_reached: seen.append(
        n_reached - max(rig.stepper.position[slot] for slot in rig.stepper.running)
    )
    seen = []
    rig.run(90, 40, 15, 5)
    assert set(seen) == {1}


# --- windows


def test_songs_are_whole():
    for event in of(Finished, Rig(slots=3).run(100, 40, 71, 3, 55)):
        assert (event.tokens != TO_GENERATE).all()


def test_end_of_every_window_is_an_event():
    rig = Rig(slots=2)
    made = [
        (event.work.song.key, int((event.work.tokens != TO_GENERATE).all(0).sum()))
        for event in rig.scheduler.run(rig.works(100, 30))
        if isinstance(event, ResumePoint)
    ]
    assert made == [("1", 30), ("0", 40), ("0", 70), ("0", 100)]


def test_known_columns_of_a_window_are_filled_once_and_in_order():
    rig = Rig(slots=2, chunk=4)
    rig.run(100, 40)
    assert [entry[1:] for entry in rig.logged("fill")] == [(0, 4), (4, 8), (8, 10)] * 2


def test_others_wait_for_one_chunk_at_a_time():
    rig = Rig(slots=4, chunk=4)
    rig.run(100, 100, 95, 90, 40)
    running, n_waited = set(), []
    for entry in rig.stepper.log:
        if entry[0] == "start":
            running.add(entry[1])
            n_waited.append(0)
        elif entry[0] == "stop":
            running.discard(entry[1])
        elif entry[0] == "step":
            n_waited.append(0)
        elif entry[0] == "fill" and running:
            n_waited[-1] += 1
    assert max(n_waited) == 1


def test_a_slot_that_is_being_filled_does_not_move():
    rig = Rig(slots=2, chunk=4)
    filling = {}
    rig.run(100, 40, 40)
    for entry in rig.stepper.log:
        if entry[0] == "open":
            filling[entry[1]] = True
        elif entry[0] == "start":
            filling[entry[1]] = False
        elif entry[0] == "step":
            assert not any(filling[slot] for slot in entry[2])


def test_a_song_is_resumed_at_its_first_missing_column():
    rig = Rig()
    work = Work(Song("a", "", 0.8, 0), windows.unmade(K, 40))
    work.tokens[:, :25] = 7
    list(rig.scheduler.run(iter([work])))
    assert rig.logged("open") == [(0, 25)]
    assert (work.tokens[:, :25] == 7).all()


def test_windows_that_are_made_are_skipped():
    rig = Rig()
    work = Work(Song("a", "", 2.0, 0), windows.unmade(K, 100))
    work.tokens[:, :70] = 7
    list(rig.scheduler.run(iter([work])))
    assert len(rig.logged("open")) == 1
    assert len(rig.logged("step")) == 30 + K - 1


def test_song_that_is_whole_already_takes_no_step():
    rig = Rig()
    work = Work(Song("a", "", 0.8, 0), np.zeros((K, 40), np.int16), generation_s=5.0)
    _, event = rig.scheduler.run(iter([work]))
    assert (event.key, event.generation_s, rig.stepper.log) == ("a", 5.0, [])


# --- progress


def test_progress_never_decreases_and_ends_at_the_whole():
    reported = {}
    for event in of(Progress, Rig(slots=3).run(100, 40, 71, 3, 55)):
        for key, (n_done, n_frames) in event.frames.items():
            assert reported.get(key, 0) <= n_done <= n_frames
            reported[key] = n_done
    assert list(reported.values()) == [100, 40, 71, 3, 55]


def test_progress_comes_at_least_every_50_steps():
    rig, since = Rig(slots=1, window=1500, stride=900), []
    n_before = 0
    for event in rig.scheduler.run(rig.works(1000)):
        if isinstance(event, Progress):
            since.append(len(rig.logged("step")) - n_before)
            n_before += since[-1]
    assert max(since) <= 50


# --- the clock is shared


def test_shares_add_up_to_the_wall_clock():
    rig = Rig(slots=3)
    shares = [event.generation_s for event in of(Finished, rig.run(100, 40, 71, 3, 55))]
    assert sum(shares) == pytest.approx(rig.stepper.now_s)


def test_songs_together_are_charged_alike():
    shares = [event.generation_s for event in of(Finished, Rig(slots=4).run(20, 20, 20, 20))]
    assert shares == pytest.approx([(20 + K - 1) * STEP_S / 4] * 4)


def test_seconds_charged_before_are_kept():
    rig = Rig(slots=1)
    work = Work(Song("a", "", 0.2, 0), windows.unmade(K, 10), generation_s=100.0)
    (done,) = of(Finished, rig.scheduler.run(iter([work])))
    assert done.generation_s == pytest.approx(100 + rig.stepper.now_s)


def test_what_the_caller_does_between_events_is_not_charged():
    rig, shares, away_s = Rig(slots=2), 0.0, 0.0
    for event in rig.scheduler.run(rig.works(50, 40, 30)):
        shares += event.generation_s if isinstance(event, Finished) else 0
        rig.stepper.now_s += 1000
        away_s += 1000
    assert shares == pytest.approx(rig.stepper.now_s - away_s)


def test_time_spent_on_a_step_that_was_interrupted_is_charged():
    rig = Rig(slots=1)
    steps = count()

    def interrupt(_):
        if next(steps) == 7:
            raise KeyboardInterrupt

    rig.stepper.at_step = interrupt
    with pytest.raises(KeyboardInterrupt):
        rig.run(40)
    (work,) = rig.scheduler.in_progress()
    assert work.generation_s == pytest.approx(7 * STEP_S)


# --- faults


def test_prompt_that_cannot_be_encoded_fails_alone():
    def encode(song):
        if song.key == "1":
            raise ValueError("no such word\nand more")

    events = Rig(encode=encode).run(40, 20, 30)
    assert [(event.key, event.reason) for event in of(Failed, events)] == [("1", "ValueError: no such word")]
    assert {event.key for event in of(Finished, events)} == {"0", "2"}


def test_seed_that_cannot_be_fails_alone():
    rig = Rig()
    works = [Work(Song(str(seed), "", 0.2, seed), windows.unmade(K, 10)) for seed in (1, -1, 2)]
    events = list(rig.scheduler.run(iter(works)))
    assert [event.key for event in of(Failed, events)] == ["-1"]
    assert {event.key for event in of(Finished, events)} == {"1", "2"}


def test_song_that_overflows_in_fp16_fails_alone_and_a_wider_precision_is_named():
    rig = Rig(slots=2)
    rig.stepper.broken, rig.stepper.dtype = {1}, torch.float16
    events = rig.run(40, 40)
    (failed,) = of(Failed, events)
    assert failed.key == "1" and failed.overflowed
    assert "overflows in fp16; use dtype bf16 or fp32" in failed.reason
    assert [event.key for event in of(Finished, events)] == ["0"]


def test_song_whose_logits_are_not_finite_is_given_up_at_its_first_windows_end():
    rig = Rig(slots=1)
    rig.stepper.broken = {0}
    rig.run(400)
    assert len(rig.logged("step")) == 40 + K - 1


def test_failed_songs_are_charged_too():
    rig = Rig(slots=2)
    rig.stepper.broken = {1}
    events = rig.run(40, 40, 40)
    shares = [event.generation_s for event in of((Failed, Finished), events)]
    assert sum(shares) == pytest.approx(rig.stepper.now_s)


# --- songs in progress


def interrupted(rig, at_step, *lengths):
    """The songs in progress after Ctrl-C before that step."""
    steps = count()

    def interrupt(_):
        if next(steps) == at_step:
            raise KeyboardInterrupt

    rig.stepper.at_step = interrupt
    with pytest.raises(KeyboardInterrupt):
        rig.run(*lengths)
    return rig.scheduler.in_progress()


@pytest.mark.parametrize("at_step", [0, 1, 5, 43, 44, 60])
def test_song_in_progress_has_every_token_made_so_far(at_step):
    works = interrupted(Rig(slots=1, chunk=100), at_step, 100)
    made = (works[0].tokens != TO_GENERATE).sum(axis=1)
    n_first = 40 + K - 1
    in_second = max(0, at_step - n_first)
    expected = [min(40, max(0, min(at_step, n_first) - k)) + max(0, in_second - k) for k in range(K)]
    assert made.tolist() == expected


def test_songs_in_progress_are_those_in_slots_alone():
    works = interrupted(Rig(slots=2), 15, 10, 40, 40, 40)
    assert Counter(work.song.key for work in works) == {"1": 1, "2": 1}


def test_song_that_was_interrupted_before_its_window_was_opened_has_no_tokens():
    """Its slot still holds the columns of the song before."""

    def encode(song):
        if song.key == "1":
            raise KeyboardInterrupt

    rig = Rig(slots=1, encode=encode)
    with pytest.raises(KeyboardInterrupt):
        rig.run(40, 40)
    (work,) = rig.scheduler.in_progress()
    assert work.song.key == "1"
    assert (work.tokens == TO_GENERATE).all()


def test_song_that_was_interrupted_between_two_windows_has_the_first():
    rig = Rig(slots=1)
    opened, laid = rig.stepper.open, count()

    def interrupt(*arguments):
        if next(laid) == 1:
            raise KeyboardInterrupt
        opened(*arguments)

    rig.stepper.open = interrupt
    with pytest.raises(KeyboardInterrupt):
        rig.run(100)
    (work,) = rig.scheduler.in_progress()
    assert (work.tokens[:, :40] != TO_GENERATE).all() and (work.tokens[:, 40:] == TO_GENERATE).all()


def test_memory_that_runs_out_while_a_song_is_admitted_loses_no_song():
    def encode(song):
        if song.key == "1":
            raise torch.OutOfMemoryError("full")

    rig = Rig(encode=encode)
    with pytest.raises(torch.OutOfMemoryError):
        rig.run(40, 40)
    assert [work.song.key for work in rig.scheduler.in_progress()] == ["0", "1"]


# --- songs of one pass after another that may end before their length

PROMPT = 6


class Ending(Counting):
    """Frame f of a song is column PROMPT + f. A song in `ends_at` ends before that frame, by itself."""

    def __init__(self, slots, ends_at):
        super().__init__(slots)
        self.ends_at, self.keys, self.asked_at = ends_at, {}, []

    def set_text(self, slot, key):
        super().set_text(slot, key)
        self.keys[slot] = key

    def move(self, source, target, n_filled):
        super().move(source, target, n_filled)
        self.keys[target] = self.keys.pop(source)

    def step(self, n_reached, n_slots):
        super().step(n_reached, n_slots)
        for slot in list(self.running):
            if self.position[slot] - PROMPT == self.ends_at.get(self.keys[slot]):
                self.position[slot] -= 1
                self.running.discard(slot)

    def n_made(self, slot):
        return self.position[slot] - PROMPT + 1

    def ended(self, n_slots):
        self.asked_at.append(len([entry for entry in self.log if entry[0] == "step"]))
        return [slot for slot in range(n_slots) if slot not in self.running]


class OnePlan:
    """A song with a resume point every `each` frames, where its last `chunk` positions are filled anew."""

    def __init__(self, work, stepper, each, chunk):
        self.work, self._stepper, self._each, self._chunk = work, stepper, each, chunk
        self._wanted = work.tokens.shape[1]
        self._n_made = int((work.tokens != TO_GENERATE).all(0).sum())
        self._is_in_slot, self.is_complete = False, self._n_made == self._wanted

    def begin(self, slot):
        self._stepper.set_text(slot, self.work.song.key)

    def open(self, slot):
        columns = np.concatenate([np.zeros((K, PROMPT), np.int64), self.work.tokens], axis=1)
        position = PROMPT - 1 + self._n_made
        self._stepper.open(slot, columns, None, position)
        filled = max(position - self._chunk, 0) if self._is_in_slot else 0
        self._is_in_slot = True
        self._end = min(self._wanted, self._n_made - self._n_made % self._each + self._each)
        return Pass(filled, position, PROMPT - 1 + self._end)

    def save(self, slot):
        self._n_made = self._stepper.n_made(slot)
        frames = self._stepper.read(slot, PROMPT + self._n_made)[:, PROMPT:]
        self.work.tokens[:, : self._n_made] = frames

    def close(self):
        if self._n_made < self._end:
            self.work.tokens = self.work.tokens[:, : self._n_made]
        self.is_complete = self._n_made == self.work.tokens.shape[1]

    def n_done(self, position):
        return position - PROMPT + 1


class EndingRig(Rig):
    """As Rig, for songs with these ends, asked about every `every` steps."""

    def __init__(self, ends_at, slots=2, every=1, each=30, chunk=10):
        super().__init__(slots=slots)
        self.stepper = Ending(slots, ends_at)
        self.scheduler = Scheduler(
            self.stepper,
            lambda work: OnePlan(work, self.stepper, each, chunk),
            chunk,
            Endings(self.stepper.ended, every),
            lambda: self.stepper.now_s,
        )


def n_frames(events):
    return {event.key: event.tokens.shape[1] for event in of(Finished, events)}


@pytest.mark.parametrize("every", [1, 8, 16])
def test_song_that_ends_early_has_the_frames_before_its_end(every):
    events = EndingRig({"0": 47, "2": 1}, every=every).run(100, 90, 80)
    assert n_frames(events) == {"0": 47, "1": 90, "2": 1}
    for event in of(Finished, events):
        assert (event.tokens != TO_GENERATE).all()
        assert event.tokens[0].tolist() == list(range(PROMPT, PROMPT + event.tokens.shape[1]))


@pytest.mark.parametrize("end", [29, 30, 31, 60, 99])
def test_song_that_ends_beside_a_resume_point_is_whole(end):
    assert n_frames(EndingRig({"0": end}, slots=1, every=8).run(100)) == {"0": end}


def test_slot_of_a_song_that_ended_is_given_to_the_next_within_the_steps_between_two_questions():
    rig = EndingRig({"0": 20}, slots=1, every=8)
    rig.run(1000, 30)
    assert len(rig.logged("step")) <= 20 + 1 + 8 + 30


def test_without_a_wait_songs_are_asked_after_every_step():
    rig = EndingRig({"0": 20}, slots=1, every=1)
    rig.run(1000)
    assert rig.stepper.asked_at == list(range(1, 22))


def test_song_that_is_being_filled_has_not_ended():
    rig = EndingRig({"1": 5}, slots=2, every=1, each=30, chunk=2)
    assert n_frames(rig.run(100, 70)) == {"0": 100, "1": 5}


def test_resume_points_of_one_pass_after_another_are_events():
    made = [
        (event.work.song.key, int((event.work.tokens != TO_GENERATE).all(0).sum()))
        for event in EndingRig({}, slots=1).scheduler.run(EndingRig({}).works(100))
        if isinstance(event, ResumePoint)
    ]
    assert made == [("0", 30), ("0", 60), ("0", 90), ("0", 100)]


def test_at_a_resume_point_only_what_its_pass_names_is_filled_anew():
    rig = EndingRig({}, slots=1, each=30, chunk=10)
    rig.run(70)
    assert [entry[1:] for entry in rig.logged("fill")] == [(0, 5), (25, 35), (55, 65)]


def test_song_that_ended_is_charged_for_the_steps_that_were_made():
    rig = EndingRig({"0": 20}, slots=2, every=8)
    shares = [event.generation_s for event in of(Finished, rig.run(1000, 30))]
    assert sum(shares) == pytest.approx(rig.stepper.now_s)


def test_interrupted_song_has_every_frame_and_no_end():
    rig = EndingRig({}, slots=1)
    steps = count()

    def interrupt(_):
        if next(steps) == 40:
            raise KeyboardInterrupt

    rig.stepper.at_step = interrupt
    with pytest.raises(KeyboardInterrupt):
        rig.run(100)
    (work,) = rig.scheduler.in_progress()
    assert (work.tokens != TO_GENERATE).all(0).tolist() == [True] * 40 + [False] * 60
