"""The account of a run: its summary, and the cost report of the whole list, as far as it is known.

Told what became of each song, and written after every one and at every end. Safe to share between
threads, none of which waits for the store because another writes.
"""

import threading
import time
from collections.abc import Iterable, Sequence
from contextlib import suppress

from worker.errors import Unreachable, UserError
from worker.host.notice import Interruption
from worker.run.checkpoints import key_of
from worker.run.claims import claim_key
from worker.run.finisher import now
from worker.run.request import Order, Summary
from worker.songs import records
from worker.songs.records import Record
from worker.store.base import Store
from worker.store.retry import Retry, TimedOut, answer

# How long the last account of a run that was stopped waits for a store that does not answer.
_LAST_ACCOUNT_S = 5.0


class Account:
    """One run's. `todo`: the songs to make, longest first. `summary` is for reading."""

    def __init__(self, order: Order, store: Store, found: records.Survey):
        chosen = {job.song for job in order.selected}
        self._order, self._store = order, store
        self.todo = sorted((job for job in found.todo if job.song in chosen), key=lambda job: -job.seconds)
        self._records = dict(found.records)
        self._lock = threading.Lock()  # of the records and the summary
        self._started = time.monotonic()
        self.summary = Summary(
            run_id=order.run_id,
            started_at=now(),
            price=order.price,
            asked=[job.song for job in order.selected],
            seconds_asked=sum(job.seconds for job in order.selected),
            done_before=[job.song for job in found.done if job.song in chosen],
            kept={song: why for song, why in found.kept.items() if song in chosen},
        )

    # --- what happens

    def charge(self, generation_s: float) -> None:
        """Time that this run's engine spent on a song."""
        with self._lock:
            self.summary.generation_s += generation_s

    def is_there(self, song: str, record: Record | None = None) -> None:
        """A song is in the store: ours, with its record, or another's."""
        with self._lock:
            if record is None:
                self.summary.made_elsewhere.append(song)
                return
            self._records[record.song] = record
            self.summary.made.append(
                {
                    "song": record.song,
                    "seconds": record.seconds,
                    "generation_s": record.generation_s,
                    "estimated_cost_usd": record.estimated_cost_usd,
                }
            )

    def failed(self, song: str, reason: str) -> None:
        """It will not be made by this run."""
        with self._lock:
            self.summary.failed[song] = reason

    def resumed(self, song: str) -> None:
        """It was begun by an earlier run."""
        with self._lock:
            self.summary.resumed.append(song)

    def saved(self, songs: Iterable[str]) -> None:
        """They are left for the next run to go on with."""
        with self._lock:
            self.summary.saved += songs

    @property
    def n_left(self) -> int:
        """Songs that are neither there nor failed."""
        made = {song["song"] for song in self.summary.made}
        ended = made.union(self.summary.failed, self.summary.made_elsewhere)
        return sum(job.song not in ended for job in self.todo)

    @property
    def left(self) -> str:
        """What is left, and how to go on."""
        return f"{self.n_left} songs to make; run it again to resume"

    # --- what is written

    def write(self) -> None:
        """The report and the summary, as of now."""
        with self._lock:  # not while the store is asked: generation must not wait for it
            known = dict(self._records)
        known = dict(records.write_report(self._store, self._order.jobs, known))
        with self._lock:
            self._records |= known
            self.summary.wall_s = time.monotonic() - self._started
            content = self.summary.to_json()
        self._store.write(f"runs/{self._order.run_id}/summary.json", content)

    def close(self, state: str, retry: Retry, interruption: Interruption) -> None:
        """The last account, however long the store is away. Raises UserError if it cannot be had."""
        self.summary.state = state
        until = time.monotonic() + _LAST_ACCOUNT_S
        try:
            answer(
                lambda: retry(self._write_last),
                lambda: not interruption.notice or time.monotonic() < until,
            )
        except TimedOut:
            raise Unreachable(f"{self._store.location} did not take the last report; run it again") from None

    def close_early(self, state: str, reason: str) -> str | None:
        """The last account, if it can be had soon; else why not."""
        self.summary.state, self.summary.reason = state, reason
        until = time.monotonic() + _LAST_ACCOUNT_S
        try:
            answer(self._write_last, lambda: time.monotonic() < until)
        except (TimedOut, UserError) as error:
            why = f": {error}" if str(error) else ""
            return f"the report and the summary are not the last ones{why}"
        return None

    def tidy(self, stores: Sequence[Store]) -> None:
        """Remove what workers that were killed have left of songs that are done."""
        done = [job.stem for job in self._order.jobs if job.song in self._records]
        left = {key_of(stem) for stem in done} | {claim_key(stem) for stem in done}
        for store in stores:
            with suppress(UserError):  # it is in nobody's way
                for key in left.intersection([*store.list("claims/"), *store.list("checkpoints/")]):
                    store.delete(key)

    def _write_last(self) -> None:
        if self.summary.made_elsewhere:  # its maker may have died before its own report
            self._records = dict(records.survey(self._store, self._order.jobs).records)
        self.write()
