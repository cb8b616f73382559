"""The ledger of a run: its summary, and the cost report of the output, as far as they are known.

An observer that keeps what became of each song, and writes after every song that is made and at
every end. Safe to share between threads, none of which waits for the store because another writes.
"""

import threading
import time
from collections.abc import Sequence

from worker import timestamps
from worker.amounts import count
from worker.engine import Progress
from worker.errors import Interrupted, UserError
from worker.run.context import RunContext
from worker.run.observer import Begun
from worker.run.request import RunRequest
from worker.songs import records, report
from worker.songs.records import Record, Survey
from worker.songs.summary import Summary
from worker.store.retry import TimedOut, answer


class RunLedger:
    """One run's. `todo`: the songs to make, longest first. `summary` is for reading."""

    def __init__(self, run: RunContext, found: Survey):
        request = run.request
        chosen = {job.song for job in request.selected}
        self._run = run
        self.todo = sorted((job for job in found.todo if job.song in chosen), key=lambda job: -job.seconds)
        self._records = dict(found.records)
        self._lock = threading.Lock()  # of the records and the summary
        self._started = time.monotonic()
        self.summary = Summary(
            run_id=request.run_id,
            started_at=timestamps.now(),
            price=request.price,
            asked=[job.song for job in request.selected],
            licence=request.licence,
            seconds_asked=sum(job.seconds for job in request.selected),
            done_before=[job.song for job in found.done if job.song in chosen],
            kept={song: why for song, why in found.kept.items() if song in chosen},
        )

    # --- what happens (Observer)

    def planned(self, found: Survey, request: RunRequest) -> None: ...

    def progress(self, event: Progress) -> None: ...

    def note(self, event: str, text: str, *, level: str = "info", **facts: object) -> None: ...

    def begun(self, song: Begun) -> None:
        if song.n_resumed:
            with self._lock:
                self.summary.resumed.append(song.song)

    def made(self, record: Record) -> None:
        """Raises UserError if the store does not take report and summary, however long it is waited for."""
        with self._lock:
            self._records[record.song] = record
            self.summary.made.append(
                {
                    "song": record.song,
                    "seconds": record.length_s,
                    "generation_s": record.generation_s,
                    "estimated_cost_usd": record.estimated_cost_usd,
                }
            )
            if record.flags:
                self.summary.flagged[record.song] = record.flags
        self._run.retry(self.write)

    def made_elsewhere(self, song: str) -> None:
        with self._lock:
            self.summary.made_elsewhere.append(song)

    def failed(self, song: str, reason: str) -> None:
        with self._lock:
            self.summary.failed[song] = reason

    def saved(self, songs: Sequence[str]) -> None:
        with self._lock:
            self.summary.saved += songs

    def charge(self, generation_s: float) -> None:
        """Time that this run's engine spent on a song."""
        with self._lock:
            self.summary.generation_s += generation_s

    @property
    def n_left(self) -> int:
        """Songs that are neither there nor failed."""
        with self._lock:
            made = {song["song"] for song in self.summary.made}
            ended = made.union(self.summary.failed, self.summary.made_elsewhere)
        return sum(job.song not in ended for job in self.todo)

    @property
    def done_stems(self) -> list[str]:
        """NAME_HASH of every finished song of the output, listed or not."""
        with self._lock:
            return [song.removesuffix(".wav") for song in self._records]

    @property
    def left(self) -> str:
        """What is left, and how to resume."""
        return f"{count(self.n_left, 'song')} to make; run it again to resume"

    # --- what is written

    def write(self) -> None:
        """The report and the summary, as of now."""
        with self._lock:  # not while the store is asked: generation must not wait for it
            known = dict(self._records)
        known = dict(report.write_report(self._run.store, self._run.request.jobs, known))
        with self._lock:
            self._records |= known
            self.summary.wall_s = time.monotonic() - self._started
            self.summary.generated_s = self._run.meter.made_s
            content = self.summary.to_json()
        self._run.store.write(f"runs/{self._run.request.run_id}/summary.json", content)

    def close(self, state: str) -> None:
        """The last report and summary, however long the store is away; soon once a notice is there.

        Raises UserError if they could not be written, Interrupted if a notice did not wait for them.
        """
        self.summary.state = state
        interruption, until = self._run.interruption, time.monotonic() + self._run.budget.report_s
        try:
            answer(
                lambda: self._run.retry(self._write_last),
                lambda: not interruption.notice or time.monotonic() < until,
            )
        except TimedOut:
            place = self._run.store.location
            raise Interrupted(
                f"{interruption.reason}; {place} did not take the last report, run it again"
            ) from None

    def close_early(self, state: str, reason: str) -> None:
        """The last report and summary, if the store takes them soon; else a warning."""
        self.summary.state, self.summary.reason = state, reason
        until = time.monotonic() + self._run.budget.report_s
        try:
            answer(self._write_last, lambda: time.monotonic() < until)
        except (TimedOut, UserError) as error:
            why = f": {error}" if str(error) else ""
            # No more than a warning: the user must see why the run ends.
            self._run.warn(f"the report and the summary are not the last ones{why}")

    def _write_last(self) -> None:
        if self.summary.made_elsewhere:  # its maker may have died before its own report
            found = records.survey(self._run.store, self._run.request.jobs)
            with self._lock:
                self._records = dict(found.records)
                elsewhere = set(self.summary.made_elsewhere)
                self.summary.kept |= {song: why for song, why in found.kept.items() if song in elsewhere}
        self._look_for_missing()
        self.write()

    def _look_for_missing(self) -> None:
        """A song that is not in the output when the run ends has failed, whatever was reported of it."""
        there = self._run.store.list()
        with self._lock:
            ended = {*self.summary.done_before, *self.summary.made_elsewhere}
            ended.update(song["song"] for song in self.summary.made)
            for song in self.summary.asked:
                if song in there or song in self.summary.failed:
                    continue
                if song in ended:
                    self._records.pop(song, None)
                    self.summary.failed[song] = "it was there and has been removed; run it again to make it"
                elif self.summary.state == "done":
                    self.summary.failed[song] = "it was not made; run it again to make it"
        if self.summary.state == "done" and self.summary.is_failed:
            self.summary.state = "failed"
