"""What a run shows: plain lines without a terminal, on any console, and a table that adds up."""

import io

import pytest
from rich.console import Console

from tests.songs import listed, record_of
from worker.engine import Progress
from worker.observe.console import ProgressDisplay, show_summary, span, usd
from worker.run.request import Order, Price, Summary
from worker.songs.records import Survey

RAIN, SUN = listed("rain ; 10 ; rain", "sun ; 90 ; sun")


class Clock:
    """A clock that a test sets."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def shown():
    return io.StringIO()


@pytest.fixture
def display(shown, clock):
    """A display on a pipe, with a list of two songs planned."""
    display = ProgressDisplay(Console(file=shown, width=200), clock)
    display.planned(Survey({}, [], [RAIN, SUN], {}, {}), order())
    return display


def order():
    return Order([RAIN, SUN], [RAIN, SUN], "rehearsal", Price(3600.0, "as set"), "run-1")


def lines(shown):
    return shown.getvalue().splitlines()


def test_plan_says_how_much_there_is_to_make(display, shown):
    assert lines(shown) == ["2 songs to make, 1:40 of audio"]


def test_plan_says_what_is_done_and_what_is_kept(shown):
    found = Survey({}, [RAIN], [], {SUN.song: "it has no record"}, {})
    ProgressDisplay(Console(file=shown, width=200)).planned(found, order())
    assert lines(shown) == [
        f"kept {SUN.song}: it has no record; rename or move it to have the song made",
        "0 songs to make, 0:00 of audio; 1 done already",
    ]


def test_song_has_a_line_when_it_starts_and_when_it_is_made(display, shown, clock):
    display.progress(Progress({RAIN.song: (0, 500)}))
    display.made(record_of(RAIN, generation_s=5.0, estimated_cost_usd=0.0123))
    assert f"start {RAIN.song}: 10 s" in lines(shown)
    assert lines(shown)[-1] == f"made {RAIN.song}: 0:10 in 0:05 (2.0x), $0.0123"


def test_line_says_seconds_speed_time_left_and_cost_so_far(display, shown, clock):
    display.progress(Progress({RAIN.song: (0, 500)}))
    clock.now += 20
    display.progress(Progress({RAIN.song: (250, 500)}))
    assert f"{RAIN.song}: 5/10 s  0.2x  eta 0:20" in lines(shown)
    assert lines(shown)[-1] == "all songs: 5/100 s  0.2x  eta 6:20  $20.00 so far"


def test_many_steps_give_few_lines(display, shown, clock):
    for step in range(1000):
        clock.now += 0.05
        display.progress(Progress({RAIN.song: (step // 2, 500)}))
    assert len(lines(shown)) < 20


def test_plain_lines_hold_no_escapes_and_are_not_folded(display, shown, clock):
    display.progress(Progress({RAIN.song: (0, 500)}))
    display.failed(RAIN.song, "x" * 300)
    assert "\x1b" not in shown.getvalue()
    assert lines(shown)[-1] == f"failed {RAIN.song}: {'x' * 300}"


def test_terminal_gets_bars_for_the_songs_in_work_and_for_the_list(shown, clock):
    console = Console(file=shown, width=120, force_terminal=True)
    with ProgressDisplay(console, clock) as display:
        display.planned(Survey({}, [], [RAIN, SUN], {}, {}), order())
        display.progress(Progress({RAIN.song: (0, 500)}))
        clock.now += 20
        display.progress(Progress({RAIN.song: (250, 500)}))
    assert RAIN.song in shown.getvalue() and "all songs" in shown.getvalue()


@pytest.mark.parametrize("terminal", [False, True])
def test_windows_console_gets_a_question_mark_for_what_it_lacks(terminal, clock):
    raw = io.BytesIO()
    stream = io.TextIOWrapper(raw, "cp1252", errors="replace")
    console = Console(file=stream, width=120, force_terminal=terminal)
    with ProgressDisplay(console, clock) as display:
        display.planned(Survey({}, [], [RAIN], {}, {}), order())
        display.progress(Progress({RAIN.song: (0, 500)}))
        display.failed(RAIN.song, "тихо → 静か")
    show_summary(console, summary(), "out/静か")
    stream.flush()
    assert b"???? ? ??" in raw.getvalue()


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
        "wall_s": 32.0,
    }
    return Summary("run-1", "2026-01-02T03:04:05+00:00", Price(0.36, "as set"), **(fields | changes))


def table(shown, **changes):
    show_summary(Console(file=shown, width=200), summary(**changes), "out/album")
    return shown.getvalue()


def test_table_has_a_row_for_each_song_and_one_that_sums_them(shown):
    cells = [line.replace("│", " ").split() for line in table(shown).splitlines()]
    assert [RAIN.song, "10", "5.0", "s", "2.0x", "$0.0005"] in cells
    assert [SUN.song, "90", "20.0", "s", "4.5x", "$0.0020"] in cells
    assert ["2", "songs", "100", "of", "100", "25.0", "s", "4.0x", "$0.0025"] in cells


def test_overhead_and_the_price_it_is_counted_at_stand_apart(shown):
    assert "overhead 0:07 (loading, audio, saving); price $0.3600 an hour: as set" in table(shown)


def test_last_line_says_where_everything_is(shown):
    assert table(shown).splitlines()[-1] == "songs, records and cost_report.csv are in out/album"


def test_failed_song_is_in_the_table_with_its_reason_as_it_is(shown):
    text = table(shown, made=[], failed={RAIN.song: "KeyError: [/red] gone"}, state="failed")
    assert f"FAILED {RAIN.song}: KeyError: [/red] gone" in text
    assert "0 done already, 0 kept, 1 failed" in text


def test_run_with_nothing_to_make_says_so_without_a_table(shown):
    text = table(shown, made=[], done_before=[RAIN.song, SUN.song], generation_s=0.0)
    assert text.startswith("nothing to make\n")
    assert "2 done already" in text


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0:00"), (7.4, "0:07"), (59.6, "1:00"), (200, "3:20"), (7500, "2:05:00")]
)
def test_span(seconds, text):
    assert span(seconds) == text


@pytest.mark.parametrize(("amount", "text"), [(0, "$0"), (0.0123, "$0.0123"), (1, "$1.00"), (4.557, "$4.56")])
def test_usd(amount, text):
    assert usd(amount) == text
