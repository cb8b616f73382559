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

from ops.settings import Settings
from ops.ssh import link as links
from ops.ssh import reconnect, run_log
from ops.ssh.link import LinkLost, NoAnswer
from ops.ssh.reconnect import BoxGone
from ops.ssh.run_log import LogQuery
from tests.fakes import s3
from tests.fakes.proxy import proxying
from tests.ops.ssh.connect import connected
from worker.errors import BadInput, UserError
from worker.songs.status import Frames, GpuMemory, Songs, Status
from worker.store.open import open_store

RUN = "20261122T195059Z-ab12"
SOON_S = 10  # it takes a second at most; this machine may be busy
LINES = [f"--- 2026-11-22T19:5{n}:00Z line {n} кот\n" for n in range(10)]


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(links, "KEEPALIVE_S", 0.1)
    monkeypatch.setattr(reconnect, "RETRY_AFTER_S", (0.1, 0.2))
    monkeypatch.setattr(run_log, "POLL_S", 0.05)


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
        assert run_log.follow(conn, str(run), got.extend, print) == 4
    assert got == b"one\ntwo\n"


def test_log_that_does_not_exist_yet_is_waited_for(box, run, tmp_path):
    got = bytearray()
    with connected(box, tmp_path) as conn:
        writer = threading.Timer(0.3, write, (run, [b"late\n"], 0))
        writer.start()
        assert run_log.follow(conn, str(run), got.extend, print) == 0
    assert got == b"late\n"


def test_output_is_byte_identical_across_resets_and_half_open_links(box, run, tmp_path, monkeypatch):
    monkeypatch.setattr(links, "DEAD_AFTER_S", 0.7)
    rng = random.Random(7)
    blocks = [rng.randbytes(rng.randrange(1, 20_000)) for _ in range(60)]
    got, reported = bytearray(), []
    with proxying(box.port) as link, connected(box, tmp_path, link.port) as conn:
        writer = in_background(run, blocks, 3, 0.05)
        spoilers = [(0.5, link.reset), (1.0, link.stall), (2.3, link.reset)]
        timers = [threading.Timer(at_s, act) for at_s, act in spoilers]
        for timer in timers:
            timer.start()
        code = run_log.follow(conn, str(run), got.extend, reported.append)
        writer.join()
        for timer in timers:
            timer.join()
        assert link.n_connections >= 3
    assert bytes(got) == b"".join(blocks)
    assert code == 3
    assert all("following again" in line for line in reported) and reported


def test_link_that_is_lost_before_the_first_byte_is_made_again(box, run, tmp_path, monkeypatch, capfdbinary):
    write(run, [b"one\n"], 4)
    losses = [LinkLost("lost"), NoAnswer("not back yet")]

    def find_start(*arguments, really=run_log.find_start):
        if losses:
            raise losses.pop(0)
        return really(*arguments)

    monkeypatch.setattr(run_log, "find_start", find_start)
    with connected(box, tmp_path) as conn:
        assert run_log.show(conn, Settings.load(env={}), LogQuery()) == 4
    assert capfdbinary.readouterr().out == b"one\n"


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


def test_ctrl_c_returns_at_once_and_the_worker_keeps_running(box, run, tmp_path):
    stopped = threading.Event()

    def blocks():
        yield b"before\n"
        assert stopped.wait(60)
        yield b"after\n"

    with connected(box, tmp_path) as conn:
        writer = in_background(run, blocks(), 0)
        with ctrl_c_after(0.3) as sent, pytest.raises(KeyboardInterrupt):
            run_log.follow(conn, str(run), print, print)
        assert time.monotonic() - sent[0] < SOON_S
        stopped.set()
        writer.join()
    assert (run / "log").read_bytes() == b"before\nafter\n"


def test_ctrl_c_that_python_drops_inside_a_library_ends_the_following_all_the_same(box, run, tmp_path):
    class Closed:
        def __del__(self):
            os.kill(os.getpid(), signal.SIGINT)

    def take(_):
        unraisable = sys.unraisablehook
        sys.unraisablehook = lambda _: None  # where Python reports what it drops
        Closed()
        sys.unraisablehook = unraisable

    write(run, [b"x\n"], 0)
    with connected(box, tmp_path) as conn, pytest.raises(KeyboardInterrupt):
        run_log.follow(conn, str(run), take, print)


def test_ctrl_c_on_a_dead_link_returns_at_once(box, run, tmp_path, monkeypatch):
    monkeypatch.setattr(links, "DEAD_AFTER_S", 30)
    with proxying(box.port) as link, connected(box, tmp_path, link.port) as conn:
        conn.run("true")
        threading.Timer(0.3, link.stall).start()
        with ctrl_c_after(0.8) as sent, pytest.raises(KeyboardInterrupt):
            run_log.follow(conn, str(run), print, print)
        conn.close()
        assert time.monotonic() - sent[0] < SOON_S


def test_box_that_stays_away_is_gone(box, run, tmp_path, monkeypatch):
    monkeypatch.setattr(reconnect, "GONE_AFTER_S", 0.5)
    with connected(box, tmp_path) as conn:
        conn.run("true")
        threading.Timer(0.3, box.stop).start()
        with pytest.raises(BoxGone):
            run_log.follow(conn, str(run), print, print)


@pytest.mark.parametrize("read", [run_log.follow, lambda *them: run_log.read_to_end(*them[:3])])
def test_reader_that_went_away_is_no_lost_connection(box, run, tmp_path, read):
    def closed(_):
        raise BrokenPipeError

    write(run, [b"one\n"], 0)
    reported = []
    with connected(box, tmp_path) as conn, pytest.raises(BrokenPipeError):
        read(conn, str(run), closed, reported.append)
    assert reported == []


# --- where to begin


def start(box, tmp_path, **query):
    with connected(box, tmp_path) as conn:
        return run_log.find_start(conn, LogQuery(**query))


def test_lines_back_are_counted_in_bytes(box, run, tmp_path):
    (run / "log").write_text("".join(LINES), "utf-8")
    folder, job, at = start(box, tmp_path, lines="3")
    assert (folder, job) == (str(run), "")
    assert (run / "log").read_bytes()[at:].decode() == "".join(LINES[-3:])


@pytest.mark.parametrize(("since", "first"), [("2026-11-22T19:54:00Z", 4), ("2026-11-22T19:54:30Z", 5)])
def test_since_begins_at_the_first_line_of_that_time(box, run, tmp_path, since, first):
    (run / "log").write_text("".join(LINES), "utf-8")
    *_, at = start(box, tmp_path, since=since, lines="1")
    assert (run / "log").read_bytes()[at:].decode() == "".join(LINES[first:])


def test_run_is_chosen_by_the_end_of_its_id(box, run, tmp_path):
    older = run.parent / "20261121T000000Z-cd34"
    older.mkdir()
    assert start(box, tmp_path, run="cd34")[0] == str(older)
    assert start(box, tmp_path)[0] == str(run)
    with pytest.raises(BadInput, match="there is no run ffff"):
        start(box, tmp_path, run="ffff")


def test_box_without_runs_says_what_to_do(box, tmp_path):
    with pytest.raises(BadInput, match="there was no run on this box yet; start one: fab run"):
        start(box, tmp_path)


@pytest.mark.parametrize("where", [{"lines": "x"}, {"run": "$(id)"}])
def test_nonsense_is_refused(box, tmp_path, where):
    with pytest.raises(BadInput):
        start(box, tmp_path, **where)


def test_since_is_a_span_or_a_time():
    now = datetime(2026, 11, 22, 20, 0, tzinfo=UTC)
    assert run_log.since_when("30m", now) == "2026-11-22T19:30:00Z"
    assert run_log.since_when("2026-11-22T20:15:00+01:00", now) == "2026-11-22T19:15:00Z"
    assert run_log.since_when("2026-11-22T19:15", now) == "2026-11-22T19:15:00Z"
    with pytest.raises(BadInput, match="--since"):
        run_log.since_when("yesterday", now)


# --- when the box is gone

MINE, OTHER = "20261122T195059Z-ab12", "20261122T205059Z-cd34"


def ended(run_id, code):
    """The last status of a run."""
    return Status(
        schema=1,
        run_id=run_id,
        state="failed" if code else "done",
        updated_at="2026-11-22T19:50:59Z",
        started_at="2026-11-22T19:50:59Z",
        pid=1,
        host="box",
        model="rehearsal",
        device="cpu",
        precision="fp32",
        slots=1,
        progress=7,
        songs=Songs(1, 1, 1, 0, 0),
        frames=Frames(50, 50),
        current=[],
        rate=None,
        eta_s=None,
        hourly_cost_usd=0.86,
        cost_usd=0.1,
        gpu_memory=GpuMemory(1, 2),
        notice=None,
        exit_code=code,
    ).to_json()


@pytest.fixture
def place(s3_url):
    """A bucket in which two boxes had a run each; the other's is newer."""
    place = f"s3://{s3.fresh_bucket(s3_url)}"
    store = open_store(place)
    for run, code in ((MINE, 3), (OTHER, 0)):
        store.write(f"runs/{run}/status.json", ended(run, code))
        store.write(f"runs/{run}/worker.log", f"one\nthe end of {run}\n".encode())
    return place


def test_run_that_was_followed_is_shown_when_its_box_goes_and_no_other(
    box, tmp_path, place, monkeypatch, capfdbinary
):
    monkeypatch.setattr(reconnect, "GONE_AFTER_S", 0.2)
    monkeypatch.setattr(reconnect, "RETRY_AFTER_S", (0.1,))
    run = box.root / "state" / MINE
    run.mkdir(parents=True)
    (run.parent / "current").symlink_to(MINE)
    settings = Settings.load(env={"MUSICGEN_OUTPUT": place})

    def follow(*arguments, really=run_log.follow, **options):
        box.stop()
        return really(*arguments, **options)

    monkeypatch.setattr(run_log, "follow", follow)
    with connected(box, tmp_path) as conn:
        assert run_log.show(conn, settings, LogQuery(lines="1")) == 3
    assert capfdbinary.readouterr().out.decode() == f"the end of {MINE}\n"


def test_box_that_never_answered_shows_no_other_box_s_run(box, tmp_path, place, capfdbinary):
    settings = Settings.load(env={"MUSICGEN_OUTPUT": place})
    box.stop()
    with connected(box, tmp_path) as conn:
        with pytest.raises(UserError, match=r"nothing listens at .*: fab logs --run RUN_ID"):
            run_log.show(conn, settings, LogQuery())
        assert run_log.show(conn, settings, LogQuery(run=MINE)) == 3
    assert f"the end of {MINE}" in capfdbinary.readouterr().out.decode()


def test_run_is_found_by_the_end_of_its_id(place):
    assert run_log.last_run(place, "ab12").exit_code == 3


@pytest.mark.parametrize(("n_lines", "n_shown"), [(0, 0), (1, 1), (20, 2)])
def test_as_many_lines_are_shown_as_were_asked_for(place, n_lines, n_shown):
    assert len(run_log.last_run(place, "ab12", n_lines).tail) == n_shown


def test_damaged_status_is_one_line_that_names_the_run(place):
    open_store(place).write(f"runs/{OTHER}/status.json", b"{")
    with pytest.raises(UserError, match=rf"status\.json is damaged .*; see runs/{OTHER} in s3://"):
        run_log.last_run(place)
