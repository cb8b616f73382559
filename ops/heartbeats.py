"""What an output has of the runs on rented machines: the newest status of a run or a machine, also in words.

For every cloud (worker/songs/status.py has the format). Reads the output only, and judges no run.
"""

from collections.abc import Iterable
from datetime import datetime

from worker.amounts import duration
from worker.songs import status
from worker.songs.status import Status, is_stale
from worker.store.base import Missing, Store
from worker.timestamps import parse

# Runs that are searched for the one of a machine.
NEWEST = 8
SILENT_S = 180.0  # the worker writes every 5 s
ENDED_S = 300.0  # the stop hook comes 60 s after the end


def of_run(store: Store, run_id: str) -> Status | None:
    """The newest status of one run; None if there is none that can be read."""
    try:
        return status.read(store.read(f"runs/{run_id}/{status.FILE}"))
    except (Missing, status.Unreadable):
        return None


def newest_runs(store: Store) -> list[str]:
    """Every run with this output, the newest first: their names begin with the time."""
    return sorted(_runs(store.list("runs/")), reverse=True)


def by_host(store: Store) -> dict[str, Status]:
    """The newest status of each machine that one of the newest runs is on: a pod by its id."""
    found = [beat for run in newest_runs(store)[:NEWEST] if (beat := of_run(store, run))]
    return {beat.host: beat for beat in sorted(found, key=lambda beat: beat.updated_at)}


def progress(beat: Status) -> str:
    """`generating, 3 of 10 songs`; `training, step 25 of 40`."""
    if steps := beat.steps:
        return f"{beat.state}, step {steps.done}" + (f" of {steps.total}" if steps.total else "")
    if songs := beat.songs:
        failed = f", {songs.failed} failed" if songs.failed else ""
        return f"{beat.state}, {songs.done} of {songs.asked} songs{failed}"
    return beat.state


def quiet(beat: Status, now: datetime, see: str) -> str:
    """That its run ended long ago, or its worker is silent, with the command to `see` why; else nothing."""
    quiet_s = (now - parse(beat.updated_at)).total_seconds()
    if beat.exit_code is not None and quiet_s > ENDED_S:
        return f"idle: its run ended {duration(quiet_s)} ago"
    return f"silent for {duration(quiet_s)}; see: {see}" if is_stale(beat, now, SILENT_S) else ""


def _runs(keys: Iterable[str]) -> set[str]:
    return {parts[1] for key in keys if len(parts := key.split("/")) > 2}
