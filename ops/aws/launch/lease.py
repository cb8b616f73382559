"""One launch at a time: a lease in the bucket, whoever starts it and wherever.

The rule is that of the worker's claims (worker/store/lease.py): its holder renews it, and who waits takes it
over when it has not changed for TTL_S. EC2's ClientToken cannot do this: it is idempotent in one zone only,
and two launches may try the zones in different orders.
"""

import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from types import TracebackType

from worker.errors import UserError
from worker.store import lease
from worker.store.base import Store

KEY = "locks/launch"
TTL_S = 60.0


class LaunchLease:
    """Held by `with`, which waits for it; `check()` it right before what only its holder may do."""

    def __init__(
        self, store: Store, tell: Callable[[str], None], poll_s: float = 0.5, ttl_s: float = TTL_S
    ) -> None:
        # No later launch has this identity: a launch that died is waited for until its time is over.
        launch = lease.Claimant(seat=uuid.uuid4().hex, run_id="launch")
        self._lease = lease.Lease(store, KEY, ttl_s, launch, lease.elapsed_s)
        self._tell, self._ttl_s, self._poll_s = tell, ttl_s, poll_s
        self._stop = threading.Event()
        self._renewer = threading.Thread(target=self._renew, name="lease", daemon=True)

    def __enter__(self) -> "LaunchLease":
        told = False
        while not self._lease.take():
            if not told:
                limit = f"{self._ttl_s:.0f} s without a heartbeat"
                self._tell(f"another launch is running; waiting for it, or for {limit}")
            told = True
            time.sleep(self._poll_s)
        self._renewer.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop.set()
        self._renewer.join()
        with suppress(UserError):  # it lapses by itself
            self._lease.give_back()

    def check(self) -> None:
        """Raises UserError if another launch may have taken it over."""
        if not self._lease.in_time:
            raise UserError("another launch may have begun while this one was held up; run: inv status")

    def _renew(self) -> None:
        while self._lease.held and not self._stop.wait(self._ttl_s / 6):
            with suppress(UserError):  # it holds until the ttl is over; the next try may succeed
                self._lease.renew()
