"""The heartbeat: always a whole status.json, the same in both places, and nothing can hold up the run."""

import logging
import os
import subprocess
import sys
import threading
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.songs import Recording, listed, record_of
from worker.engine import Progress
from worker.observe.heartbeat import Heartbeat
from worker.run.request import Order, Price
from worker.songs import status
from worker.songs.records import Survey
from worker.songs.status import Songs
from worker.store.base import Missing
from worker.store.open import open_store

RUN = "20261122T195000Z-ab12"
KEY = f"runs/{RUN}/status.json"
RAIN, SUN, MOON = listed("rain ; 10 ; rain", "sun ; 90 ; sun", "moon ; 5 ; moon")
ORDER = Order([RAIN, SUN, MOON], [RAIN, SUN], "rehearsal", Price(3600.0, "as set"), RUN)
FOUND = Survey({}, [RAIN], [SUN, MOON], {}, {})

posix_only = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")


class Clock:
    """Both clocks; a test moves them."""

    def __init__(self):
        self.s = 1000.0

    def __call__(self):
        return self.s

    def now(self):
        return datetime(2026, 11, 22, 19, 50, tzinfo=UTC) + timedelta(seconds=self.s - 1000)


class Stubborn(Recording):
    """A store whose writes wait until a test opens the gate."""

    def __init__(self, inner):
        super().__init__(inner)
        self.gate, self.entered = threading.Event(), threading.Event()

    def write(self, key, content):
        self.entered.set()
        self.gate.wait(30)
        return super().write(key, content)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def folder(tmp_path):
    """The folder of status.json, which is not there yet."""
    return tmp_path / "state"


@pytest.fixture
def silent(folder, tmp_path, clock):
    """A heartbeat that beats only when it is told to."""
    store = open_store(str(tmp_path / "out"))
    return Heartbeat(folder, store, RUN, "rehearsal", 3600.0, clock=clock, now=clock.now)


def beating(folder, store, **options):
    heartbeat = Heartbeat(folder, store, RUN, "rehearsal", 0.4, **{"every_s": 0.01} | options)
    heartbeat.start()
    return heartbeat


def local(folder):
    return status.read((folder / "status.json").read_bytes())


def wait_until(true, timeout_s=10.0):
    last = time.monotonic() + timeout_s
    while not true():
        assert time.monotonic() < last, "it did not come to pass"
        time.sleep(0.005)


def is_there(store, key=KEY):
    try:
        return store.read(key)
    except Missing:
        return None


# --- what it says


def test_first_beat_tells_who_runs_and_where(silent, folder):
    silent.beat()
    told = local(folder)
    assert (told.run_id, told.model, told.state, told.pid) == (RUN, "rehearsal", "starting", os.getpid())
    assert told.started_at == told.updated_at == "2026-11-22T19:50:00Z"
    assert (told.device, told.rate, told.eta_s, told.notice, told.exit_code) == (None,) * 5


def test_songs_that_are_not_selected_do_not_count(silent):
    silent.planned(FOUND, ORDER)
    assert silent.status().songs == Songs(asked=2, done=1, made=0, failed=0, left=1)


def test_cost_is_that_of_the_whole_time(silent, clock):
    clock.s += 90
    told = silent.status()
    assert (told.hourly_cost_usd, told.cost_usd) == (3600.0, pytest.approx(90.0))
    assert told.updated_at == "2026-11-22T19:51:30Z"


def test_time_left_follows_from_the_rate(silent, clock):
    silent.planned(FOUND, ORDER)
    silent.progress(Progress({SUN.song: (0, 4500)}))
    clock.s += 10
    silent.progress(Progress({SUN.song: (1000, 4500)}))
    told = silent.status()
    assert told.rate == pytest.approx(2.0)
    assert told.eta_s == pytest.approx(35.0)


def test_engine_tells_device_and_slots_and_a_song_that_there_are_fewer_now(silent):
    silent.planned(FOUND, ORDER)
    silent.loaded({"device": "Tesla T4", "precision": "fp16", "slots": 24, "window_s": 30.0})
    told = silent.status()
    assert (told.device, told.precision, told.slots) == ("Tesla T4", "fp16", 24)
    silent.made(record_of(SUN, device="Tesla T4", precision="fp16", slots=12))
    assert silent.status().slots == 12


def test_state_is_generating_with_the_first_frames(silent):
    silent.progress(Progress({SUN.song: (0, 4500)}))
    assert silent.status().state == "generating"


def test_run_that_stops_goes_on_to_say_so(silent):
    silent.note("stopping", "stopped (EC2 takes this spot machine back at 19:55)")
    silent.progress(Progress({SUN.song: (0, 4500)}))
    silent.note("finishing", "finishing 2 songs")
    told = silent.status()
    assert told.state == "stopping"
    assert told.notice == "stopped (EC2 takes this spot machine back at 19:55)"


def test_run_without_songs_in_work_is_finishing(silent):
    silent.note("finishing", "finishing 2 songs")
    assert silent.status().state == "finishing"


def test_beats_alone_are_no_progress(silent, folder, clock):
    silent.planned(FOUND, ORDER)
    silent.progress(Progress({SUN.song: (7, 4500)}))
    silent.beat()
    before = local(folder)
    for _ in range(20):
        clock.s += 5
        silent.progress(Progress({SUN.song: (7, 4500)}))
        silent.note("unreachable", "no answer from S3")
        silent.beat()
    after = local(folder)
    assert after.updated_at > before.updated_at
    assert after.progress == before.progress


def test_other_work_is_progress(silent):
    before = silent.status().progress
    silent.alive()
    silent.alive(3)
    silent.note("checkpoint", "saved rain_5c0ffee0 as it stands")
    assert silent.status().progress == before + 5


def test_torch_is_not_loaded_to_ask_for_gpu_memory(silent, monkeypatch):
    monkeypatch.delitem(sys.modules, "torch", raising=False)
    assert silent.status().gpu_memory is None
    assert "torch" not in sys.modules


def test_gpu_is_not_woken_to_ask_for_its_memory(silent, monkeypatch):
    asleep = SimpleNamespace(cuda=SimpleNamespace(is_initialized=lambda: False))
    monkeypatch.setitem(sys.modules, "torch", asleep)
    assert silent.status().gpu_memory is None


def test_gpu_memory_is_that_of_the_gpu_in_use(silent, monkeypatch):
    cuda = SimpleNamespace(
        is_initialized=lambda: True,
        device_count=lambda: 2,
        memory_reserved=lambda i: (0, 900)[i],
        get_device_properties=lambda i: SimpleNamespace(total_memory=1000 + i),
    )
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    assert silent.status().gpu_memory == status.GpuMemory(900, 1001)


@pytest.mark.parametrize("torch", [SimpleNamespace(), SimpleNamespace(cuda=SimpleNamespace())])
def test_half_imported_torch_does_not_end_the_heartbeat(silent, monkeypatch, torch):
    monkeypatch.setitem(sys.modules, "torch", torch)
    assert silent.status().gpu_memory is None


# --- both places


def test_both_places_end_with_the_same_bytes(folder, store):
    heartbeat = beating(folder, store)
    heartbeat.planned(FOUND, ORDER)
    heartbeat.finish("done", 0)
    assert (folder / "status.json").read_bytes() == store.read(KEY)
    told = local(folder)
    assert (told.state, told.exit_code) == ("done", 0)


def test_store_is_told_while_the_run_goes_on(folder, store):
    heartbeat = beating(folder, store)
    heartbeat.planned(FOUND, ORDER)
    wait_until(lambda: is_there(store))
    heartbeat.alive(1000)
    wait_until(lambda: status.read(store.read(KEY)).progress > 1000)
    assert status.read(store.read(KEY)).exit_code is None
    heartbeat.finish("done", 0)


def test_refused_run_leaves_nothing_in_the_store(folder, store):
    heartbeat = beating(folder, store)
    wait_until((folder / "status.json").exists)
    heartbeat.finish("failed", 2)
    assert local(folder).exit_code == 2
    assert store.list() == {}


def test_first_end_counts(folder, tmp_path):
    heartbeat = beating(folder, open_store(str(tmp_path / "out")))
    heartbeat.finish("interrupted", 75)
    heartbeat.finish("failed", 1)
    heartbeat.state("generating")
    assert (local(folder).state, local(folder).exit_code) == ("interrupted", 75)


def test_end_leaves_one_file_and_no_thread(folder, tmp_path):
    before = set(threading.enumerate())
    heartbeat = beating(folder, open_store(str(tmp_path / "out")))
    assert len(set(threading.enumerate()) - before) == 2
    heartbeat.finish("done", 0)
    assert [path.name for path in folder.iterdir()] == ["status.json"]
    assert not set(threading.enumerate()) - before


# --- what fails


def test_slow_store_delays_neither_the_local_file_nor_the_end(folder, tmp_path):
    store = Stubborn(open_store(str(tmp_path / "out")))
    heartbeat = beating(folder, store)
    heartbeat.planned(FOUND, ORDER)
    assert store.entered.wait(10)
    heartbeat.alive(1000)
    wait_until(lambda: local(folder).progress > 1000)
    began = time.monotonic()
    heartbeat.finish("done", 0, within_s=0.2)
    assert time.monotonic() - began < 2
    assert local(folder).exit_code == 0
    store.gate.set()
    wait_until(lambda: (content := is_there(store)) and status.read(content).exit_code == 0)
    assert len(store.changes) <= 2  # the one that was slow, and the last


def test_store_that_fails_is_logged_once_and_tried_again(folder, tmp_path, caplog):
    runs = tmp_path / "out" / "runs"
    runs.parent.mkdir()
    runs.write_text("in the way")
    heartbeat = beating(folder, open_store(str(tmp_path / "out")))
    heartbeat.planned(FOUND, ORDER)
    wait_until(lambda: caplog.records)
    time.sleep(0.1)
    runs.unlink()
    wait_until(lambda: (tmp_path / "out" / KEY).exists())
    heartbeat.finish("done", 0)
    (line,) = caplog.messages
    assert line.startswith("cannot put status.json into ") and "in the way" not in line


def test_disk_that_fails_does_not_keep_the_store_from_its_copy(folder, tmp_path, caplog):
    folder.write_text("a file, not a folder")
    store = open_store(str(tmp_path / "out"))
    heartbeat = beating(folder, store)
    heartbeat.planned(FOUND, ORDER)
    heartbeat.finish("done", 0)
    assert status.read(store.read(KEY)).exit_code == 0
    (line,) = caplog.messages
    assert line.startswith(f"cannot write {folder / 'status.json'} (")


def test_fault_in_telling_does_not_end_the_telling(folder, tmp_path, caplog):
    heartbeat = Heartbeat(folder, open_store(str(tmp_path / "out")), RUN, "rehearsal", 0.4, every_s=0.01)
    heartbeat.loaded({"slots": object()})
    heartbeat.start()
    wait_until(lambda: caplog.records)
    heartbeat.loaded({"slots": 4})
    wait_until((folder / "status.json").exists)
    heartbeat.finish("done", 0)
    assert local(folder).slots == 4
    assert caplog.record_tuples[0][1] == logging.WARNING


# --- processes that die

# Forks, since a new Python would take longer to start than this does with thirty.
KILLED_AGAIN_AND_AGAIN = """
import os, random, signal, sys, time
from pathlib import Path
from worker.songs import status
from worker.observe.heartbeat import Heartbeat
from worker.run.request import Order, Price
from worker.songs.records import Survey
from worker.store.open import open_store
folder, out, chance = Path(sys.argv[1]), sys.argv[2], random.Random(int(sys.argv[3]))
file = folder / "status.json"
open_store(out).write("first", b"")  # loads what a write needs, once for all
for n in range(30):
    victim = os.fork()
    if not victim:
        heartbeat = Heartbeat(folder, open_store(out), "run-1", "m" * 5000, 0.4, every_s=0)
        heartbeat.planned(Survey({}, [], [], {}, {}), Order([], [], "m", Price(0.4, "as set"), "run-1"))
        heartbeat.start()
        while True:
            heartbeat.alive()
            time.sleep(0.001)
    while not file.exists():
        time.sleep(0.001)
    last = time.monotonic() + chance.uniform(0.0, 0.05)
    while time.monotonic() < last:
        status.read(file.read_bytes())
    os.kill(victim, signal.SIGKILL)
    os.waitpid(victim, 0)
    status.read(file.read_bytes())
    uploaded = Path(out, "runs/run-1/status.json")
    if uploaded.exists():
        status.read(uploaded.read_bytes())
print(status.read(file.read_bytes()).exit_code)
"""

INTERRUPTED = """
import signal, sys
from pathlib import Path
from worker.engine import Progress
from worker.observe.heartbeat import Heartbeat
from worker.observe.run_log import Journal
from worker.store.open import open_store
folder, store = Path(sys.argv[1]), open_store(sys.argv[2])
heartbeat = Heartbeat(folder, store, "run-1", "m", 0.4, every_s=0.001)
journal = Journal(folder, store, "run-1")
n_signals = 0
def handler(*_):
    global n_signals
    n_signals += 1
    heartbeat.note("stopping", "asked to")
    journal.note("stopping", "asked to")
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.001, 0.001)
heartbeat.start()
while n_signals < 200:
    heartbeat.progress(Progress({"a": (1, 2)}))
    journal.note("step", "one")
signal.setitimer(signal.ITIMER_REAL, 0)
heartbeat.finish("interrupted", 75)
"""


def child(script, *args):
    root = Path(__file__).parents[3]
    return subprocess.Popen(
        [sys.executable, "-c", script, *map(str, args)],
        env={**os.environ, "PYTHONPATH": str(root)},
        stdout=subprocess.PIPE,
        text=True,
    )


@posix_only
def test_status_is_whole_whenever_it_is_read_and_whenever_its_process_is_killed(tmp_path, rng):
    with child(KILLED_AGAIN_AND_AGAIN, tmp_path / "state", tmp_path / "out", rng.randrange(2**32)) as process:
        try:
            assert process.wait(60) == 0
        finally:
            process.kill()
        assert process.stdout.read() == "None\n"


@posix_only
def test_signal_handler_may_tell_what_happens_at_any_moment(tmp_path):
    with child(INTERRUPTED, tmp_path / "state", tmp_path / "out") as process:
        try:
            assert process.wait(30) == 0
        finally:
            process.kill()
    assert local(tmp_path / "state").exit_code == 75
    lines = (tmp_path / "state" / "worker.jsonl").read_text().splitlines()
    assert len([line for line in lines if '"stopping"' in line]) >= 200
