"""This project's pods: which they are, where each is, and when it should have ended.

They are known by their names (ops/runpod/api.py: PREFIX), never by what this machine remembers.
"""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime, timedelta
from itertools import islice

from ops.boxes import Known
from ops.runpod.api import PREFIX, RunPod
from ops.runpod.calls import LIST_LAG_S
from ops.runpod.types import Pod
from worker.amounts import duration
from worker.errors import BadInput
from worker.timestamps import stamp

KIND = "runpod"
# In a pod's environment: the end of its lifetime, in seconds since 1970 (remote/deadline.sh).
END = "MUSICGEN_LIFETIME_END"
# And what the pod must have at least. Only `inv pod.create` sets it.
FLOORS = "MUSICGEN_FLOORS_GB"
# That many looks in a row without a pod prove that it is gone; one 404 proves nothing.
LISTS_WITHOUT = 3
# Its own stop hook takes up to five minutes.
_LATE = timedelta(minutes=10)
# So long after the end it was made with, `pod.reap` takes a pod that runs for a forgotten one: only the pod
# knows a later end that it was given since (fab status --extend), and its watchdog keeps that.
FORGOTTEN = timedelta(hours=24)


def ours(runpod: RunPod) -> list[Pod]:
    """This project's pods, stopped ones, too; the oldest first."""
    found = [pod for pod in runpod.pods() if is_ours(pod) and pod.status != "TERMINATED"]
    return sorted(found, key=lambda pod: (pod.created_at, pod.id))


def all_ours(runpod: RunPod) -> list[Pod]:
    """As `ours`; none only if several lists in a row have none, as a list lags behind."""
    for _ in islice(runpod.http.clock.looks(LIST_LAG_S), LISTS_WITHOUT):
        if there := ours(runpod):
            return there
    return []


def is_ours(pod: Pod) -> bool:
    """True for a pod of this project."""
    return pod.name.startswith(PREFIX)


def is_created(pod: Pod) -> bool:
    """True if `inv pod.create` made it, so that its container runs what ends it (remote/pod_start.sh)."""
    return FLOORS in pod.env


def named(there: Sequence[Pod], text: str) -> Pod:
    """The pod of this id or name; without one, the only one. Raises BadInput."""
    found = [pod for pod in there if text in ("", pod.id, pod.name)]
    if len(found) == 1:
        return found[0]
    if found:
        listed = ", ".join(f"{pod.id} ({pod.status})" for pod in found)
        raise BadInput(f"there are {len(found)} pods: {listed}; say which with --pod")
    if text:
        raise BadInput(
            f"there is no pod {text} of this project, whose names begin with {PREFIX}; see inv pod.list, "
            "and for others RunPod's console"
        )
    raise BadInput("there is no pod of this project; see: inv status")


def known(pod: Pod, key_file: str | None) -> Known | None:
    """The pod as a box; None while it has no address."""
    if pod.address is None:
        return None
    return Known(
        id=pod.id,
        kind=KIND,
        host=pod.address.host,
        port=pod.address.port,
        user=pod.address.user,
        key_file=key_file,
        hourly_usd=pod.usd_per_hour or None,
        volume=pod.volume_id,
        created_at=stamp(pod.created_at),
    )


def ends_at(pod: Pod) -> datetime | None:
    """The end of its lifetime, as it was given at its start; None: it was given none.

    One that was given since (`fab status --extend`, `fab run`) is known to the pod alone.
    """
    try:
        return datetime.fromtimestamp(int(pod.env.get(END, "")), UTC)
    except (ValueError, OverflowError, OSError):
        return None


def is_overdue(pod: Pod, now: datetime) -> bool:
    """True if it is paid for although it should have stopped itself, if it was given no later end since."""
    return _is_past_end(pod, now, _LATE)


def _is_past_end(pod: Pod, now: datetime, margin: timedelta) -> bool:
    end = ends_at(pod)
    return pod.may_bill and end is not None and now > end + margin


def is_broken(pod: Pod) -> bool:
    """True if it failed, or RunPod's answer about it cannot be read: it may be billed."""
    return pod.status == "ERROR" or bool(pod.unread)


def overdue_line(pod: Pod, now: datetime) -> str:
    """`OVERDUE by 2 h, unless it was given a later end since`, or nothing."""
    end = ends_at(pod)
    if end is None or not is_overdue(pod, now):
        return ""
    return f"OVERDUE by {duration((now - end).total_seconds())}, unless it was given a later end since"


def youngest_s(there: Sequence[Pod], now: datetime) -> float:
    """The age of the youngest in seconds; for none, old enough for every list."""
    return min([LIST_LAG_S, *((now - pod.created_at).total_seconds() for pod in there)])


def older_than(age: timedelta | None, now: datetime) -> Callable[[Pod], bool]:
    """Which pods `pod.reap` ends: made so long ago, stopped ones, too; else long overdue ones."""
    if age is None:
        return lambda pod: _is_past_end(pod, now, FORGOTTEN)
    return lambda pod: now - pod.created_at > age
