"""An object in a store that one worker at a time holds, for as long as it goes on changing it.

Made by a conditional create, renewed and taken over by conditional replaces. Who has seen it
unchanged for `ttl_s`, by its own clock alone, may take it over: of many one does. Who holds it
counts `ttl_s` from before its last renewal, so it is out of time before anyone else is in.
Runs no threads; asks the store once for each step and raises what that raises.
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

# Each turn means that someone else was quicker; more than a few, that the store's ETags are odd.
_TURNS = 10

# time.monotonic stands still while Linux or macOS sleep; these do not.
_CLOCK: int | None = getattr(time, "CLOCK_BOOTTIME", getattr(time, "CLOCK_MONOTONIC", None))


class Sighting(NamedTuple):
    """Someone else's lease as an observer saw it first: its ETag, and when by the observer's clock."""

    etag: str
    at_s: float


class Holder(NamedTuple):
    """Who a lease says has it. Nones in a damaged one: someone unknown."""

    seat: str | None
    worker: str | None


class _Held(NamedTuple):
    etag: str
    renewed_s: float  # just before that was asked of the store


class Claimant:
    """One worker, as it signs its leases. `seat` is that of worker/host/identity.py."""

    def __init__(self, seat: str, run_id: str) -> None:
        self.seat, self._run_id = seat, run_id
        self.worker = uuid.uuid4().hex
        # One for all leases: no content, hence no ETag, ever comes back, given back or not.
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
                "at": timestamps.now(),  # for people, compared by nobody
            }
        )


class Unconditional:
    """What a lease needs of a store that ignores conditions: looks first, which is exact for one alone."""

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
    """One key. Safe to share between threads, which take turns at asking the store.

    `at_once`: take over without waiting, whoever has it: for who knows that nobody else is alive.
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
        """True from taking it until it is given back or found lost."""
        return self._held is not None

    @property
    def in_time(self) -> bool:
        """True if it is held and nobody may have taken it over yet."""
        held = self._held
        return held is not None and self._clock() - held.renewed_s < self.ttl_s

    @property
    def due_s(self) -> float | None:
        """When to renew it; None if it is not held."""
        held = self._held
        return held and held.renewed_s + self.ttl_s / 3

    def take(self) -> bool:
        """True if it is ours now; False if someone else has it, which is then `seen`."""
        with self._turn:
            return self.in_time or self._take()

    def renew(self) -> bool:
        """False if it is lost, now or before."""
        with self._turn:
            return self._renew()

    def give_back(self) -> None:
        """No longer hold it; the object goes, unless it is another's."""
        with self._turn:
            held = self._held
            if held is None:
                return
            try:
                # Not every store can delete under a condition. None is needed: within ttl_s of a
                # renewal nobody may take over, so what goes in the first half of that is ours.
                # A delete that arrives much later may hit another's lease. That one finds it gone
                # and gives up: work is done twice, nothing else.
                if self._clock() - held.renewed_s < self.ttl_s / 2 or self._renew():
                    self._store.delete(self.key)
            finally:
                self._held = None  # in any case: what is not renewed runs out

    def _take(self) -> bool:
        self._held = None  # if it was: out of time
        free = self.seen is None  # as far as we know
        for _ in range(_TURNS):
            if free:
                asked_s = self._clock()
                if self._hold(self._store.create(self.key, self._claimant.signature()), asked_s):
                    return True
            asked_s = self._clock()  # what is read then has not changed before
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
        # Ours all the same if an earlier renewal had an effect and its answer was lost.
        if holder_of(content).worker == self._claimant.worker and self._replace(etag):
            return True
        self._held = None
        return False

    def _left_to_us(self, holder: Holder) -> bool:
        """True for our own, of which we heard nothing, and for that of the dead one in our seat."""
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
    """Who a lease names."""
    try:
        found = json.loads(content)
        holder = Holder(found["seat"], found["worker"])
    except (ValueError, KeyError, TypeError, RecursionError):
        return Holder(None, None)
    return holder if all(isinstance(name, str) for name in holder) else Holder(None, None)


def elapsed_s() -> float:
    """A clock that never goes back, and goes on while the machine sleeps."""
    return time.monotonic() if _CLOCK is None else time.clock_gettime(_CLOCK)
