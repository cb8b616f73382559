"""While nothing comes, a run says what it waits for: not at once, then ever more rarely."""

import threading

import pytest

from tests.worker.observe.metered import Clock
from worker.observe.waiting import Waiting

BUSY = "this machine is busy: load 14 on 2 cores"


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def said():
    return []


def look_at(waiting, clock, *seconds):
    for clock.now_s in seconds:
        waiting.look()


def test_stage_that_lasts_is_named_with_its_time_at_growing_intervals(clock, said):
    waiting = Waiting(said.append, clock, lambda: "")
    waiting.begin("loading the model")
    look_at(waiting, clock, *range(100))
    assert said == [f"still loading the model ({so_far} so far)" for so_far in ("10 s", "30 s", "1 min 10 s")]


def test_intervals_grow_to_five_minutes(clock, said):
    waiting = Waiting(said.append, clock, lambda: "")
    waiting.begin("loading the model")
    look_at(waiting, clock, *range(0, 7200, 10))
    assert said[-2:] == [
        f"still loading the model ({so_far} so far)" for so_far in ("1 h 50 min", "1 h 55 min")
    ]


def test_busy_machine_is_named_as_a_reason(clock, said):
    waiting = Waiting(said.append, clock, lambda: BUSY)
    waiting.begin("loading the model")
    look_at(waiting, clock, 40)
    assert said == [f"still loading the model (40 s so far; {BUSY})"]


def test_next_stage_counts_anew(clock, said):
    waiting = Waiting(said.append, clock, lambda: "")
    waiting.begin("loading the model")
    look_at(waiting, clock, 9)
    waiting.begin("waiting for frames", 30)
    look_at(waiting, clock, 38, 39)
    assert said == ["still waiting for frames (30 s so far)"]


def test_nothing_is_said_before_a_stage_begins(clock, said):
    look_at(Waiting(said.append, clock), clock, 1000)
    assert said == []


def test_thread_looks_by_itself_and_ends_with_the_block(clock):
    heard = threading.Event()
    with Waiting(lambda _: heard.set(), clock, lambda: "") as waiting:
        waiting.begin("loading the model", first_s=0)
        assert heard.wait(60)
    assert not any(thread.name == "waiting" for thread in threading.enumerate())
