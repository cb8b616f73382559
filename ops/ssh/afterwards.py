"""What is left of a run whose box is gone: the tail of its log and its exit code, from the bucket."""

import json
from dataclasses import dataclass

from worker.errors import UserError
from worker.store import Missing, open_store


@dataclass(frozen=True)
class Ended:
    """A run as the bucket tells it. `exit_code`: None if it never wrote its last status."""

    run_id: str
    state: str
    exit_code: int | None
    tail: list[str]


def last_run(place: str, run_id: str = "", n_lines: int = 20) -> Ended | None:
    """The newest run in the bucket, or the one whose id ends so; None if there is none."""
    store = open_store(place)
    found = sorted(key.split("/")[1] for key in store.list("runs/") if key.endswith("/status.json"))
    found = [name for name in found if name.endswith(run_id)]
    if not found:
        return None
    try:
        status = json.loads(store.read(f"runs/{found[-1]}/status.json"))
        state, code = str(status.get("state")), status.get("exit_code")
    except (ValueError, AttributeError):
        raise UserError(
            f"runs/{found[-1]}/status.json in {store.location} is damaged; see it there"
        ) from None
    try:
        log = store.read(f"runs/{found[-1]}/worker.log").decode("utf-8", "replace")
    except Missing:
        log = ""
    return Ended(found[-1], state, code if isinstance(code, int) else None, log.splitlines()[-n_lines:])
