"""Console, status and summary of one run show the same numbers, the meter's, and one kind of timestamp."""

import io
import json
import re

import pytest
from rich.console import Console

from tests.songs import listed, record_of, tree
from tests.worker.observe.metered import RUN, MeteredRun
from tests.worker.run import scripted
from worker import timestamps
from worker.observe.console import ConsoleDisplay, show_summary
from worker.observe.heartbeat import Heartbeat
from worker.observe.run_log import RunLog
from worker.run import batch
from worker.run.context import RunContext
from worker.run.ledger import RunLedger
from worker.run.observer import Begun, Observers
from worker.run.progress import ProgressMeter
from worker.store.open import open_store

HOUR, RAIN, DONE = listed("hour ; 3600 ; hour", "rain ; 60 ; rain", "done ; 5 ; done")
AT = "2026-11-22T19:50:00Z"


class ObservedRun(MeteredRun):
    """A run with a console, a heartbeat and a ledger, which observe it as in worker/run/batch.py."""

    def __init__(self, tmp_path):
        super().__init__(todo=[HOUR, RAIN], done=[DONE])
        self.store, self.shown = open_store(str(tmp_path / "out")), io.StringIO()
        display = ConsoleDisplay(Console(file=self.shown, width=200), self.meter, self.clock)
        self.heartbeat = Heartbeat(
            tmp_path, self.store, self.request, self.meter, clock=self.clock, now=self.clock.now
        )
        context = RunContext(self.request, self.store, self.meter, self.meter)
        self.ledger = RunLedger(context, self.found)
        self.observed_by(display, self.heartbeat)
        self.observer = Observers(self.ledger, self.observer)

    @property
    def lines(self):
        return self.shown.getvalue().splitlines()


@pytest.fixture
def run(tmp_path):
    """Ten seconds into a run that resumes an hour's song at 3,000 s and begins another: 1.5 s a second."""
    run = ObservedRun(tmp_path).plan()
    run.observer.begun(Begun(HOUR.song, AT, n_made=150_000, n_frames=180_000, charged_s=700.0, n_resumed=1))
    run.observer.begun(Begun(RAIN.song, AT))
    for second in range(11):
        run.at(second, (HOUR, 150_000 + 50 * second), (RAIN, 25 * second))
    return run


def test_speed_and_eta_are_the_same_on_console_and_in_status(run):
    status = run.heartbeat.status()
    assert status.rate == pytest.approx(1.5)
    assert status.eta_s == pytest.approx(590)
    assert run.lines[-1] == "all songs: 3015/3660 s  1.5x  eta 9 min 50 s  $10.00 so far"
    assert status.cost_usd == pytest.approx(10)
    assert f"{HOUR.song}: 3010/3600 s  1.0x  eta 9 min 50 s" in run.lines
    assert f"{RAIN.song}: 5/60 s  0.5x  eta 1 min 50 s" in run.lines


def test_real_time_factor_of_the_summary_is_that_speed(run):
    run.ledger.charge(10.0)
    run.ledger.write()
    written = json.loads(run.store.read(f"runs/{RUN}/summary.json"))
    assert written["real_time_factor"] == pytest.approx(run.heartbeat.status().rate)
    assert written["generated_s"] == pytest.approx(run.meter.made_s) == pytest.approx(15)


def test_songs_are_counted_alike_to_the_end(run):
    for second in range(20, 591, 10):
        run.at(second, (HOUR, 150_000 + 50 * second), (RAIN, min(3000, 25 * second)))
    run.at(600, (HOUR, 180_000), (RAIN, 3000))
    for job, generation_s in ((RAIN, 300.0), (HOUR, 1000.0)):
        run.observer.made(record_of(job, generation_s=generation_s))
    run.ledger.charge(600.0)
    run.ledger.close("done")
    summary, status = run.ledger.summary, run.heartbeat.status()
    assert (status.songs.made, status.songs.done, status.songs.left) == (2, 3, 0)
    assert (len(summary.made), len(summary.done_before), run.ledger.n_left) == (2, 1, 0)
    assert (status.eta_s, status.current) == (0, [])
    assert summary.generated_s == pytest.approx(600 + 60)
    assert summary.real_time_factor == pytest.approx(1.1)
    show_summary(Console(file=run.shown, width=200), summary, "out")
    assert ["2", "songs", "3,660", "of", "3,665", "600.0", "s", "1.1x", "$600.00"] in [
        line.replace("│", " ").split() for line in run.lines
    ]


def test_every_timestamp_in_every_file_of_a_run_has_the_one_format(tmp_path):
    state, store = tmp_path / "state", open_store(str(tmp_path / "out"))
    request, meter = scripted.request(run_id=RUN), ProgressMeter()
    log, heartbeat = RunLog(state, store, RUN), Heartbeat(state, store, request, meter)
    log.start()
    heartbeat.start()
    batch.run(
        RunContext(request, store, Observers(meter, log, heartbeat), meter), lambda dtype: scripted.Scripted()
    )
    log.close()
    heartbeat.finish("done", 0)
    found = {
        key: re.findall(rb"\d{4}-\d\d-\d\d[T ]\d[^\s\",]*", content)
        for key, content in tree(tmp_path).items()
        if not key.endswith(".wav")
    }
    dated = {key.removeprefix("out/") for key, moments in found.items() if moments}
    its = {f"runs/{RUN}/{name}" for name in ("worker.log", "worker.jsonl", "status.json", "summary.json")}
    assert dated >= its | {f"records/{job.stem}.json" for job in scripted.JOBS}
    for moment in {moment.decode() for moments in found.values() for moment in moments}:
        assert timestamps.stamp(timestamps.parse(moment)) == moment
