"""What a run shows: plain lines without a terminal, on any console, and a table that adds up."""

import io
import re

import pytest
from rich.console import Console

from tests.songs import listed, record_of
from tests.worker.observe.metered import MeteredRun
from worker.observe.console import ConsoleDisplay, show_summary
from worker.run.observer import Begun
from worker.songs.summary import Price, Summary

RAIN, SUN = listed("rain ; 10 ; rain", "sun ; 90 ; sun")
AT = "2026-11-22T19:50:00Z"
ESCAPE = re.compile(r"\x1b\[[0-9;?]*[A-Za-z]")


@pytest.fixture
def shown():
    return io.StringIO()


def displayed(console, **what):
    """A run that a display on this console observes, not planned yet."""
    run = MeteredRun(**what)
    return run.observed_by(ConsoleDisplay(console, run.meter, run.clock))


def on_pipe(shown, **what):
    return displayed(Console(file=shown, width=200), **what).plan()


@pytest.fixture
def run(shown):
    """A display on a pipe, with a list of two songs planned."""
    return on_pipe(shown, todo=[RAIN, SUN])


def lines(shown):
    return shown.getvalue().splitlines()


def test_plan_says_how_much_there_is_to_make(run, shown):
    assert lines(shown) == ["2 songs to make, 1 min 40 s of audio"]


def test_plan_of_one_song_says_so(shown):
    on_pipe(shown, todo=[RAIN])
    assert lines(shown) == ["1 song to make, 10 s of audio"]


def test_plan_says_what_is_done_and_what_is_kept(shown):
    on_pipe(shown, done=[RAIN], kept=[(SUN, "it has no record")])
    assert lines(shown) == [
        f"kept {SUN.song}: it has no record; rename or move it to have the song made",
        "0 songs to make, 0 s of audio; 1 done already",
    ]


def test_song_has_a_line_when_it_starts_and_when_it_is_made(run, shown):
    run.at(0, (RAIN, 0))
    run.observer.made(record_of(RAIN, generation_s=5.0, estimated_cost_usd=0.0123))
    assert f"start {RAIN.song}: 10 s" in lines(shown)
    assert lines(shown)[-1] == f"made {RAIN.song}: 10 s in 5 s (2.0x), $0.0123"


def test_made_song_that_may_be_wrong_has_its_flags_in_the_line(run, shown):
    run.observer.made(record_of(RAIN, quality={"flags": ["silent_tail", "quiet"]}))
    assert lines(shown)[-1].endswith("; flagged: silent_tail, quiet")


def test_line_says_seconds_speed_time_left_and_cost_so_far(run, shown):
    run.at(0, (RAIN, 0))
    run.at(20, (RAIN, 250))
    assert f"{RAIN.song}: 5/10 s  0.2x  eta 20 s" in lines(shown)
    assert lines(shown)[-1] == "all songs: 5/100 s  0.2x  eta 6 min 20 s  $20.00 so far"


def test_cost_so_far_is_that_of_the_whole_time(run, shown):
    run.at(100, (RAIN, 0))
    run.at(110, (RAIN, 250))
    assert lines(shown)[-1].endswith("  $110.00 so far")


def test_resumed_song_shows_the_speed_of_this_run_alone_and_does_not_start_again(shown):
    (hour,) = listed("hour ; 3600 ; hour")
    run = on_pipe(shown, todo=[hour])
    run.observer.begun(Begun(hour.song, AT, n_made=150_000, n_frames=180_000, n_resumed=1))
    for second in (0, 5, 10):
        run.at(second, (hour, 150_000 + 50 * second))
    assert lines(shown)[1:] == [
        f"resuming {hour.song}: 3000 of 3600 s made",
        f"{hour.song}: 3010/3600 s  1.0x  eta 9 min 50 s",
        "all songs: 3010/3600 s  1.0x  eta 9 min 50 s  $10.00 so far",
    ]


LOADING = "loading PyTorch and the model rehearsal"


@pytest.fixture
def waiting(shown):
    """A planned run; `passing(seconds)` lets time pass and returns the lines that are shown then."""
    run = MeteredRun(todo=[RAIN, SUN])
    display = ConsoleDisplay(Console(file=shown, width=200), run.meter, run.clock, lambda: "")
    run.observed_by(display).plan()

    def pass_s(seconds):
        before = len(lines(shown))
        run.clock.now_s += seconds
        display.waiting.look()
        return lines(shown)[before:]

    run.passing = pass_s
    return run


def test_long_loading_is_said_to_last(waiting):
    waiting.observer.note("loading", LOADING)
    assert waiting.passing(9) == []
    assert waiting.passing(31) == [f"still {LOADING} (40 s so far)"]


def test_first_frames_are_waited_for_once_the_model_is_loaded(waiting):
    waiting.observer.note("loading", LOADING)
    waiting.observer.note("loaded", "loaded in 4 s")
    (line,) = waiting.passing(12)
    assert line.startswith("still waiting for the first frames") and line.endswith("(12 s so far)")


def test_long_time_without_a_frame_is_told(waiting):
    waiting.at(0, (RAIN, 0))
    assert waiting.passing(20) == []
    waiting.at(20, (RAIN, 1))
    assert waiting.passing(20) == []
    assert waiting.passing(30) == ["still waiting for the next frames (50 s so far)"]


@pytest.mark.parametrize("event", ["waiting", "stopping", "finishing"])
def test_other_waits_are_told(waiting, event):
    waiting.at(0, (RAIN, 0))
    waiting.observer.note(event, "so it is")
    (line,) = waiting.passing(10)
    assert line.startswith("still ") and "frames" not in line


def test_reason_of_a_stop_is_left_to_the_listener_which_has_said_it(run, shown):
    run.observer.note("stopping", "stopped (Ctrl-C)")
    assert "stopped" not in shown.getvalue()


def test_many_steps_give_few_lines(run, shown):
    for step in range(1000):
        run.at(0.05 * step, (RAIN, step // 2))
    assert 4 < len(lines(shown)) < 20


def test_plain_lines_hold_no_escapes_and_are_not_folded(run, shown):
    run.at(0, (RAIN, 0))
    run.observer.failed(RAIN.song, "x" * 300)
    assert "\x1b" not in shown.getvalue()
    assert lines(shown)[-1] == f"failed {RAIN.song}: {'x' * 300}"


@pytest.mark.parametrize("terminal", [False, True])
def test_windows_console_gets_a_question_mark_for_what_it_lacks(terminal):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, "cp1252", errors="replace")
    console = Console(file=stream, width=120, force_terminal=terminal)
    run = MeteredRun(todo=[RAIN])
    with ConsoleDisplay(console, run.meter, run.clock) as display:
        run.observed_by(display).plan()
        run.at(0, (RAIN, 0))
        display.failed(RAIN.song, "тихо → 静か")
    show_summary(console, summary(), "out/静か")
    stream.flush()
    assert b"???? ? ??" in raw.getvalue()


# --- on a terminal


def terminal(shown, width):
    return Console(file=shown, width=width, force_terminal=True, color_system=None)


def drawn(width, frames, **what):
    """What a terminal of this width shows last, while the run is on: its lines."""
    shown = io.StringIO()
    run = MeteredRun(**what)
    with ConsoleDisplay(terminal(shown, width), run.meter, run.clock) as display:
        run.observed_by(display).plan()
        run.at(0, *((job, 0) for job, _ in frames))
        run.at(20, *frames)
    last = shown.getvalue().rpartition("\r")[2]
    return [line.rstrip() for line in ESCAPE.sub("", last).splitlines() if line.strip()]


def test_terminal_gets_bars_for_the_songs_in_progress_and_for_the_list():
    total, song = drawn(120, [(RAIN, 250)], todo=[RAIN, SUN])
    assert re.fullmatch(r"all songs +━+\S*━* +5/100 s  0.2x  eta 6 min 20 s +\$20.00", total)
    assert re.fullmatch(rf"{RAIN.song} +━+\S*━* +5/10 s  0.2x  eta 20 s", song)


def test_bars_fit_80_columns_whatever_the_songs_are_called():
    long, other = listed(f"one ; 3600 ; {'long-name-' * 9}", f"two ; 3600 ; {'other-name-' * 9}")
    rows = drawn(80, [(long, 700), (other, 500)], todo=[long, other], hourly_usd=360.0)
    assert len(rows) == 3
    assert all(len(row) <= 80 for row in rows)
    assert rows[0].endswith("24/7200 s  1.2x  eta 2 h 0 min  $2.00")
    assert rows[1].startswith("long-name-long-name-lon…")
    assert rows[1].endswith("14/3600 s  0.7x  eta 1 h 25 min")
    assert rows[2].endswith("10/3600 s  0.5x  eta 2 h 0 min")


@pytest.mark.parametrize("width", [60, 50])
def test_bars_of_a_narrow_terminal_keep_their_numbers(width):
    long, other = listed(f"one ; 3600 ; {'long-name-' * 9}", "two ; 3600 ; two")
    rows = drawn(width, [(long, 700), (other, 500)], todo=[long, other], hourly_usd=360.0)
    assert len(rows) == 3 and all(len(row) <= width for row in rows)
    assert rows[0].startswith("all songs ") and rows[0].endswith("24/7200 s  1.2x  eta 2 h 0 min")
    assert rows[1].startswith("long-nam") and rows[1].endswith("14/3600 s  0.7x  eta 1 h 25 min")


def test_bar_goes_when_its_song_is_no_longer_in_progress(shown):
    run = MeteredRun(todo=[RAIN, SUN])
    with ConsoleDisplay(terminal(shown, 120), run.meter, run.clock) as display:
        run.observed_by(display).plan()
        run.at(0, (RAIN, 0))
        run.at(20, (RAIN, 250))
        run.observer.saved([RAIN.song])
        run.at(30, (SUN, 0))
    last = shown.getvalue().rpartition("\r")[2]
    assert SUN.song in last and RAIN.song not in last


def test_list_keeps_its_bar_when_there_are_too_many_songs():
    songs = listed(*(f"song ; 10 ; song{n}" for n in range(40)))
    rows = drawn(80, [(job, 5) for job in songs], todo=songs)
    assert len(rows) == 13
    assert rows[0].startswith("all songs")


def test_terminal_folds_a_message_between_words(shown):
    run = displayed(terminal(shown, 80), todo=[RAIN])
    run.plan()
    reason = "disaster " * 30
    run.observer.failed(RAIN.song, reason)
    folded = ESCAPE.sub("", shown.getvalue()).splitlines()
    assert all(len(line) <= 80 for line in folded)
    assert " ".join(line.strip() for line in folded[1:]) == f"failed {RAIN.song}: {reason.strip()}"


# --- the closing table


def summary(**changes):
    songs = [
        {"song": RAIN.song, "seconds": 10.0, "generation_s": 5.0, "estimated_cost_usd": 0.0005},
        {"song": SUN.song, "seconds": 90.0, "generation_s": 20.0, "estimated_cost_usd": 0.002},
    ]
    fields = {
        "state": "done",
        "asked": [RAIN.song, SUN.song],
        "seconds_asked": 100.0,
        "made": songs,
        "generation_s": 25.0,
        "generated_s": 100.0,
        "wall_s": 32.0,
    }
    return Summary("run-1", "2026-01-02T03:04:05Z", Price(0.36, "as set"), **(fields | changes))


def table(shown, width=200, **changes):
    show_summary(Console(file=shown, width=width), summary(**changes), "out/album")
    return shown.getvalue()


def cells(text):
    return [line.replace("│", " ").split() for line in text.splitlines()]


def test_table_has_a_row_for_each_song_and_one_that_sums_them(shown):
    rows = cells(table(shown))
    assert [RAIN.song, "10", "5.0", "s", "2.0x", "$0.0005"] in rows
    assert [SUN.song, "90", "20.0", "s", "4.5x", "$0.002"] in rows
    assert ["2", "songs", "100", "of", "100", "25.0", "s", "4.0x", "$0.0025"] in rows


def test_table_of_one_song_says_so(shown):
    made = summary().made[:1]
    rows = cells(table(shown, made=made, generated_s=10.0, generation_s=5.0))
    assert ["1", "song", "10", "of", "100", "5.0", "s", "2.0x", "$0.0005"] in rows


def test_speed_of_the_sum_is_that_of_this_run_alone(shown):
    """The songs are 100 s long, of which this run made 30 s in 25 s."""
    assert ["2", "songs", "100", "of", "100", "25.0", "s", "1.2x", "$0.0025"] in cells(
        table(shown, generated_s=30.0)
    )


def test_table_fits_80_columns_with_its_names_and_numbers_whole(shown):
    (long,) = listed("rain ; 3600 ; calm-piano-rn")
    assert len(long.song) == 26
    song = {"song": long.song, "seconds": 3600.0, "generation_s": 4321.98, "estimated_cost_usd": 0.0432}
    rows = cells(table(shown, width=80, made=[song], seconds_asked=3600.0, generation_s=4321.98))
    assert all(len(line) <= 80 for line in shown.getvalue().splitlines())
    assert [long.song, "3,600", "4,322.0", "s", "0.8x", "$0.0432"] in rows


@pytest.mark.parametrize("width", range(50, 90))
def test_no_cell_is_cut_at_any_width(shown, width):
    text = table(shown, width=width)
    assert "…" not in text and "$0.0005" in text and SUN.song in text


def test_table_that_does_not_fit_becomes_lines_with_whole_names(shown):
    text = table(shown, width=40)
    assert text.startswith("run run-1: done\n") and "│" not in text
    assert f"{RAIN.song}: 10 s in 5 s (2.0x), $0.0005\n" in text
    assert "2 songs, 100 of 100 s: 25 s (4.0x), $0.0025\n" in text


def test_million_seconds_are_written_out(shown):
    song = {"song": RAIN.song, "seconds": 1234567.0, "generation_s": 5.0, "estimated_cost_usd": 0.0005}
    assert "1,234,567 of 2,345,678.5" in table(shown, made=[song], seconds_asked=2345678.5)


def test_overhead_and_the_price_it_is_counted_at_stand_apart(shown):
    assert "overhead 7 s (loading, waiting, audio, saving); price $0.36 an hour: as set" in table(shown)


def test_last_line_says_where_everything_is(shown):
    assert table(shown).splitlines()[-1] == "songs, records and cost_report.csv are in out/album"


def test_failed_song_is_in_the_table_with_its_reason_as_it_is(shown):
    text = table(shown, made=[], failed={RAIN.song: "KeyError: [/red] gone"}, state="failed")
    assert f"FAILED {RAIN.song}: KeyError: [/red] gone" in text
    assert "0 done already, 0 kept, 1 failed" in text


def test_song_that_may_be_wrong_has_a_line_with_its_flags(shown):
    text = table(shown, flagged={RAIN.song: ["quiet", "seam@48.0s"]})
    assert f"FLAGGED {RAIN.song}: quiet, seam@48.0s; listen to it\n" in text


def test_song_that_is_kept_is_missing_and_the_line_says_what_to_do(shown):
    text = table(shown, made=[], kept={RAIN.song: "it has no record"}, state="failed")
    assert f"MISSING {RAIN.song}: it has no record; rename or move the file, then run again" in text
    assert "nothing to make" not in text


def test_songs_of_other_runs_are_counted(shown):
    text = table(shown, made=[], made_elsewhere=[RAIN.song, SUN.song], generation_s=0.0)
    assert "nothing to make" not in text
    assert "0 done already, 0 kept, 0 failed, 2 made by other runs meanwhile" in text
    assert "│" not in text


def test_run_with_nothing_to_make_says_so_without_a_table(shown):
    text = table(shown, made=[], done_before=[RAIN.song, SUN.song], generation_s=0.0)
    assert text.startswith("nothing to make\n") and "overhead" not in text
    assert "2 done already" in text
