"""How long a song in work still needs."""

import pytest

from worker.engine import Progress
from worker.run.pace import Pace


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def test_nothing_is_known_before_a_song_has_moved(clock):
    pace = Pace(clock)
    assert pace.left_s() == {}
    pace.note(Progress({"a": (0, 100)}))
    assert pace.left_s() == {}


def test_what_is_left_follows_from_the_pace(clock):
    pace = Pace(clock)
    for clock.now in (0.0, 5.0, 10.0):
        pace.note(Progress({"a": (int(clock.now) * 2, 100), "b": (int(clock.now) * 4, 100)}))
    assert pace.left_s() == pytest.approx({"a": 40.0, "b": 15.0})


def test_time_since_the_last_progress_is_taken_off(clock):
    pace = Pace(clock)
    for clock.now in (0.0, 10.0):
        pace.note(Progress({"a": (int(clock.now), 100)}))
    clock.now = 12.0
    assert pace.left_s() == pytest.approx({"a": 88.0})


def test_only_the_last_minute_counts(clock):
    pace = Pace(clock)
    for clock.now, made in ((0.0, 0), (100.0, 1), (130.0, 31)):
        pace.note(Progress({"a": (made, 100)}))
    assert pace.left_s() == pytest.approx({"a": 69.0})


def test_song_that_stands_still_has_no_end(clock):
    pace = Pace(clock)
    for clock.now in (0.0, 10.0):
        pace.note(Progress({"a": (7, 100)}))
    assert pace.left_s() == {}
