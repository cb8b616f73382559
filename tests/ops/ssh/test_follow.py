"""Following a log: every byte once and in order, whatever the link does, and Ctrl-C harms nobody."""

import os
import random
import signal
import sys
import threading
import time
from contextlib import contextmanager
from datetime import UTC, datetime

import pytest

from ops.ssh import follow
from ops.ssh import link as links
from ops.ssh.follow import BoxGone
from tests.fakes.proxy import proxying
from tests.ops.ssh.connect import connected
from worker.errors import BadInput

RUN = "20261122T195059Z-ab12"
LINES = [f"--- 2026-11-22T19:5{n}:00Z line {n} кот\n" for n in range(10)]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(links, "PULSE_S", 0.1)
    monkeypatch.setattr(links, "SILENCE_S", 0.7)
    monkeypatch.setattr(follow, "PAUSES_S", (0.1, 0.2))


@pytest.fixture
def run(box):
    """The folder of a run on the box, which is the newest."""
    folder = box.root / "state" / RUN
    folder.mkdir(parents=True)
    (folder.parent / "current").symlink_to(RUN)
    return folder


def write(run, blocks, code, pause_s=0.0):
    """Be the worker: write the log block by block, then the exit code."""
    with (run / "log").open("ab", buffering=0) as log:
        for block in blocks:
            log.write(block)
            time.sleep(pause_s)
    (run / "exit_code.tmp").write_text(f"{code}\n")
    (run / "exit_code.tmp").rename(run / "exit_code")


def in_background(*arguments):
    thread = threading.Thread(target=write, args=arguments)
    thread.start()
    return thread


def test_finished_run_is_given_whole_with_its_exit_code(box, run, tmp_path):
    write(run, [b"one\n", b"two\n"], 4)
    got = bytearray()
    with connected(box, tmp_path) as conn:
        assert follow.follow(conn, str(run), got.extend, print) == 4
    assert got == b"one\ntwo\n"


def test_log_that_does_not_exist_yet_is_waited_for(box, run, tmp_path):
    got = bytearray()
    with connected(box, tmp_path) as conn:
        writer = threading.Timer(0.3, write, (run, [b"late\n"], 0))
        writer.start()
        assert follow.follow(conn, str(run), got.extend, print, poll_s=0.1) == 0
    assert got == b"late\n"


def test_output_is_byte_identical_across_resets_and_half_open_links(box, run, tmp_path):
    rng = random.Random(7)
    blocks = [rng.randbytes(rng.randrange(1, 20_000)) for _ in range(60)]
    got, told = bytearray(), []
    with proxying(box.port) as link, connected(box, tmp_path, link.port) as conn:
        writer = in_background(run, blocks, 3, 0.05)
        spoilers = [(0.5, link.reset), (1.0, link.stall), (2.3, link.reset)]
        timers = [threading.Timer(at_s, act) for at_s, act in spoilers]
        for timer in timers:
            timer.start()
        code = follow.follow(conn, str(run), got.extend, told.append, poll_s=0.05)
        writer.join()
        for timer in timers:
            timer.join()
        assert link.n_connections >= 3
    assert bytes(got) == b"".join(blocks)
    assert code == 3
    assert all("following again" in line for line in told) and told


@contextmanager
def ctrl_c_after(delay_s):
    """Ctrl-C while the block runs; once more if Python drops it, as it does inside a `__del__`. -> when"""
    sent, over = [], threading.Event()

    def press():
        pause_s = delay_s
        while not over.wait(pause_s):
            sent.append(time.monotonic())
            os.kill(os.getpid(), signal.SIGINT)
            pause_s = 0.5

    presser = threading.Thread(target=press)
    presser.start()
    try:
        yield sent
    finally:
        over.set()
        presser.join()


def test_ctrl_c_returns_within_a_second_and_the_worker_goes_on(box, run, tmp_path):
    got = bytearray()
    with connected(box, tmp_path) as conn:
        writer = in_background(run, [b"x\n"] * 20, 0, 0.06)
        with ctrl_c_after(0.5), pytest.raises(KeyboardInterrupt):
            follow.follow(conn, str(run), got.extend, print)
        stopped_at = time.monotonic()
    assert time.monotonic() - stopped_at < 1
    writer.join()
    assert (run / "log").read_bytes() == b"x\n" * 20


def test_ctrl_c_that_python_drops_inside_a_library_ends_the_following_all_the_same(box, run, tmp_path):
    class Closed:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGINT)

    def take(_):
        unraisable = sys.unraisablehook
        sys.unraisablehook = lambda _: None  # where Python tells of what it drops
        Closed()
        sys.unraisablehook = unraisable

    write(run, [b"x\n"], 0)
    with connected(box, tmp_path) as conn, pytest.raises(KeyboardInterrupt):
        follow.follow(conn, str(run), take, print)


def test_ctrl_c_on_a_dead_link_returns_within_a_second(box, run, tmp_path, monkeypatch):
    monkeypatch.setattr(links, "SILENCE_S", 30)
    with proxying(box.port) as link, connected(box, tmp_path, link.port) as conn:
        conn.run("true")
        threading.Timer(0.3, link.stall).start()
        with ctrl_c_after(0.8) as sent, pytest.raises(KeyboardInterrupt):
            follow.follow(conn, str(run), print, print, poll_s=0.1)
        conn.close()
        assert time.monotonic() - sent[0] < 1


def test_box_that_stays_away_is_gone(box, run, tmp_path, monkeypatch):
    monkeypatch.setattr(follow, "GONE_AFTER_S", 0.5)
    with connected(box, tmp_path) as conn:
        conn.run("true")
        threading.Timer(0.3, box.stop).start()
        with pytest.raises(BoxGone):
            follow.follow(conn, str(run), print, print, poll_s=0.1)


@pytest.mark.parametrize("read", [follow.follow, lambda *them: follow.read_to_end(*them[:3])])
def test_reader_that_went_away_is_no_lost_connection(box, run, tmp_path, read):
    def closed(_):
        raise BrokenPipeError

    write(run, [b"one\n"], 0)
    told = []
    with connected(box, tmp_path) as conn, pytest.raises(BrokenPipeError):
        read(conn, str(run), closed, told.append)
    assert told == []


# --- where to begin


def begin(box, tmp_path, **where):
    with connected(box, tmp_path) as conn:
        return follow.beginning(conn, **where)


def test_lines_back_are_counted_in_bytes(box, run, tmp_path):
    (run / "log").write_text("".join(LINES), "utf-8")
    folder, at = begin(box, tmp_path, lines="3")
    assert folder == str(run)
    assert (run / "log").read_bytes()[at:].decode() == "".join(LINES[-3:])


@pytest.mark.parametrize(("since", "first"), [("2026-11-22T19:54:00Z", 4), ("2026-11-22T19:54:30Z", 5)])
def test_since_begins_at_the_first_line_of_that_time(box, run, tmp_path, since, first):
    (run / "log").write_text("".join(LINES), "utf-8")
    _, at = begin(box, tmp_path, since=since, lines="1")
    assert (run / "log").read_bytes()[at:].decode() == "".join(LINES[first:])


def test_run_is_chosen_by_the_end_of_its_id(box, run, tmp_path):
    older = run.parent / "20261121T000000Z-cd34"
    older.mkdir()
    assert begin(box, tmp_path, run="cd34")[0] == str(older)
    assert begin(box, tmp_path)[0] == str(run)
    with pytest.raises(BadInput, match="there is no run ffff"):
        begin(box, tmp_path, run="ffff")


def test_box_without_runs_says_what_to_do(box, tmp_path):
    with pytest.raises(BadInput, match="nothing ever ran here; run: fab run"):
        begin(box, tmp_path)


@pytest.mark.parametrize("where", [{"lines": "x"}, {"run": "$(id)"}])
def test_nonsense_is_refused(box, tmp_path, where):
    with pytest.raises(BadInput):
        begin(box, tmp_path, **where)


def test_since_is_a_span_or_a_time():
    now = datetime(2026, 11, 22, 20, 0, tzinfo=UTC)
    assert follow.since_when("30m", now) == "2026-11-22T19:30:00Z"
    assert follow.since_when("2026-11-22T20:15:00+01:00", now) == "2026-11-22T19:15:00Z"
    assert follow.since_when("2026-11-22T19:15", now) == "2026-11-22T19:15:00Z"
    with pytest.raises(BadInput, match="--since"):
        follow.since_when("yesterday", now)
