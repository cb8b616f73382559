"""A run as its observers see it: a meter, and a clock that the test sets."""

from datetime import UTC, datetime, timedelta

from worker.engine import Progress
from worker.run.observer import Observers
from worker.run.progress import ProgressMeter
from worker.run.request import RunRequest
from worker.songs.records import Survey
from worker.songs.summary import Price

RUN = "20261122T195000Z-ab12"
FRAMES_PER_S = 50


class Clock:
    """Seconds, and the time of day, that a test sets."""

    now_s = 0.0

    def __call__(self):
        return self.now_s

    def now(self):
        return datetime(2026, 11, 22, 19, 50, tzinfo=UTC) + timedelta(seconds=self.now_s)


class MeteredRun:
    """A run of the jobs to make, those done and those kept (job -> why); others are listed, not selected."""

    def __init__(self, todo=(), done=(), kept=(), others=(), hourly_usd=3600.0):
        self.clock = Clock()
        self.meter = ProgressMeter(self.clock)
        self.observer = self.meter
        selected = [*todo, *done, *(job for job, _ in kept)]
        self.found = Survey({}, [*done], [*todo, *others], {job.song: why for job, why in kept}, {})
        self.request = RunRequest(
            [*selected, *others], selected, "rehearsal", Price(hourly_usd, "as set"), RUN
        )

    def observed_by(self, *observers):
        """These see what happens too, after the meter."""
        self.observer = Observers(self.meter, *observers)
        return self

    def plan(self):
        self.observer.planned(self.found, self.request)
        return self

    def at(self, now_s, *frames):
        """The engine reports these songs in progress: (job, frames done)."""
        self.clock.now_s = now_s
        self.observer.progress(
            Progress({job.song: (n_done, round(job.seconds * FRAMES_PER_S)) for job, n_done in frames})
        )
