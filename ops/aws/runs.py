"""What the bucket has of a run: its heartbeat, its log, the log of its machine's first boot."""

from collections.abc import Iterable

from ops.aws.machines import Machine
from ops.aws.user_data import log_key
from worker.songs import status
from worker.songs.status import Status
from worker.store.base import Missing, Store

# Runs that are searched for the one of a machine.
_NEWEST = 8


def heartbeat(store: Store, run_id: str) -> Status | None:
    """The newest status of one run; None if there is none that can be read."""
    try:
        return status.read(store.read(f"runs/{run_id}/{status.FILE}"))
    except (Missing, status.Unreadable):
        return None


def of_machine(store: Store, machine: Machine) -> Status | None:
    """The newest heartbeat of this machine: of the run it was launched for, or of a later one on it."""
    found = [heartbeat(store, machine.run_id)] if machine.run_id else []
    if machine.host:
        later = [run for run in newest(store)[:_NEWEST] if machine.run_id is None or run > machine.run_id]
        found += [beat for run in later if (beat := heartbeat(store, run)) and beat.host == machine.host]
    return max((beat for beat in found if beat), key=lambda beat: beat.updated_at, default=None)


def newest(store: Store) -> list[str]:
    """Every run with this output, the newest first: their names begin with the time."""
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
