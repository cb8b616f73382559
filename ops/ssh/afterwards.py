"""What is left of a run whose box is gone: the tail of its log and its exit code, from the bucket."""

from dataclasses import dataclass

from worker.errors import UserError
from worker.songs import status
from worker.store.base import Missing
from worker.store.open import open_store


@dataclass(frozen=True)
class Ended:
    """A run as the bucket tells it. `exit_code`: None if it never wrote its last status."""

    run_id: str
    state: str
    exit_code: int | None
    tail: list[str]


def last_run(place: str, run_id: str = "", n_lines: int = 20) -> Ended | None:
    """The newest run in the bucket, or the one whose id ends so; None if there is none.

    Raises UserError if its status cannot be read.
    """
    store = open_store(place)
    found = sorted(key.split("/")[1] for key in store.list("runs/") if key.endswith(f"/{status.FILE}"))
    found = [name for name in found if name.endswith(run_id)]
    if not found:
        return None
    try:
        last = status.read(store.read(f"runs/{found[-1]}/{status.FILE}"))
    except status.Unreadable as error:
        raise UserError(f"{error}; see runs/{found[-1]} in {store.location}") from None
    try:
        log = store.read(f"runs/{found[-1]}/worker.log").decode("utf-8", "replace").splitlines()
    except Missing:
        log = []
    return Ended(found[-1], last.state, last.exit_code, log[max(0, len(log) - n_lines) :])
