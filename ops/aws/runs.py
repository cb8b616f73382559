"""What the bucket has of a machine of EC2: its heartbeat, its run's log, the log of its first boot."""

from ops import heartbeats
from ops.aws.machines import Machine
from ops.aws.user_data import log_key
from worker.songs.status import Status
from worker.store.base import Missing, Store


def of_machine(store: Store, machine: Machine) -> Status | None:
    """The newest heartbeat of this machine: of the run it was launched for, or of a later one on it."""
    found = [heartbeats.of_run(store, machine.run_id)] if machine.run_id else []
    if machine.host:
        newest = heartbeats.newest_runs(store)[: heartbeats.NEWEST]
        later = [run for run in newest if machine.run_id is None or run > machine.run_id]
        found += [
            beat for run in later if (beat := heartbeats.of_run(store, run)) and beat.host == machine.host
        ]
    return max((beat for beat in found if beat), key=lambda beat: beat.updated_at, default=None)


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
    return sorted({*heartbeats.newest_runs(store), *launched(store)}, reverse=True)
