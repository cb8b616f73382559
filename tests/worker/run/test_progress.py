"""How far a run is: what counts as done, as made and as progress, and what follows for the time left."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.run.progress import Tally
from worker.songs.status import Frames, InWork, Songs

RAIN, SUN = "rain_5c0ffee0.wav", "sun_0ddba11e.wav"


@pytest.fixture
def tally():
    """Three songs asked for, one of them done before; 10 s and 90 s to make."""
    tally = Tally()
    tally.planned(3, 1, {RAIN: 10.0, SUN: 90.0})
    return tally


def test_songs_are_counted_once(tally):
    assert tally.songs() == Songs(asked=3, done=1, made=0, failed=0, left=2)
    tally.made(RAIN)
    assert tally.songs() == Songs(asked=3, done=2, made=1, failed=0, left=1)
    tally.failed(SUN)
    assert tally.songs() == Songs(asked=3, done=2, made=1, failed=1, left=0)


def test_song_that_another_run_made_is_done_and_not_made(tally):
    tally.made_elsewhere(RAIN)
    assert tally.songs() == Songs(asked=3, done=2, made=0, failed=0, left=1)


# --- frames


def test_number_of_frames_is_not_known_before_the_first_song(tally):
    assert tally.frames() == Frames(0, 0)


def test_first_song_tells_the_frames_of_all(tally):
    tally.in_work({RAIN: (3, 500)}, 0.0)
    assert tally.frames() == Frames(3, 500 + 4500)


def test_frame_rate_is_not_spoilt_by_a_song_whose_last_frame_is_only_begun():
    tally = Tally()
    tally.planned(3, 0, {"short": 1.01, RAIN: 10.0, SUN: 90.0})
    tally.in_work({"short": (1, 51), RAIN: (1, 500)}, 0.0)
    assert tally.frames() == Frames(2, 51 + 500 + 4500)


def test_made_songs_have_all_their_frames(tally):
    tally.in_work({RAIN: (499, 500)}, 0.0)
    tally.made(RAIN)
    tally.made_elsewhere(SUN)
    assert tally.frames() == Frames(5000, 5000)
    assert tally.left_s() == 0


def test_failed_song_has_no_frames_to_do_and_loses_none(tally):
    tally.in_work({RAIN: (200, 500), SUN: (100, 4500)}, 0.0)
    tally.failed(RAIN)
    assert tally.frames() == Frames(300, 200 + 4500)
    assert tally.left_s() == pytest.approx(88)


def test_song_in_work_is_current_until_it_has_ended(tally):
    tally.in_work({RAIN: (200, 500), SUN: (100, 4500)}, 0.0)
    assert list(tally.current()) == [InWork(RAIN, 200, 500), InWork(SUN, 100, 4500)]
    tally.made(RAIN)
    assert list(tally.current()) == [InWork(SUN, 100, 4500)]
    tally.in_work({}, 1.0)
    assert list(tally.current()) == []


# --- rate


def test_rate_is_seconds_of_audio_per_second(tally):
    for second in range(11):
        tally.in_work({SUN: (100 * second, 4500)}, second)
    assert tally.rate(10) == pytest.approx(2.0)
    assert tally.left_s() == pytest.approx(10 + 90 - 20)


def test_rate_needs_a_second_of_generation(tally):
    assert tally.rate(0) is None
    tally.in_work({SUN: (10, 4500)}, 100.0)
    assert tally.rate(100.5) is None


def test_loading_the_model_does_not_slow_the_rate(tally):
    assert tally.rate(300) is None
    tally.in_work({SUN: (0, 4500)}, 300)
    tally.in_work({SUN: (500, 4500)}, 305)
    assert tally.rate(305) == pytest.approx(2.0)


def test_rate_is_that_of_the_last_minute(tally):
    for second in range(101):
        tally.in_work({SUN: (10 * second, 4500)}, second)
    for second in range(101, 171):
        tally.in_work({SUN: (1000 + 50 * (second - 100), 4500)}, second)
    assert tally.rate(170) == pytest.approx(1.0)


def test_rate_of_a_stuck_run_falls_to_nothing(tally):
    for second in range(31):
        tally.in_work({SUN: (50 * second, 4500)}, second)
    for beat in range(35, 131, 5):
        tally.rate(beat)
    assert tally.rate(135) == 0


def test_frames_from_a_checkpoint_are_done_and_not_made_now(tally):
    tally.in_work({RAIN: (0, 500)}, 0.0)
    tally.in_work({RAIN: (50, 500), SUN: (4000, 4500)}, 1.0)
    assert tally.frames().done == 4050
    assert tally.rate(1.0) == pytest.approx(1.0)
    assert tally.left_s() == pytest.approx(9 + 10)


def test_first_second_of_a_new_song_counts_in_the_rate(tally):
    tally.in_work({RAIN: (0, 500)}, 0.0)
    before = tally.progress
    tally.in_work({RAIN: (0, 500), SUN: (50, 4500)}, 1.0)
    assert tally.rate(1.0) == pytest.approx(1.0)
    assert tally.progress >= before + 50


def test_what_was_made_before_the_first_look_does_not_count_in_the_rate(tally):
    tally.in_work({RAIN: (50, 500)}, 0.0)
    tally.in_work({RAIN: (100, 500)}, 1.0)
    assert tally.rate(1.0) == pytest.approx(1.0)


def test_song_that_came_with_all_its_frames_does_not_count_in_the_rate(tally):
    tally.in_work({RAIN: (0, 500)}, 0.0)
    tally.made(SUN)
    assert tally.rate(2.0) == 0


def test_song_that_starts_over_is_work_again(tally):
    tally.in_work({RAIN: (0, 500)}, 0.0)
    tally.in_work({RAIN: (400, 500)}, 1.0)
    tally.in_work({RAIN: (0, 500)}, 2.0)
    before = tally.progress
    tally.in_work({RAIN: (100, 500)}, 3.0)
    assert tally.progress == before + 100
    assert tally.frames().done == 100


# --- progress


def test_progress_counts_frames(tally):
    tally.in_work({RAIN: (1, 500)}, 0.0)
    before = tally.progress
    tally.in_work({RAIN: (11, 500)}, 1.0)
    assert tally.progress == before + 10


def test_the_same_frames_again_are_no_progress(tally):
    tally.in_work({RAIN: (11, 500)}, 0.0)
    before = tally.progress
    tally.in_work({RAIN: (11, 500)}, 1.0)
    assert tally.progress == before


def test_looking_is_no_progress(tally):
    tally.in_work({RAIN: (11, 500)}, 0.0)
    before = tally.progress
    for now_s in range(100):
        tally.rate(now_s), tally.songs(), tally.frames(), tally.left_s(), list(tally.current())
    assert tally.progress == before


@pytest.mark.parametrize("event", ["made", "made_elsewhere", "failed"])
def test_every_end_of_a_song_is_progress(tally, event):
    before = tally.progress
    getattr(tally, event)(RAIN)
    assert tally.progress > before


def test_song_that_was_not_planned_changes_no_sum(tally):
    tally.in_work({"stranger.wav": (5, 10)}, 0.0)
    tally.made("stranger.wav")
    assert tally.frames() == Frames(0, 0)
    assert tally.left_s() == 100


moves = st.tuples(st.sampled_from(["in_work", "made", "failed", "made_elsewhere"]), st.integers(0, 500))


@given(st.lists(st.tuples(st.sampled_from([RAIN, SUN]), moves), max_size=30))
def test_progress_never_falls_and_no_sum_is_beyond_its_total(events):
    tally = Tally()
    tally.planned(2, 0, {RAIN: 10.0, SUN: 10.0})
    for now_s, (song, (event, n_done)) in enumerate(events):
        before = tally.progress
        if event == "in_work":
            tally.in_work({song: (n_done, 500)}, now_s)
        else:
            getattr(tally, event)(song)
        assert tally.progress >= before
        frames, rate = tally.frames(), tally.rate(now_s)
        assert 0 <= frames.done <= frames.total <= 1000
        assert 0 <= tally.left_s() <= 20
        assert rate is None or rate >= 0
