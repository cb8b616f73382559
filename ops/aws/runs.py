"""What the bucket tells of a run: its heartbeat, its log, the log of its machine's first boot."""

import json
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ops.aws.machines import Machine
from ops.aws.userdata import log_key
from worker.store import Missing, Store

# Runs that are looked through for the one of a machine.
_NEWEST = 8
ENDED = ("done", "failed", "interrupted")


@dataclass(frozen=True)
class Heartbeat:
    """The newest status.json of a run, as far as it makes sense."""

    run_id: str
    state: str
    updated_at: datetime
    songs_done: int
    songs_asked: int
    songs_failed: int
    eta_s: float | None
    host: str | None

    def age_s(self, now: datetime) -> float:
        """Seconds since the worker last wrote it."""
        return (now - self.updated_at).total_seconds()

    def line(self) -> str:
        """`generating, 3 of 10 songs`."""
        failed = f", {self.songs_failed} failed" if self.songs_failed else ""
        return f"{self.state}, {self.songs_done} of {self.songs_asked} songs{failed}"


def heartbeat(store: Store, run_id: str) -> Heartbeat | None:
    """The heartbeat of one run; None if there is none that can be read."""
    try:
        status = json.loads(store.read(f"runs/{run_id}/status.json"))
        songs: dict[str, Any] = status["songs"]
        updated = datetime.fromisoformat(str(status["updated_at"]).replace("Z", "+00:00"))
        eta = status.get("eta_s")
        return Heartbeat(
            run_id=run_id,
            state=str(status["state"]),
            updated_at=updated if updated.tzinfo else updated.replace(tzinfo=UTC),
            songs_done=int(songs["done"]),
            songs_asked=int(songs["asked"]),
            songs_failed=int(songs["failed"]),
            eta_s=None if eta is None else float(eta),
            host=str(status["host"]) if status.get("host") else None,
        )
    except (Missing, ValueError, KeyError, TypeError, AttributeError):
        return None


def of_machine(store: Store, machine: Machine) -> Heartbeat | None:
    """The newest heartbeat of this machine: of the run it was launched for, or of a later one on it."""
    found = [heartbeat(store, machine.run_id)] if machine.run_id else []
    if machine.host:
        later = [run for run in newest(store)[:_NEWEST] if machine.run_id is None or run > machine.run_id]
        found += [beat for run in later if (beat := heartbeat(store, run)) and beat.host == machine.host]
    return max((beat for beat in found if beat), key=lambda beat: beat.updated_at, default=None)


def newest(store: Store) -> list[str]:
    """Every run of the place, the newest first: their names begin with the time."""
    return sorted(_runs(store.list("runs/")), reverse=True)


def log(store: Store, run_id: str) -> str | None:
    """The worker's log of a run, else its machine's first boot; None if there is neither yet."""
    for key in (f"runs/{run_id}/worker.log", log_key(run_id)):
        try:
            return store.read(key).decode("utf-8", "replace")
        except Missing:
            continue
    return None


def launched(store: Store) -> list[str]:
    """Runs whose machine has sent the log of its first boot, the newest first."""
    return sorted({key.split("/")[1] for key in store.list("launches/")}, reverse=True)


def known(store: Store) -> list[str]:
    """Every run that has sent anything, its machine's first boot counted, the newest first."""
    return sorted({*newest(store), *launched(store)}, reverse=True)


def _runs(keys: Iterable[str]) -> set[str]:
    return {parts[1] for key in keys if len(parts := key.split("/")) > 2}
