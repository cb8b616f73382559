"""The heartbeat: always a whole status.json, the same on disk and in the store; nothing holds up the run."""

import logging
import os
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.songs import Recording, listed, record_of
from tests.worker.observe.metered import RUN, MeteredRun
from worker.observe.heartbeat import Heartbeat
from worker.songs import status
from worker.songs.status import Songs
from worker.store.base import Missing
from worker.store.open import open_store

KEY = f"runs/{RUN}/status.json"
RAIN, SUN, MOON = listed("rain ; 10 ; rain", "sun ; 90 ; sun", "moon ; 5 ; moon")

posix_only = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")


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
def run():
    """One song to make, one that is done, one that is not selected; not planned yet."""
    return MeteredRun(todo=[SUN], done=[RAIN], others=[MOON])


@pytest.fixture
def folder(tmp_path):
    """The folder of status.json, which is not there yet."""
    return tmp_path / "state"


@pytest.fixture
def silent(run, folder, tmp_path):
    """A heartbeat that beats only when it is told to."""
    store = open_store(str(tmp_path / "out"))
    heartbeat = Heartbeat(folder, store, run.request, run.meter, clock=run.clock, now=run.clock.now)
    run.observed_by(heartbeat)
    return heartbeat


def beating(run, folder, store):
    heartbeat = Heartbeat(folder, store, run.request, run.meter, every_s=0.01)
    run.observed_by(heartbeat)
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


def test_first_beat_names_the_run_and_its_machine(silent, folder):
    silent.beat()
    found = local(folder)
    assert (found.run_id, found.model, found.state, found.pid) == (RUN, "rehearsal", "starting", os.getpid())
    assert found.started_at == found.updated_at == "2026-11-22T19:50:00Z"
    assert (found.device, found.rate, found.eta_s, found.notice, found.exit_code) == (None,) * 5


def test_pod_is_named_by_its_id(silent, monkeypatch):
    monkeypatch.setenv("RUNPOD_POD_ID", "k2u8d5v3q9xj1a")
    assert silent.status().host == "k2u8d5v3q9xj1a"


def test_songs_that_are_not_selected_do_not_count(run, silent):
    run.plan()
    assert silent.status().songs == Songs(asked=2, done=1, made=0, failed=0, left=1)


def test_cost_is_that_of_the_whole_time(run, silent):
    run.clock.now_s = 90
    found = silent.status()
    assert (found.hourly_cost_usd, found.cost_usd) == (3600.0, pytest.approx(90.0))
    assert found.updated_at == "2026-11-22T19:51:30Z"


def test_rate_and_eta_are_the_meters(run, silent):
    run.plan()
    run.at(0, (SUN, 0))
    run.at(10, (SUN, 1000))
    found = silent.status()
    assert found.rate == pytest.approx(2.0)
    assert found.eta_s == pytest.approx(35.0)


def test_device_and_slots_are_the_engines_and_later_those_of_the_last_song(run, silent):
    run.plan()
    silent.loaded({"device": "Tesla T4", "precision": "fp16", "slots": 24, "window_s": 30.0})
    found = silent.status()
    assert (found.device, found.precision, found.slots) == ("Tesla T4", "fp16", 24)
    run.observer.made(record_of(SUN, device="Tesla T4", precision="fp16", slots=12))
    assert silent.status().slots == 12


def test_state_is_generating_with_the_first_frames(run, silent):
    run.at(0, (SUN, 0))
    assert silent.status().state == "generating"


def test_run_that_stops_keeps_reporting_so(run, silent):
    run.observer.note("stopping", "stopped (EC2 takes this spot machine back at 19:55)")
    run.at(0, (SUN, 0))
    run.observer.note("finishing", "finishing 2 songs")
    found = silent.status()
    assert found.state == "stopping"
    assert found.notice == "stopped (EC2 takes this spot machine back at 19:55)"


def test_run_that_only_finishes_songs_is_finishing(run, silent):
    run.observer.note("finishing", "finishing 2 songs")
    assert silent.status().state == "finishing"


def test_beats_alone_are_no_work(run, silent, folder):
    run.plan()
    run.at(0, (SUN, 7))
    silent.beat()
    before = local(folder)
    for beat in range(1, 21):
        run.at(5 * beat, (SUN, 7))
        run.observer.note("unreachable", "no answer from S3")
        silent.beat()
    after = local(folder)
    assert after.updated_at > before.updated_at
    assert after.progress == before.progress


def test_other_work_counts(run, silent):
    before = silent.status().progress
    run.meter.alive()
    run.meter.alive(3)
    run.observer.note("checkpoint", "saved rain_5c0ffee0 as it stands")
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


def test_both_places_end_with_the_same_bytes(run, folder, store):
    heartbeat = beating(run, folder, store)
    run.plan()
    heartbeat.finish("done", 0)
    assert (folder / "status.json").read_bytes() == store.read(KEY)
    found = local(folder)
    assert (found.state, found.exit_code) == ("done", 0)


def test_status_is_uploaded_while_the_run_continues(run, folder, store):
    heartbeat = beating(run, folder, store)
    run.plan()
    wait_until(lambda: is_there(store))
    run.meter.alive(1000)
    wait_until(lambda: status.read(store.read(KEY)).progress > 1000)
    assert status.read(store.read(KEY)).exit_code is None
    heartbeat.finish("done", 0)


def test_refused_run_leaves_nothing_in_the_store(run, folder, store):
    heartbeat = beating(run, folder, store)
    wait_until((folder / "status.json").exists)
    heartbeat.finish("failed", 2)
    assert local(folder).exit_code == 2
    assert store.list() == {}


def test_first_end_counts(run, folder, tmp_path):
    heartbeat = beating(run, folder, open_store(str(tmp_path / "out")))
    heartbeat.finish("interrupted", 75)
    heartbeat.finish("failed", 1)
    run.observer.note("stopping", "asked to")
    run.at(0, (SUN, 0))
    assert (local(folder).state, local(folder).exit_code) == ("interrupted", 75)


def test_end_leaves_one_file_and_no_thread(run, folder, tmp_path):
    before = set(threading.enumerate())
    heartbeat = beating(run, folder, open_store(str(tmp_path / "out")))
    assert len(set(threading.enumerate()) - before) == 2
    heartbeat.finish("done", 0)
    assert [path.name for path in folder.iterdir()] == ["status.json"]
    assert not set(threading.enumerate()) - before


# --- what fails


def test_slow_store_delays_neither_the_local_file_nor_the_end(run, folder, tmp_path):
    store = Stubborn(open_store(str(tmp_path / "out")))
    heartbeat = beating(run, folder, store)
    run.plan()
    assert store.entered.wait(60)
    run.meter.alive(1000)
    wait_until(lambda: local(folder).progress > 1000)
    began = time.monotonic()
    heartbeat.finish("done", 0, within_s=0.2)
    assert time.monotonic() - began < 2
    assert local(folder).exit_code == 0
    store.gate.set()
    wait_until(lambda: (content := is_there(store)) and status.read(content).exit_code == 0)
    assert len(store.changes) <= 2  # the one that was slow, and the last


def test_store_that_fails_is_logged_once_and_tried_again(run, folder, tmp_path, caplog):
    runs = tmp_path / "out" / "runs"
    runs.parent.mkdir()
    runs.write_text("in the way")
    heartbeat = beating(run, folder, open_store(str(tmp_path / "out")))
    run.plan()
    wait_until(lambda: caplog.records)
    time.sleep(0.1)
    runs.unlink()
    wait_until(lambda: (tmp_path / "out" / KEY).exists())
    heartbeat.finish("done", 0)
    (line,) = caplog.messages
    assert line.startswith("cannot upload status.json to ") and "in the way" not in line


def test_disk_that_fails_does_not_keep_the_store_from_its_copy(run, folder, tmp_path, caplog):
    folder.write_text("a file, not a folder")
    store = open_store(str(tmp_path / "out"))
    heartbeat = beating(run, folder, store)
    run.plan()
    heartbeat.finish("done", 0)
    assert status.read(store.read(KEY)).exit_code == 0
    (line,) = caplog.messages
    assert line.startswith(f"cannot write {folder / 'status.json'} (")


def test_status_that_cannot_be_written_does_not_end_the_heartbeat(run, folder, tmp_path, caplog):
    store = open_store(str(tmp_path / "out"))
    heartbeat = Heartbeat(folder, store, run.request, run.meter, every_s=0.01)
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
from worker.run.progress import ProgressMeter
from worker.run.request import RunRequest
from worker.songs.records import Survey
from worker.songs.summary import Price
from worker.store.open import open_store
request = RunRequest([], [], "m" * 5000, Price(0.4, "as set"), "run-1")
folder, out, chance = Path(sys.argv[1]), sys.argv[2], random.Random(int(sys.argv[3]))
file = folder / "status.json"
open_store(out).write("first", b"")  # loads what a write needs, once for all
for n in range(30):
    victim = os.fork()
    if not victim:
        meter = ProgressMeter()
        heartbeat = Heartbeat(folder, open_store(out), request, meter, every_s=0)
        heartbeat.planned(Survey({}, [], [], {}, {}), request)
        heartbeat.start()
        while True:
            meter.alive()
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
from worker.observe.run_log import RunLog
from worker.run.observer import Observers
from worker.run.progress import ProgressMeter
from worker.run.request import RunRequest
from worker.songs.jobs import parse
from worker.songs.records import Survey
from worker.songs.summary import Price
from worker.store.open import open_store
folder, store = Path(sys.argv[1]), open_store(sys.argv[2])
(job,) = parse(b"rain ; 30 ; rain")
request = RunRequest([job], [job], "m", Price(0.4, "as set"), "run-1")
meter = ProgressMeter()
heartbeat = Heartbeat(folder, store, request, meter, every_s=0.001)
run_log = RunLog(folder, store, "run-1")
observer = Observers(meter, heartbeat, run_log)
observer.planned(Survey({}, [], [job], {}, {}), request)
n_signals = 0
def handler(*_):
    global n_signals
    n_signals += 1
    observer.note("stopping", "asked to")
    signal.setitimer(signal.ITIMER_REAL, 0.001)  # set anew each time: on a busy machine they would pile up
signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 0.001)
heartbeat.start()
while n_signals < 60:
    observer.progress(Progress({job.song: (1, 1500)}))
    observer.note("step", "one")
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
def test_signal_handler_may_report_at_any_moment(tmp_path):
    with child(INTERRUPTED, tmp_path / "state", tmp_path / "out") as process:
        try:
            assert process.wait(120) == 0
        finally:
            process.kill()
    assert local(tmp_path / "state").exit_code == 75
    lines = (tmp_path / "state" / "worker.jsonl").read_text().splitlines()
    assert len([line for line in lines if '"stopping"' in line]) >= 60
