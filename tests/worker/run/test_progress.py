"""How far a run is and how fast: what counts as done, as made and as work, and what follows for the ETA."""

import math
import sys
import threading

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.songs import listed, record_of
from tests.worker.observe.metered import MeteredRun
from worker.engine import Progress
from worker.run.observer import Begun
from worker.run.progress import ProgressMeter
from worker.songs.status import Frames, InProgress, Songs

RAIN, SUN, MOON = listed("rain ; 10 ; rain", "sun ; 90 ; sun", "moon ; 5 ; moon")
LONG, *SHORT = listed("long ; 600 ; long", *(f"short ; 10 ; short{n}" for n in range(10)))
AT = "2026-11-22T19:50:00Z"


@pytest.fixture
def run():
    """Three songs asked for, one of them done before; 10 s and 90 s to make."""
    return MeteredRun(todo=[RAIN, SUN], done=[MOON]).plan()


@pytest.fixture
def meter(run):
    return run.meter


def made(meter, job):
    meter.made(record_of(job))


def made_elsewhere(meter, job):
    meter.made_elsewhere(job.song)


def failed(meter, job):
    meter.failed(job.song, "out of luck")


def resume(meter, job, n_made):
    meter.begun(Begun(job.song, AT, n_made=n_made, n_frames=round(job.seconds * 50), n_resumed=1))


# --- songs


def test_songs_are_counted_once(meter):
    assert meter.songs() == Songs(asked=3, done=1, made=0, failed=0, left=2)
    made(meter, RAIN)
    assert meter.songs() == Songs(asked=3, done=2, made=1, failed=0, left=1)
    failed(meter, SUN)
    assert meter.songs() == Songs(asked=3, done=2, made=1, failed=1, left=0)


def test_song_that_is_reported_twice_is_counted_once(meter):
    made(meter, RAIN)
    made(meter, RAIN)
    assert meter.songs() == Songs(asked=3, done=2, made=1, failed=0, left=1)


def test_song_that_another_run_made_is_done_and_not_made(meter):
    made_elsewhere(meter, RAIN)
    assert meter.songs() == Songs(asked=3, done=2, made=0, failed=0, left=1)


def test_song_that_is_kept_is_only_asked_for():
    run = MeteredRun(todo=[RAIN], kept=[(SUN, "it has no record")]).plan()
    assert run.meter.songs() == Songs(asked=2, done=0, made=0, failed=0, left=1)
    assert run.meter.seconds() == (0.0, 10.0)


def test_song_that_is_not_selected_is_in_no_sum():
    run = MeteredRun(todo=[RAIN], others=[SUN]).plan()
    run.at(0, (RAIN, 0), (SUN, 100))
    assert run.meter.songs() == Songs(asked=1, done=0, made=0, failed=0, left=1)
    assert run.meter.frames() == Frames(0, 500)
    assert (run.meter.seconds(), run.meter.made_s) == ((0.0, 10.0), 0.0)


# --- frames and seconds


def test_number_of_frames_is_not_known_before_the_first_song(meter):
    assert meter.frames() == Frames(0, 0)


def test_first_song_tells_the_frames_of_all(run):
    run.at(0, (RAIN, 3))
    assert run.meter.frames() == Frames(3, 500 + 4500)


def test_frame_rate_is_not_spoilt_by_a_song_whose_last_frame_is_only_begun():
    (short,) = listed("short ; 1.01 ; short")
    meter = MeteredRun(todo=[short, RAIN, SUN]).plan().meter
    meter.progress(Progress({short.song: (1, 51), RAIN.song: (1, 500)}))
    assert meter.frames() == Frames(2, 51 + 500 + 4500)


def test_number_of_frames_is_not_rounded_up_by_a_rounding_error():
    (short,) = listed("short ; 1.1 ; short")  # 1.1 * 50 is over 55
    run = MeteredRun(todo=[RAIN, short]).plan()
    run.at(0, (RAIN, 0))
    assert run.meter.frames() == Frames(0, 500 + 55)


def test_made_songs_have_all_their_frames(run):
    run.at(0, (RAIN, 499))
    made(run.meter, RAIN)
    made_elsewhere(run.meter, SUN)
    assert run.meter.frames() == Frames(5000, 5000)
    assert run.meter.seconds() == (100.0, 100.0)


def test_failed_song_has_no_frames_to_do_and_loses_none(run):
    run.at(0, (RAIN, 200), (SUN, 100))
    failed(run.meter, RAIN)
    assert run.meter.frames() == Frames(300, 200 + 4500)
    assert run.meter.seconds() == pytest.approx((2.0, 90.0))


def test_song_in_progress_is_current_until_it_has_ended(run):
    run.at(0, (RAIN, 200), (SUN, 100))
    assert run.meter.current() == [InProgress(RAIN.song, 200, 500), InProgress(SUN.song, 100, 4500)]
    made(run.meter, RAIN)
    assert run.meter.current() == [InProgress(SUN.song, 100, 4500)]
    run.at(1)
    assert run.meter.current() == []


def test_song_that_is_saved_for_the_next_run_is_no_longer_in_progress(run):
    run.at(0, (RAIN, 200), (SUN, 100))
    run.meter.saved([RAIN.song])
    assert run.meter.current() == [InProgress(SUN.song, 100, 4500)]
    assert run.meter.songs().left == 2


def test_saving_a_song_is_work(meter):
    before = meter.work
    meter.saved([RAIN.song, SUN.song])
    assert meter.work == before + 2


# --- speed


def test_rate_is_seconds_of_audio_per_second(run):
    for second in range(11):
        run.at(second, (SUN, 100 * second))
    assert run.meter.rate() == pytest.approx(2.0)
    assert run.meter.seconds() == pytest.approx((20.0, 100.0))


def test_rate_needs_a_second_of_generation(run):
    assert run.meter.rate() is None
    run.at(100.0, (SUN, 10))
    run.clock.now_s = 100.5
    assert run.meter.rate() is None


def test_loading_the_model_does_not_slow_the_rate(run):
    run.clock.now_s = 300
    assert run.meter.rate() is None
    run.at(300, (SUN, 0))
    run.at(305, (SUN, 500))
    assert run.meter.rate() == pytest.approx(2.0)


def test_rate_is_that_of_the_last_minute(run):
    for second in range(101):
        run.at(second, (SUN, 10 * second))
    for second in range(101, 171):
        run.at(second, (SUN, 1000 + 50 * (second - 100)))
    assert run.meter.rate() == pytest.approx(1.0)


def test_rate_of_a_stuck_run_falls_to_nothing(run):
    for second in range(31):
        run.at(second, (SUN, 50 * second))
    for run.clock.now_s in range(35, 131, 5):
        run.meter.rate()
    run.clock.now_s = 135
    assert run.meter.rate() == 0
    assert run.meter.eta_s() is None


@pytest.mark.parametrize("step_s", [0.02, 0.5, 1.0, 7.0])
def test_rate_does_not_depend_on_how_often_it_is_asked_or_reported(run, step_s):
    n_steps = round(56 / step_s)
    for step in range(n_steps + 1):
        run.at(step * step_s, (SUN, round(50 * step * step_s)))
        run.meter.rate()
    assert run.meter.rate() == pytest.approx(1.0, rel=0.02)
    assert run.meter.song_rate(SUN.song) == pytest.approx(1.0, rel=0.02)


def test_frames_from_a_checkpoint_are_done_and_not_made_now(run):
    run.at(0, (RAIN, 0))
    resume(run.meter, SUN, 4000)
    run.at(1, (RAIN, 50), (SUN, 4000))
    assert run.meter.frames().done == 4050
    assert run.meter.rate() == pytest.approx(1.0)
    assert run.meter.seconds() == pytest.approx((1 + 80, 100))
    assert run.meter.made_s == pytest.approx(1.0)


def test_frames_of_a_checkpoint_are_done_before_the_engine_reports_them(run):
    resume(run.meter, SUN, 4000)
    assert run.meter.frames() == Frames(4000, 4500 + 500)
    assert run.meter.seconds() == pytest.approx((80, 100))
    assert run.meter.made_s == 0


def test_resumed_hour_does_not_run_at_301_times_real_time():
    (hour,) = listed("hour ; 3600 ; hour")
    run = MeteredRun(todo=[hour]).plan()
    resume(run.meter, hour, 3000 * 50)
    for second in range(11):
        run.at(second, (hour, (3000 + second) * 50))
    assert run.meter.rate() == pytest.approx(1.0)
    assert run.meter.song_rate(hour.song) == pytest.approx(1.0)
    assert run.meter.eta_s() == run.meter.song_left_s(hour.song) == pytest.approx(590)
    assert run.meter.made_s == pytest.approx(10)


def test_first_second_of_a_new_song_counts_in_the_rate(run):
    run.at(0, (RAIN, 0))
    before = run.meter.work
    run.at(1, (RAIN, 0), (SUN, 50))
    assert run.meter.rate() == pytest.approx(1.0)
    assert run.meter.work >= before + 50


def test_what_was_made_before_the_first_look_does_not_count_in_the_rate(run):
    run.at(0, (RAIN, 50))
    run.at(1, (RAIN, 100))
    assert run.meter.rate() == pytest.approx(1.0)


def test_song_that_came_with_all_its_frames_does_not_count_in_the_rate(run):
    run.at(0, (RAIN, 0))
    resume(run.meter, SUN, 4500)
    made(run.meter, SUN)
    run.clock.now_s = 2.0
    assert run.meter.rate() == 0
    assert run.meter.made_s == 0


def test_waiting_without_a_song_in_progress_does_not_slow_the_rate(run):
    run.at(0, (RAIN, 0))
    run.at(10, (RAIN, 500))
    made(run.meter, RAIN)
    run.clock.now_s = 40  # another engine is loaded, or another worker has the rest
    assert run.meter.rate() is None
    run.at(40, (SUN, 0))
    run.at(50, (SUN, 500))
    assert run.meter.rate() == pytest.approx(1.0)


def test_reports_more_than_a_minute_apart_give_a_rate(run):
    for second in (0, 70, 140):
        run.at(second, (SUN, 10 * second))
    assert run.meter.rate() == run.meter.song_rate(SUN.song) == pytest.approx(0.2)


def test_song_that_is_made_was_generated_to_its_last_frame(run):
    run.at(0, (RAIN, 450))
    made(run.meter, RAIN)
    assert run.meter.made_s == pytest.approx(10)


# --- songs that start over


def test_song_that_starts_over_is_work_again(run):
    run.at(0, (RAIN, 0))
    run.at(1, (RAIN, 400))
    run.at(2, (RAIN, 0))
    before = run.meter.work
    run.at(3, (RAIN, 100))
    assert run.meter.work == before + 100
    assert run.meter.frames().done == 100


def test_pace_of_a_song_that_starts_over_is_its_new_one(run):
    run.at(0, (RAIN, 0))
    run.at(10, (RAIN, 400))
    run.at(11, (RAIN, 0))
    run.at(15, (RAIN, 100))
    assert run.meter.song_rate(RAIN.song) == pytest.approx(0.5)


def test_pace_of_a_song_that_was_put_off_is_that_since_it_is_in_progress_again(run):
    run.at(0, (RAIN, 0), (SUN, 0))
    run.at(10, (RAIN, 100), (SUN, 500))
    run.at(40, (SUN, 2000))
    run.at(50, (RAIN, 100), (SUN, 2500))
    run.at(54, (RAIN, 300), (SUN, 2700))
    assert run.meter.song_rate(RAIN.song) == pytest.approx(1.0)


def test_song_that_overflows_has_nothing_done_until_it_begins_again(run):
    run.at(0, (RAIN, 0))
    run.at(10, (RAIN, 400))
    run.meter.note("overflow", "it overflowed", song=RAIN.song)
    assert (run.meter.current(), run.meter.frames().done) == ([], 0)
    assert run.meter.made_s == pytest.approx(8.0)  # the time it took counts too
    run.at(90, (RAIN, 0))
    run.at(100, (RAIN, 400))
    assert run.meter.rate() == pytest.approx(0.8)


# --- a song's own end


def test_nothing_is_known_before_a_song_has_moved(run):
    assert run.meter.song_left_s(RAIN.song) is None
    run.at(0, (RAIN, 0))
    assert run.meter.song_left_s(RAIN.song) is None


def test_what_is_left_of_a_song_follows_from_its_pace(run):
    for second in (0, 5, 10):
        run.at(second, (RAIN, 10 * second), (SUN, 90 * second))
    assert run.meter.song_left_s(RAIN.song) == pytest.approx(40)
    assert run.meter.song_left_s(SUN.song) == pytest.approx(40)


def test_time_since_the_last_progress_is_taken_off(run):
    for second in (0, 10):
        run.at(second, (RAIN, 5 * second))
    run.clock.now_s = 12
    assert run.meter.song_left_s(RAIN.song) == pytest.approx(88)
    run.clock.now_s = 1000
    assert run.meter.song_left_s(RAIN.song) == 0


def test_only_the_last_minute_of_a_song_counts(run):
    for second, n_done in ((0, 0), (100, 5), (130, 155)):
        run.at(second, (RAIN, n_done))
    assert run.meter.song_left_s(RAIN.song) == pytest.approx(69)


def test_song_that_stands_still_has_no_end(run):
    for second in (0, 10):
        run.at(second, (RAIN, 35))
    assert run.meter.song_left_s(RAIN.song) is None


def test_song_that_is_not_in_progress_has_neither_pace_nor_end(run):
    run.at(0, (RAIN, 0))
    run.at(5, (RAIN, 500))
    made(run.meter, RAIN)
    assert run.meter.song_rate(RAIN.song) is None
    assert run.meter.song_left_s(RAIN.song) is None
    assert run.meter.song_left_s("stranger.wav") is None


# --- the list's ETA


def equal_songs(n_songs):
    return listed(*(f"song ; 60 ; song{n}" for n in range(n_songs)))


def test_eta_is_not_known_before_a_pace_is(run):
    assert MeteredRun(todo=[RAIN]).meter.eta_s() is None  # not even planned
    assert run.meter.eta_s() is None
    run.at(0, (SUN, 0))
    assert run.meter.eta_s() is None
    run.at(10, (SUN, 0))
    assert run.meter.eta_s() is None


@pytest.mark.parametrize("n_slots", [1, 2, 4])
def test_eta_of_equal_songs_is_what_is_left_at_the_rate(n_slots):
    songs = equal_songs(8)
    run = MeteredRun(todo=songs).plan()
    for second in (0, 10):
        run.at(second, *((job, 25 * second) for job in songs[:n_slots]))
    done_s, total_s = run.meter.seconds()
    assert run.meter.rate() == pytest.approx(n_slots / 2)
    assert run.meter.eta_s() == pytest.approx((total_s - done_s) / run.meter.rate())


def test_eta_knows_that_the_last_long_song_runs_alone():
    run = MeteredRun(todo=[LONG, *SHORT]).plan()
    for second in (0, 5):
        run.at(second, *((job, 50 * second) for job in [LONG, *SHORT[:3]]))
    assert run.meter.rate() == pytest.approx(4.0)
    assert run.meter.eta_s() == run.meter.song_left_s(LONG.song) == pytest.approx(595)


def test_eta_knows_that_a_long_song_still_waits():
    run = MeteredRun(todo=[*SHORT[:4], LONG]).plan()
    for second in (0, 5):
        run.at(second, *((job, 50 * second) for job in SHORT[:2]))
    assert run.meter.eta_s() == pytest.approx(5 + 600)


def test_eta_of_the_last_song_is_its_own():
    run = MeteredRun(todo=[LONG, SHORT[0]]).plan()
    for second in (0, 5, 10):
        run.at(second, (LONG, 50 * second), (SHORT[0], 50 * second))
    made(run.meter, SHORT[0])
    run.at(11, (LONG, 550))
    assert run.meter.eta_s() == pytest.approx(589)


def test_eta_counts_on_fewer_slots_when_memory_ran_out():
    songs = equal_songs(8)
    run = MeteredRun(todo=songs).plan()
    for second in (0, 10):
        run.at(second, *((job, 50 * second) for job in songs[:4]))
    assert run.meter.eta_s() == pytest.approx(50 + 60)
    for second in (20, 30):  # half the slots: two songs are put off
        run.at(second, *((job, 50 * second) for job in songs[:2]))
    # Each of the two slots: 30 s in progress, then two songs of 60 s and one with 50 s left.
    assert run.meter.eta_s() == pytest.approx(30 + 60 + 60 + 50)


def test_eta_counts_on_the_slots_of_the_engine_that_is_loaded_last():
    songs = equal_songs(6)
    run = MeteredRun(todo=songs).plan()
    run.at(0, *((job, 0) for job in songs[:4]))
    run.at(60, *((job, 3000) for job in songs[:4]))
    for job in songs[:4]:
        made(run.meter, job)
    for second in (90, 100):  # a wider one, with room for one song
        run.at(second, (songs[4], 50 * (second - 90)))
    assert run.meter.eta_s() == pytest.approx(50 + 60)


def test_eta_counts_on_a_slot_that_is_free():
    """The song that waits is another worker's for now."""
    run = MeteredRun(todo=[LONG, *SHORT[:2]]).plan()
    for second in (0, 10):
        run.at(second, (LONG, 50 * second), (SHORT[0], 50 * second))
    made(run.meter, SHORT[0])
    run.at(20, (LONG, 1000))
    assert run.meter.eta_s() == pytest.approx(580)


def test_eta_is_zero_when_nothing_is_left(run):
    run.at(0, (RAIN, 0), (SUN, 0))
    run.at(10, (RAIN, 500), (SUN, 4500))
    assert run.meter.eta_s() == 0  # the audio is still to be decoded and saved
    made(run.meter, RAIN)
    failed(run.meter, SUN)
    assert run.meter.eta_s() == 0
    assert MeteredRun(done=[MOON]).plan().meter.eta_s() == 0


def test_eta_is_not_known_while_songs_wait_and_none_is_in_progress(run):
    run.at(0, (RAIN, 0))
    run.at(10, (RAIN, 500))
    made(run.meter, RAIN)
    assert run.meter.eta_s() is None


# --- work


def test_work_counts_frames(run):
    run.at(0, (RAIN, 1))
    before = run.meter.work
    run.at(1, (RAIN, 11))
    assert run.meter.work == before + 10


def test_song_that_begins_again_has_no_pace_of_before(run):
    run.at(0, (RAIN, 0))
    run.at(10, (RAIN, 400))
    resume(run.meter, RAIN, 100)
    assert run.meter.song_left_s(RAIN.song) is None
    run.at(11, (RAIN, 100))
    run.at(15, (RAIN, 200))
    assert run.meter.song_rate(RAIN.song) == pytest.approx(0.5)


def test_frames_of_a_checkpoint_are_no_work(run):
    resume(run.meter, SUN, 4000)
    before = run.meter.work
    run.at(0, (SUN, 4000))
    assert run.meter.work == before


def test_the_same_frames_again_are_no_work(run):
    run.at(0, (RAIN, 11))
    before = run.meter.work
    run.at(1, (RAIN, 11))
    assert run.meter.work == before


def test_looking_is_no_work(run):
    run.at(0, (RAIN, 11))
    before, meter = run.meter.work, run.meter
    for run.clock.now_s in range(100):
        meter.rate(), meter.songs(), meter.frames(), meter.eta_s(), meter.seconds(), meter.current()
    assert meter.work == before


@pytest.mark.parametrize("end", [made, made_elsewhere, failed])
def test_every_end_of_a_song_is_work(meter, end):
    before = meter.work
    end(meter, RAIN)
    assert meter.work > before


def test_song_that_was_not_planned_changes_no_sum(run):
    (stranger,) = listed("stranger ; 1 ; stranger")
    run.at(0, (stranger, 5))
    made(run.meter, stranger)
    failed(run.meter, stranger)
    assert run.meter.frames() == Frames(0, 0)
    assert run.meter.seconds() == (0, 100)
    assert run.meter.songs() == Songs(asked=3, done=1, made=0, failed=0, left=2)


# --- whatever happens

jobs = st.sampled_from([RAIN, SUN, MOON])
frames = st.lists(st.tuples(jobs, st.integers(0, 250)), max_size=3)
events = st.one_of(
    st.tuples(st.just("progress"), frames),
    st.tuples(st.sampled_from(["made", "made_elsewhere", "failed", "saved", "overflow"]), jobs),
    st.tuples(st.just("begun"), st.tuples(jobs, st.integers(0, 250))),
)


def happen(run, now_s, event, what):
    if event == "progress":
        run.at(now_s, *what)
    elif event == "begun":
        resume(run.meter, *what)
    elif event == "saved":
        run.meter.saved([what.song])
    elif event == "overflow":
        run.meter.note("overflow", "it overflowed", song=what.song)
    else:
        {"made": made, "made_elsewhere": made_elsewhere, "failed": failed}[event](run.meter, what)


@given(st.lists(st.tuples(st.floats(0, 100), events), max_size=30))
def test_no_sum_goes_wrong_whatever_happens(steps):
    run = MeteredRun(todo=[RAIN, SUN, MOON]).plan()
    meter, now_s = run.meter, 0.0
    for after_s, event in steps:
        now_s += after_s
        run.clock.now_s = now_s
        work, made_s = meter.work, meter.made_s
        happen(run, now_s, *event)
        assert meter.work >= work
        assert meter.made_s >= made_s
        songs, frames = meter.songs(), meter.frames()
        assert songs.done + songs.failed + songs.left == songs.asked == 3
        assert 0 <= frames.done <= frames.total <= 5250
        done_s, total_s = meter.seconds()
        assert -1e-9 <= done_s <= total_s + 1e-9 <= 105 + 2e-9
        rate, eta_s = meter.rate(), meter.eta_s()
        assert rate is None or 0 <= rate < math.inf
        assert eta_s is None or 0 <= eta_s < math.inf
        assert eta_s is not None or total_s > done_s or not rate
        left_s = [meter.song_left_s(song.song) for song in meter.current()]
        assert all(left is None or 0 <= left < math.inf for left in left_s)


def test_threads_lose_no_work():
    meter = ProgressMeter()
    switch_s = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    try:
        threads = [
            threading.Thread(target=lambda: [meter.note("checkpoint", "saved") for _ in range(2000)])
            for _ in range(4)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    finally:
        sys.setswitchinterval(switch_s)
    assert meter.work == 8000
