"""Who makes which song: of any number of workers on one list, one at a time.

    with Claims(store, run_id) as claims:      # renews what is held, and gives it back at the end
        if claims.take(stem):                  # else someone else is at it: try_again_in_s
            ...
            claims.release(stem)               # claims.held: what is still ours, as far as is known

A claim is a lease (worker/store/lease.py) on `claims/STEM.json`, renewed every third of `ttl_s`. One that
its holder leaves is taken over after `ttl_s`; by a worker restarted in the seat of a dead one
(worker/host/identity.py) at once. Where the store ignores conditions one worker at a time is let in.

Does not make two WAVs impossible, as a process may stall between any question and its next step:
a song's conditional create does that. A wrong claim costs work done twice, nothing else.
"""

import logging
import os
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from pathlib import Path
from types import TracebackType

from worker.errors import UserError
from worker.host.identity import WorkerIdentity, take_identity
from worker.store.base import Missing, Store
from worker.store.lease import Claimant, Lease, Unconditional, elapsed_s, holder_of

TTL_S = 120.0

# No song's claim: a stem ends in `_` and eight hex digits.
LONE_KEY = "claims/.lone-worker.json"
# A lone worker shows itself every third of this. At most: each start waits for it.
_LONE_TTL_S = 15.0

# Four, so that a connection that hangs for a minute does not cost the other claims.
_RENEWERS = 4
_REFUSED = (
    "{place} ignores conditional writes, so only one worker at a time may use it, and another one is "
    "at work there; wait for its end or use another place"
)
_NOT_ALONE = "another worker came to {place} while this one was stalled; run it again when that one has ended"

log = logging.getLogger(__name__)


def claim_key(stem: str) -> str:
    """Where the claim on a song lies."""
    return f"claims/{stem}.json"


class Claims:
    """One worker's claims at one place. Safe to share between threads.

    `box`: a folder on this machine's own disk (MUSICGEN_BOX_HOME, else ~/.musicgen) for its seats.
    `leave_s`: how long the end waits for a store that does not answer; claims run out by themselves.
    Entering tries the store on a probe, and raises the UserError that a real write would, or one if the
    store ignores conditions and another worker is at work there.
    """

    def __init__(
        self,
        store: Store,
        run_id: str,
        *,
        ttl_s: float = TTL_S,
        clock: Callable[[], float] = elapsed_s,
        box: Path | None = None,
        say: Callable[[str], None] = log.warning,
        leave_s: float = 2.0,
    ) -> None:
        self._store, self._run_id, self.ttl_s, self._clock, self._say = store, run_id, ttl_s, clock, say
        self._leave_s = leave_s
        self._box = box or Path(os.environ.get("MUSICGEN_BOX_HOME") or "~/.musicgen")
        self._identity: WorkerIdentity
        self._claimant: Claimant
        self._lone: Lease | None = None
        self._leases: dict[str, Lease] = {}  # by stem: ours, and those we wait for
        self._renewing: set[Lease] = set()
        self._retry_s: dict[Lease, float] = {}  # after a renewal that the store did not answer
        self._ended = self._all_given_back = False
        self._changed = threading.Condition()  # guards the four above; never held during a request
        self._threads: list[threading.Thread] = []

    def __enter__(self) -> "Claims":
        home = self._box
        with suppress(RuntimeError):  # no home folder is known: then no seat is found either
            home = home.expanduser()
        self._identity = take_identity(home, self._store.location)
        self._claimant = Claimant(self._identity.name, self._run_id)
        try:
            # Of this seat alone: what a killed worker has left is cleared away by the next one there.
            if not self._store.honours_conditions(f"claims/.probe-{self._identity.digest}"):
                self._lone = self._become_the_only_one()
            for _ in range(_RENEWERS):
                self._start(self._keep_renewing)
        except BaseException:
            self._leave()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self._leave()

    @property
    def held(self) -> set[str]:
        """The stems that are claimed and not known to be lost. Asks nobody."""
        with self._changed:
            found = {stem for stem, lease in self._leases.items() if lease.held}
        return found if self._lone is None or self._lone.held else set()

    def in_time(self, stem: str) -> bool:
        """True if the song is claimed and nobody may have taken it over yet, by our clock. Asks nobody."""
        with self._changed:
            lease = self._leases.get(stem)
        return lease is not None and lease.in_time and self._is_alone_or_need_not_be()

    def renew(self, stem: str) -> bool:
        """True if the song is still ours although its time may be over, as after a sleep. Asks the store."""
        with self._changed:
            lease = self._leases.get(stem)
        return lease is not None and self._is_alone_or_need_not_be() and lease.renew()

    def take(self, stem: str) -> bool:
        """True if the song is ours now; False if someone else has it, which is remembered.

        Raises UserError when the store fails, or when a worker that must be alone no longer is.
        """
        if self._lone and not (self._lone.in_time or self._lone.renew()):
            raise UserError(_NOT_ALONE.format(place=self._store.location))
        taken = self._lease(stem).take()
        with self._changed:
            self._changed.notify_all()
        return taken

    def release(self, stem: str) -> None:
        """Give it back, if it is ours. When the store does not answer it runs out by itself."""
        if self._is_alone_or_need_not_be():
            with suppress(UserError):
                self._lease(stem).give_back()

    def try_again_in_s(self, stems: Iterable[str]) -> float | None:
        """How long to wait at most before `take` of one of these; None if none was seen claimed.

        Never over a third of ttl_s, so that a claim given back or renewed is noticed soon.
        """
        seen = [sighting.at_s for stem in stems if (sighting := self._lease(stem).seen)]
        if not seen:
            return None
        left_s = min(seen) + self.ttl_s - self._clock()
        return min(max(left_s, 0.0), self.ttl_s / 3)

    def _lease(self, stem: str) -> Lease:
        with self._changed:
            if stem not in self._leases:
                # Alone, everyone else is dead.
                store = Unconditional(self._store) if self._lone else self._store
                self._leases[stem] = Lease(
                    store,
                    claim_key(stem),
                    self.ttl_s,
                    self._claimant,
                    self._clock,
                    at_once=self._lone is not None,
                )
            return self._leases[stem]

    def _renew(self, lease: Lease) -> None:
        try:
            lease.renew()
        except Exception as error:  # whatever it is, the thread that renews must live on
            log.info("cannot renew %s: %s", lease.key, error)
            with self._changed:
                self._retry_s[lease] = self._clock() + lease.ttl_s / 12
        else:
            with self._changed:
                self._retry_s.pop(lease, None)

    # --- threads

    def _start(self, act: Callable[[], None]) -> None:
        # A daemon: the process may end while a request hangs.
        thread = threading.Thread(target=act, name="claims", daemon=True)
        thread.start()
        self._threads.append(thread)

    def _keep_renewing(self) -> None:
        while lease := self._next_due():
            try:
                self._renew(lease)
            finally:
                with self._changed:
                    self._renewing.discard(lease)
                    self._changed.notify_all()

    def _next_due(self) -> Lease | None:
        """A lease to renew now, for this thread alone; waits for one. None at the end."""
        with self._changed:
            while not self._ended:
                leases = [*self._leases.values(), *([self._lone] if self._lone else [])]
                waiting = [
                    (max(due_s, self._retry_s.get(lease, due_s)), lease)
                    for lease in leases
                    if lease not in self._renewing and (due_s := lease.due_s) is not None
                ]
                if not waiting:
                    self._changed.wait()
                    continue
                due_s, lease = min(waiting, key=lambda entry: entry[0])
                left_s = due_s - self._clock()
                if left_s <= 0:
                    self._renewing.add(lease)
                    return lease
                self._changed.wait(left_s)
            return None

    def _leave(self) -> None:
        with self._changed:
            self._ended = True
            self._changed.notify_all()
        self._start(self._give_back)
        deadline_s = time.monotonic() + self._leave_s
        for thread in self._threads:
            thread.join(max(0.0, deadline_s - time.monotonic()))
        with self._changed:
            self._leases.clear()  # from now on nothing is ours
        if self._all_given_back:
            self._identity.retire()
        else:
            self._identity.leave()  # the next worker in this name takes back what is left

    def _give_back(self) -> None:
        with suppress(UserError):  # the first failure ends it: the next would take as long
            if self._is_alone_or_need_not_be():
                for lease in list(self._leases.values()):
                    lease.give_back()
            if self._lone:
                self._lone.give_back()
            self._all_given_back = not self._is_predecessor_s_left()

    def _is_predecessor_s_left(self) -> bool:
        """True if a claim of a dead worker in our seat is left: the next one there takes it over at once."""
        if self._identity.inherited:
            for key in self._store.list("claims/"):
                with suppress(Missing):  # given back since the listing
                    if holder_of(self._store.read(key)).seat == self._identity.name:
                        return True
        return False

    # --- a store that ignores conditions

    def _is_alone_or_need_not_be(self) -> bool:
        return self._lone is None or self._lone.in_time

    def _become_the_only_one(self) -> Lease:
        """A lease on the whole place. Raises UserError if another worker is at work there.

        A live worker changes it every third of its ttl, so whoever sees it unchanged for a whole
        one may write. Two may do so at the same time: then the later one's stays, and after two
        thirds of a ttl both look which that is. A start that stalls for longer between looking and
        writing may push out the one that is there, which then stops; never do two go on.
        """
        place = self._store.location
        ttl_s = min(_LONE_TTL_S, self.ttl_s / 2)
        lease = Lease(Unconditional(self._store), LONE_KEY, ttl_s, self._claimant, self._clock)
        first = None
        while not lease.take():
            if first not in (None, lease.seen):
                raise UserError(_REFUSED.format(place=place))
            first = lease.seen
            time.sleep(ttl_s / 6)
        time.sleep(ttl_s * 2 / 3)
        if not lease.renew():
            raise UserError(_REFUSED.format(place=place))
        self._say(f"{place} ignores conditional writes: this worker stays the only one there")
        return lease
