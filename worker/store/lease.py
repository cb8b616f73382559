"""A lease: an object in a store that one worker at a time holds, as long as it keeps renewing it.

Taken by a conditional create, renewed and taken over by conditional replaces. A worker that has
seen the lease unchanged for `ttl_s` may take it over; of several, one does. The holder counts
`ttl_s` from before its last renewal, so its time is over before anyone else can take the lease.
Each worker uses its own clock alone; no two clocks are compared.
Runs no threads. Asks the store once for each step, and raises what the store raises.
"""

import json
import threading
import time
import uuid
from collections.abc import Callable
from itertools import count
from typing import NamedTuple

from worker import timestamps
from worker.store.base import Missing, Store, json_bytes

SCHEMA = 1

# Each turn means that someone else was quicker; many turns, that the store's ETags are wrong.
_TURNS = 10

# time.monotonic stops while Linux or macOS sleep; these clocks do not.
_CLOCK: int | None = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None))


class Sighting(NamedTuple):
    """Someone else's lease: its ETag, and when the observer's clock showed it first with that ETag."""

    etag: str
    at_s: float


class Holder(NamedTuple):
    """Who holds a lease, as it says itself. None, None if it is damaged: someone unknown."""

    seat: str | None
    worker: str | None


class _Held(NamedTuple):
    etag: str
    renewed_s: float  # just before the store was asked


class Claimant:
    """One worker, as it signs its leases. `seat` names its place on a machine; a restart keeps it."""

    def __init__(self, seat: str, run_id: str) -> None:
        self.seat, self._run_id = seat, run_id
        self.worker = uuid.uuid4().hex
        # One counter for all leases, so that no content, and so no ETag, is ever used twice.
        self._count = count(1)

    def signature(self) -> bytes:
        """A new content each time."""
        return json_bytes(
            {
                "schema": SCHEMA,
                "run_id": self._run_id,
                "seat": self.seat,
                "worker": self.worker,
                "count": next(self._count),
                "at": timestamps.now(),  # for people; never compared
            }
        )


class Unconditional:
    """A store that ignores conditions, as a lease needs it: looks first. Exact for one worker alone."""

    def __init__(self, store: Store) -> None:
        self._store = store
        self.read_tagged, self.delete = store.read_tagged, store.delete

    def create(self, key: str, content: bytes) -> str | None:
        try:
            self._store.read_tagged(key)
        except Missing:
            return self._store.write(key, content)
        return None

    def replace(self, key: str, content: bytes, etag: str) -> str | None:
        try:
            current = self._store.read_tagged(key)[1]
        except Missing:
            return None
        return self._store.write(key, content) if current == etag else None


class Lease:
    """A lease on one key. Safe to share between threads; one at a time asks the store.

    `at_once`: take over without waiting, for a worker that knows that no other one is alive.
    """

    def __init__(
        self,
        store: Store | Unconditional,
        key: str,
        ttl_s: float,
        claimant: Claimant,
        clock: Callable[[], float],
        *,
        at_once: bool = False,
    ) -> None:
        self.key, self.ttl_s = key, ttl_s
        self._store, self._claimant, self._clock, self._at_once = store, claimant, clock, at_once
        self._turn = threading.Lock()
        self._held: _Held | None = None
        self.seen: Sighting | None = None  # as someone else's

    @property
    def held(self) -> bool:
        """True from when it is taken until it is given back or found lost."""
        return self._held is not None

    @property
    def in_time(self) -> bool:
        """True if it is held and nobody can have taken it over yet."""
        held = self._held
        return held is not None and self._clock() - held.renewed_s < self.ttl_s

    @property
    def due_s(self) -> float | None:
        """When to renew it, by the clock; None if it is not held."""
        held = self._held
        return held and held.renewed_s + self.ttl_s / 3

    def take(self) -> bool:
        """True if it is held now; False if someone else has it, whose lease is then in `seen`."""
        with self._turn:
            return self.in_time or self._take()

    def renew(self) -> bool:
        """True if it is still held; False if it is lost or was not held."""
        with self._turn:
            return self._renew()

    def give_back(self) -> None:
        """Release it: delete the object, unless it is someone else's by now."""
        with self._turn:
            held = self._held
            if held is None:
                return
            try:
                # Not every store has conditional deletes, and none is needed: within ttl_s of a
                # renewal nobody can take over, so a delete in the first half of that hits our own.
                # A delete that is delayed for longer may hit someone else's lease. Its holder finds
                # it gone and stops: work is done twice, nothing else.
                if self._clock() - held.renewed_s < self.ttl_s / 2 or self._renew():
                    self._store.delete(self.key)
            finally:
                self._held = None  # also after an error: without renewal the lease runs out

    def _take(self) -> bool:
        self._held = None  # if it was held, its time is over
        free = self.seen is None  # as far as is known
        for _ in range(_TURNS):
            if free:
                asked_s = self._clock()
                if self._hold(self._store.create(self.key, self._claimant.signature()), asked_s):
                    return True
            asked_s = self._clock()  # what is read after this was unchanged until now
            try:
                content, etag = self._store.read_tagged(self.key)
            except Missing:
                free = True
                continue
            free = False
            if self.seen is None or self.seen.etag != etag:
                self.seen = Sighting(etag, self._clock())
            run_out = asked_s - self.seen.at_s >= self.ttl_s
            if not (run_out or self._at_once or self._left_to_us(holder_of(content))):
                return False
            if self._replace(etag):
                return True
        return False

    def _renew(self) -> bool:
        if self._held is None:
            return False
        if self._replace(self._held.etag):
            return True
        try:
            content, etag = self._store.read_tagged(self.key)
        except Missing:
            self._held = None
            return False
        # Still ours if an earlier renewal had its effect and the answer was lost.
        if holder_of(content).worker == self._claimant.worker and self._replace(etag):
            return True
        self._held = None
        return False

    def _left_to_us(self, holder: Holder) -> bool:
        """True for our own, whose answer was lost, and for that of the dead worker before us in our seat."""
        return holder.worker == self._claimant.worker or holder.seat == self._claimant.seat

    def _replace(self, etag: str) -> bool:
        asked_s = self._clock()
        return self._hold(self._store.replace(self.key, self._claimant.signature(), etag), asked_s)

    def _hold(self, etag: str | None, asked_s: float) -> bool:
        if not etag:
            return False
        self._held, self.seen = _Held(etag, asked_s), None
        return True


def holder_of(content: bytes) -> Holder:
    """The holder that a lease names."""
    try:
        found = json.loads(content)
        holder = Holder(found["seat"], found["worker"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return Holder(None, None)
    return holder if all(isinstance(name, str) for name in holder) else Holder(None, None)


def elapsed_s() -> float:
    """Seconds by a clock that never goes back and does not stop while the machine sleeps."""
    return time.monotonic() if _CLOCK is None else time.clock_gettime(_CLOCK)
