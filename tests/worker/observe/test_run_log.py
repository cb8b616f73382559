"""The run's log: every event once in both files, no secret in either, and nothing stops the run."""

import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from tests.songs import Recording, listed, record_of
from tests.worker.observe.metered import RUN, MeteredRun
from worker.engine import Progress
from worker.observe import run_log as module
from worker.observe.run_log import RunLog
from worker.run.observer import Begun
from worker.store.base import Missing
from worker.store.open import open_store

RAIN, SUN, MOON = listed("rain ; 30 ; rain", "sun ; 90 ; sun", "moon ; 5 ; moon")
PLANNED = MeteredRun(todo=[SUN], done=[RAIN], others=[MOON], hourly_usd=0.4)
AT = "2026-11-22T19:50:59Z"
LINE = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ ")

posix_only = pytest.mark.skipif(os.name == "nt", reason="needs POSIX devices, limits or signals")


@pytest.fixture
def folder(tmp_path):
    """The folder of the log, which is not there yet."""
    return tmp_path / "state"


def log_in(folder, store=None, **options):
    options = {"now": lambda: datetime(2026, 11, 22, 19, 50, 59, tzinfo=UTC), "env": {}} | options
    return RunLog(folder, store or open_store(str(folder.parent / "out")), RUN, **options)


@pytest.fixture
def run_log(folder):
    return log_in(folder)


def text_of(folder):
    return (folder / "worker.log").read_text("utf-8")


def entries_of(folder):
    return parsed((folder / "worker.jsonl").read_bytes())


def parsed(content: bytes):
    assert content == b"" or content.endswith(b"\n")
    return [json.loads(line) for line in content.split(b"\n")[:-1]]


def wait_until(true, timeout_s=10.0):
    last = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < last, "it did not come to pass"
        time.sleep(0.005)


# --- what it says


def test_made_song_has_a_line_with_its_time_and_cost(run_log, folder):
    run_log.made(record_of(RAIN, generation_s=12.3, estimated_cost_usd=0.00137))
    assert text_of(folder) == f"{AT} made {RAIN.song}: 30 s of audio in 12.3 s, $0.0014\n"


def test_made_song_that_may_be_wrong_has_its_flags_in_the_line(run_log, folder):
    run_log.made(record_of(RAIN, quality={"flags": ["silent"]}))
    assert text_of(folder).endswith("; flagged: silent\n")
    (entry,) = entries_of(folder)
    assert entry["flags"] == ["silent"]


def test_event_is_one_json_object_with_its_facts(run_log, folder):
    run_log.note("claimed", "claimed rain", song=RAIN.song, after_s=1.5, tries=[1, 2])
    assert entries_of(folder) == [
        {
            "schema": 1,
            "time": AT,
            "level": "info",
            "event": "claimed",
            "text": "claimed rain",
            "song": RAIN.song,
            "after_s": 1.5,
            "tries": [1, 2],
        }
    ]


def test_plan_tells_what_there_is_to_make_and_at_which_price(run_log, folder):
    run_log.planned(PLANNED.found, PLANNED.request)
    assert text_of(folder) == f"{AT} 1 song to make, 1 min 30 s of audio; 1 done already\n"
    (entry,) = entries_of(folder)
    assert (entry["to_make"], entry["done_before"]) == ([SUN.song], [RAIN.song])
    assert (entry["hourly_cost_usd"], entry["price_basis"], entry["run_id"]) == (0.4, "as set", RUN)


def test_song_that_is_kept_is_named_unless_it_is_not_asked_for(run_log, folder):
    run = MeteredRun(kept=[(RAIN, "it has no record")])
    run.found.kept[MOON.song] = "other"
    run_log.planned(run.found, run.request)
    assert f"{AT} warning: kept {RAIN.song}: it has no record\n" in text_of(folder)
    assert MOON.song not in text_of(folder)


def test_failure_and_song_of_another_run_have_a_line(run_log, folder):
    run_log.failed(RAIN.song, "out of luck")
    run_log.made_elsewhere(SUN.song)
    assert text_of(folder) == (
        f"{AT} error: failed {RAIN.song}: out of luck\n"
        f"{AT} skipped {SUN.song}: another run has made it meanwhile\n"
    )


def test_resumed_song_says_where_it_is_resumed_and_another_nothing(run_log, folder):
    run_log.begun(Begun(SUN.song, AT))
    run_log.begun(Begun(RAIN.song, AT, n_made=1200, n_frames=1500, charged_s=8.0, n_resumed=1))
    assert text_of(folder) == f"{AT} resuming {RAIN.song} from frame 1200 of 1500\n"
    (entry,) = entries_of(folder)
    assert (entry["event"], entry["frame"], entry["charged_s"]) == ("resumed", 1200, 8.0)


def test_many_steps_give_one_line_a_minute(folder):
    clock = iter(range(0, 10_000, 10))
    run_log = log_in(folder, clock=lambda: next(clock))
    for step in range(31):  # 300 s
        run_log.progress(Progress({RAIN.song: (step, 100)}))
    assert [entry["frames"][RAIN.song][0] for entry in entries_of(folder)] == [0, 6, 12, 18, 24, 30]


def test_line_of_progress_names_a_few_songs_and_the_entry_all(run_log, folder):
    run_log.progress(Progress({f"song{n}": (n, 10) for n in range(6)}))
    assert text_of(folder).endswith("working on song0 0%, song1 10%, song2 20%, song3 30% and 2 more\n")
    assert len(entries_of(folder)[0]["frames"]) == 6


def test_warning_of_any_library_is_noted_with_its_traceback(run_log, folder):
    logger = logging.getLogger("some.library")
    logger.addHandler(run_log.handler)
    try:
        logger.info("no matter")
        try:
            raise ValueError("planted")
        except ValueError:
            logger.exception("it went %s", "wrong")
    finally:
        logger.removeHandler(run_log.handler)
    (entry,) = entries_of(folder)
    assert (entry["event"], entry["level"], entry["logger"]) == ("log", "error", "some.library")
    assert text_of(folder).startswith(f"{AT} error: it went wrong\n    Traceback (most recent call last):\n")
    assert text_of(folder).endswith("    ValueError: planted\n")


def test_second_worker_in_the_folder_continues_the_log(folder):
    log_in(folder).note("first", "first")
    log_in(folder).note("second", "second")
    assert [entry["event"] for entry in entries_of(folder)] == ["first", "second"]


# --- whatever is noted


facts = st.dictionaries(
    st.text(max_size=5).filter(lambda name: name not in ("event", "text", "level", "self")),
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.lists(st.text(), max_size=2),
    max_size=3,
)


@settings(max_examples=50)
@given(st.lists(st.tuples(st.text(), facts), min_size=1, max_size=3))
def test_every_event_is_one_line_in_each_file_whatever_it_says(tmp_path_factory, events):
    folder = tmp_path_factory.mktemp("any") / "state"
    run_log = log_in(folder)
    for text, its in events:
        run_log.note("any", text, **its)
    entries = entries_of(folder)
    assert [entry["text"] for entry in entries] == [text for text, _ in events]
    assert all((entry["schema"], entry["time"], entry["event"]) == (1, AT, "any") for entry in entries)
    lines = (folder / "worker.log").read_bytes().decode().splitlines()
    assert len([line for line in lines if LINE.match(line)]) == len(events)
    assert all(LINE.match(line) or line.startswith("    ") for line in lines)


def test_text_cannot_forge_a_line_or_an_escape_sequence(run_log, folder):
    run_log.note("any", f"first\r\n{AT} made nothing\x1b[2Jat all\x85{AT} forged")
    assert text_of(folder) == f"{AT} first\n    {AT} made nothing [2Jat all {AT} forged\n"


def test_fact_that_is_no_json_is_noted_as_text(run_log, folder):
    run_log.note("any", "any", path=Path("a"), rate=float("nan"), pairs={"a": (1, Path("b"))})
    (entry,) = entries_of(folder)
    assert (entry["path"], entry["rate"], entry["pairs"]) == ("a", "nan", {"a": [1, "b"]})


def test_threads_do_not_mix_their_lines(run_log, folder):
    def work(name):
        for n in range(100):
            run_log.note("step", f"{name} {n} " + "x" * 500)

    threads = [threading.Thread(target=work, args=(name,)) for name in "abcd"]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    said = [entry["text"] for entry in entries_of(folder)]
    assert len(said) == 400
    assert [line.split(" ", 1)[1] for line in text_of(folder).splitlines()] == said  # in the same order


# --- the disk

KILLED = """
import os, signal, sys
from pathlib import Path
from worker.observe.run_log import RunLog
from worker.store.open import open_store
run_log = RunLog(Path(sys.argv[1]), open_store(sys.argv[2]), "run-1")
for n in range(100):
    run_log.note("step", f"step {n}")
os.kill(os.getpid(), signal.SIGKILL)
"""

FULL = """
import resource, sys
from pathlib import Path
from worker.observe.run_log import RunLog
from worker.store.open import open_store
run_log = RunLog(Path(sys.argv[1]), open_store(sys.argv[2]), "run-1")
most = resource.getrlimit(resource.RLIMIT_FSIZE)[1]
resource.setrlimit(resource.RLIMIT_FSIZE, (5000, most))
for n in range(100):
    run_log.note("step", f"step {n} " + "x" * 100)
resource.setrlimit(resource.RLIMIT_FSIZE, (most, most))
run_log.note("after", "after")
"""


def run_script(script, *args):
    root = Path(__file__).parents[3]
    command = [sys.executable, "-c", script, *map(str, args)]
    return subprocess.run(command, env={**os.environ, "PYTHONPATH": str(root)}, timeout=60).returncode


@posix_only
def test_what_was_noted_survives_a_kill(tmp_path):
    assert run_script(KILLED, tmp_path / "state", tmp_path / "out") == -signal.SIGKILL
    assert len(entries_of(tmp_path / "state")) == 100
    assert len(text_of(tmp_path / "state").splitlines()) == 100


@posix_only
def test_full_disk_leaves_no_half_line_and_is_told_of_later(tmp_path):
    assert run_script(FULL, tmp_path / "state", tmp_path / "out") == 0
    *steps, missing, after = entries_of(tmp_path / "state")
    assert 0 < len(steps) < 50
    assert (missing["event"], missing["level"]) == ("missing", "warning")
    assert missing["n_entries"] == 100 - len(steps)
    assert after["event"] == "after"
    assert all(LINE.match(line) for line in text_of(tmp_path / "state").splitlines())


@posix_only
def test_disk_that_takes_nothing_stops_nothing(run_log, folder):
    folder.mkdir()
    for name in ("worker.log", "worker.jsonl"):
        (folder / name).symlink_to("/dev/full")
    run_log.note("lost", "lost")
    for file in folder.iterdir():
        file.unlink()
    run_log.note("kept", "kept")
    assert text_of(folder) == (
        f"{AT} warning: 1 event missing here: the disk was full or not writable\n{AT} kept\n"
    )


def test_folder_that_cannot_be_stops_nothing(folder, store):
    folder.write_text("a file")
    run_log = log_in(folder, store)
    run_log.start()
    run_log.planned(PLANNED.found, PLANNED.request)
    run_log.close()
    assert folder.read_text() == "a file"


# --- the store


def stored(store, name="worker.log"):
    try:
        return store.read(f"runs/{RUN}/{name}")
    except Missing:
        return None


def test_both_files_are_in_the_store_at_the_end(folder, store):
    run_log = log_in(folder, store)
    run_log.start()
    run_log.planned(PLANNED.found, PLANNED.request)
    run_log.note("last", "the last word")
    run_log.close()
    for name in ("worker.log", "worker.jsonl"):
        assert stored(store, name) == (folder / name).read_bytes()


def test_log_is_in_the_store_while_the_run_goes_on(folder, store):
    run_log = log_in(folder, store, every_s=0.01)
    run_log.start()
    run_log.planned(PLANNED.found, PLANNED.request)
    wait_until(lambda: stored(store))
    run_log.note("more", "more to tell")
    wait_until(lambda: b"more to tell" in stored(store))
    run_log.close()


def test_log_that_has_not_grown_is_not_uploaded_again(folder, tmp_path):
    store = Recording(open_store(str(tmp_path / "out")))
    run_log = log_in(folder, store)
    run_log.note("one", "one")
    for _ in range(3):
        run_log.upload()
    assert len(store.changes) == 2
    run_log.note("two", "two")
    run_log.upload()
    assert len(store.changes) == 4


def test_refused_run_leaves_no_log_in_the_store(folder, store):
    run_log = log_in(folder, store, every_s=0.01)
    run_log.start()
    run_log.note("error", "songs of another model are there", level="error")
    run_log.close()
    assert store.list() == {}


@pytest.mark.parametrize("line_bytes", [10, 30_000])
def test_long_log_is_uploaded_with_its_beginning_and_its_end(folder, tmp_path, monkeypatch, line_bytes):
    # A tenth of what is allowed in earnest.
    for name, n_bytes in (("MAX_UPLOAD", 500_000), ("_HEAD", 100_000), ("_TAIL", 398_000)):
        monkeypatch.setattr(module, f"{name}_BYTES", n_bytes)
    store = open_store(str(tmp_path / "out"))
    folder.mkdir()
    lines = [
        json.dumps({"event": "step", "n": n, "x": "x" * line_bytes})
        for n in range(900_000 // (line_bytes + 30))
    ]
    whole = ("\n".join(lines) + "\n").encode()
    for name in ("worker.log", "worker.jsonl"):
        (folder / name).write_bytes(whole)
    log_in(folder, store).upload()
    content = stored(store, "worker.jsonl")
    assert 500_000 - 2 * line_bytes - 3_000 < len(content) <= 500_000
    entries = parsed(content)
    (at,) = [at for at, entry in enumerate(entries) if entry["event"] == "left_out"]
    made = content.split(b"\n")
    head, tail = b"\n".join(made[:at]) + b"\n", b"\n".join(made[at + 1 :])
    assert whole.startswith(head) and whole.endswith(tail)
    assert len(head) + entries[at]["n_bytes"] + len(tail) == len(whole)
    assert (
        f"{AT} {entries[at]['n_bytes']} bytes left out here; the whole file is {folder / 'worker.log'}\n"
        in (stored(store).decode())
    )


def test_store_that_fails_is_noted_once_and_tried_again(folder, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "runs").write_text("in the way")
    run_log = log_in(folder, open_store(str(tmp_path / "out")))
    run_log.note("one", "one")
    for _ in range(3):
        run_log.upload()
    assert [entry["event"] for entry in entries_of(folder)] == ["one", "upload_failed"]
    (tmp_path / "out" / "runs").unlink()
    run_log.upload()
    assert (tmp_path / "out" / "runs" / RUN / "worker.log").read_bytes() == text_of(folder).encode()


class Hanging(Recording):
    """A store that answers when a test says so."""

    def __init__(self, inner):
        super().__init__(inner)
        self.gate = threading.Event()

    def write(self, key, content):
        self.gate.wait(30)
        return super().write(key, content)


def test_store_that_hangs_delays_neither_a_note_nor_the_end_for_long(folder, tmp_path):
    store = Hanging(open_store(str(tmp_path / "out")))
    run_log = log_in(folder, store, every_s=0.01)
    run_log.start()
    began = time.monotonic()
    run_log.planned(PLANNED.found, PLANNED.request)
    time.sleep(0.05)
    run_log.note("more", "more")
    run_log.close(within_s=0.1)
    assert time.monotonic() - began < 2
    store.gate.set()
    wait_until(lambda: stored(store) == text_of(folder).encode())


def test_closed_journal_leaves_no_thread(folder, tmp_path):
    before = set(threading.enumerate())
    run_log = log_in(folder)
    run_log.start()
    assert set(threading.enumerate()) > before
    run_log.close()
    assert not set(threading.enumerate()) - before
