"""This project's pods: which they are, what is to be known of each, and their end, which a list proves.

They are known by their names (ops/runpod/api.py: PREFIX), never by what this machine remembers.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from itertools import islice

from ops import interrupts
from ops.boxes import Known
from ops.runpod import bills, errors
from ops.runpod.api import LIST_LAG_S, PREFIX, RunPod, Tell
from ops.runpod.errors import ApiError
from ops.runpod.types import Pod, PodBill
from worker.amounts import duration, usd
from worker.errors import BadInput, UserError
from worker.timestamps import stamp

KIND = "runpod"
# In a pod's environment: the end of its lifetime, in seconds since 1970 (remote/deadline.sh).
END = "MUSICGEN_LIFETIME_END"
END_LIMIT_S = 300.0
STOP_LIMIT_S = 120.0
# That many looks in a row without a pod prove that it is gone; one 404 proves nothing.
_LISTS_WITHOUT = 3
# Its own stop hook takes up to five minutes.
_LATE = timedelta(minutes=10)
_SLOW = timedelta(minutes=15)
# So long after the end it was made with, `pod.reap` takes a pod that runs for a forgotten one: only the pod
# knows a later end that it was given since (fab status --extend), and its watchdog keeps that.
FORGOTTEN = timedelta(hours=24)


def ours(runpod: RunPod) -> list[Pod]:
    """This project's pods, stopped ones, too; the oldest first."""
    found = [pod for pod in runpod.pods() if is_ours(pod) and pod.status != "TERMINATED"]
    return sorted(found, key=lambda pod: (pod.created_at, pod.id))


def all_ours(runpod: RunPod) -> list[Pod]:
    """As `ours`; none only if several lists in a row have none, as a list lags behind."""
    for _ in islice(runpod.http.clock.looks(END_LIMIT_S), _LISTS_WITHOUT):
        if there := ours(runpod):
            return there
    return []


def is_ours(pod: Pod) -> bool:
    """True for a pod of this project."""
    return pod.name.startswith(PREFIX)


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


@dataclass(frozen=True)
class PodRow:
    """One pod as `inv status` and `inv pod.list` show it."""

    id: str
    name: str
    gpu: str | None
    where: str
    state: str
    address: str | None
    age_s: float
    per_hour_usd: float | None
    cost_usd: float
    billed_usd: float | None
    ends_at: str | None
    volume: str | None
    remark: str
    overdue: bool


def row(pod: Pod, billed: Sequence[PodBill] | None, now: datetime) -> PodRow:
    """A pod with its cost so far, and a remark if something is to be known."""
    end, cost = ends_at(pod), bills.cost(pod, billed, now)
    return PodRow(
        id=pod.id,
        name=pod.name,
        gpu=pod.gpu,
        where=pod.data_center or pod.cloud.lower(),
        state=pod.status.lower(),
        address=f"{pod.address.host}:{pod.address.port}" if pod.address else None,
        age_s=max((now - pod.created_at).total_seconds(), 0.0),
        per_hour_usd=pod.usd_per_hour if pod.may_bill else None,
        cost_usd=cost.usd,
        billed_usd=cost.billed_usd,
        ends_at=stamp(end) if end and pod.may_bill else None,
        volume=pod.volume_id,
        remark=_remark(pod, end, now),
        overdue=is_overdue(pod, now),
    )


def _remark(pod: Pod, end: datetime | None, now: datetime) -> str:
    since = now - (pod.started_at or pod.created_at)
    if pod.unread:
        return f"RunPod's answer lacks {', '.join(pod.unread)}; it may be billed until: inv pod.terminate"
    if pod.status != "ERROR" and (late := overdue_line(pod, now)):
        return f"{late}; run: inv pod.stop --pod {pod.id}"
    if pod.status == "EXITED":
        disk = bills.stopped_month_usd(pod)
        return f"stopped; its disk costs {usd(disk)} a month" if disk else "stopped"
    if pod.status == "ERROR":
        again = "inv pod.resume may start it, " if "start" in pod.actions else ""
        return f"failed, and may be billed; {again}inv pod.terminate ends it"
    if pod.status != "RUNNING":
        log = f"; its log: inv logs --console {pod.id}" if since > _SLOW else ""
        return f"for {duration(since.total_seconds())} now{log}"
    if pod.address is None and since > _SLOW:
        return f"no address for {duration(since.total_seconds())}; run: inv pod.stop --pod {pod.id}"
    if not pod.has_running_gpu and since > _SLOW:
        return f"has no GPU; run: inv pod.stop --pod {pod.id}, then inv pod.resume"
    return "" if end else "was given no deadline; fab install sets one"


# --- their end


def stop(runpod: RunPod, pod: Pod) -> None:
    """Stop a pod, and see that it is, or that it is gone. Raises UserError: it may be billed."""
    if pod.locked:
        raise UserError(f"{pod.id} is locked, so RunPod does not stop it; unlock it in RunPod's console")
    try:
        runpod.stop(pod.id)
    except ApiError as error:
        if error.status not in (404, 409):  # it may have stopped itself meanwhile
            raise
    state, without = pod.status, 0
    for _ in runpod.http.clock.looks(STOP_LIMIT_S):
        now = runpod.pod(pod.id, whole=False) or next(iter(ours_or(runpod, [pod.id])), None)
        without = without + 1 if now is None else 0
        if without >= _LISTS_WITHOUT or (now and not now.may_bill):
            return
        state = now.status if now else state
    raise UserError(
        f"{pod.id} is still {state} {duration(STOP_LIMIT_S)} after its stop, and STILL BILLING; "
        f"run it again, or: inv pod.terminate --pod {pod.id}"
    )


@dataclass
class Ending:
    """What was terminated, what is still listed, what was until the last looks, and why that is not known."""

    ended: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    unproved: list[str] = field(default_factory=list)
    unsure: str = ""

    def failures(self) -> list[str]:
        """A line for each pod that may be left."""
        lines = [
            f"{each} did not end, and is STILL BILLING; terminate it in RunPod's console"
            for each in self.left
        ]
        lines += [
            f"{each} may be left, and STILL BILLING: fewer than {_LISTS_WITHOUT} lists in a row had no pod "
            f"after {duration(END_LIMIT_S)}; run it again, or look in RunPod's console"
            for each in self.unproved
        ]
        if self.unsure:
            lines.append(f"could not list the pods again: {self.unsure}; something may be left, run it again")
        return lines


def terminate(
    runpod: RunPod, ids: Collection[str] | None, tell: Tell, youngest_s: float = LIST_LAG_S
) -> Ending:
    """Terminate the pods with these ids, or all of this project, until three lists in a row have none.

    `youngest_s`: the age of the youngest; a list lags behind, so one that is new may be missing from it.
    """
    done = _Terminating(runpod, tell)
    for pod_id in ids or ():
        done.end(pod_id)
    without, last_seen = 0, list(ids or ())
    for since_s in runpod.http.clock.looks(END_LIMIT_S):
        try:
            there = [pod for pod in ours_or(runpod, ids) if pod.status != "TERMINATED"]
        except ApiError as error:
            if error.status not in (errors.NO_ANSWER, 429) and error.status < 500:
                raise
            without, done.ending.unsure = 0, str(error)
            continue
        done.ending.unsure, done.ending.left = "", [pod.id for pod in there]
        last_seen = done.ending.left or last_seen
        without = 0 if there else without + 1
        if without >= _LISTS_WITHOUT and youngest_s + since_s >= LIST_LAG_S:
            return done.ending
        for pod in there:
            done.end(pod.id)
    if not done.ending.left:
        done.ending.unproved = last_seen
    return done.ending


def ours_or(runpod: RunPod, ids: Collection[str] | None) -> list[Pod]:
    """The pods with these ids, or all of this project."""
    return ours(runpod) if ids is None else [pod for pod in runpod.pods() if pod.id in ids]


class _Terminating:
    """What one `terminate` has ended and said so far."""

    def __init__(self, runpod: RunPod, tell: Tell) -> None:
        self._runpod, self._tell, self._warned = runpod, interrupts.quietly(tell), set[str]()
        self.ending = Ending()

    def end(self, pod_id: str) -> None:
        try:
            self._runpod.terminate(pod_id)
        except UserError as error:
            if pod_id not in self._warned:
                self._tell(f"warning: {pod_id}: {error}")
            self._warned.add(pod_id)
            return
        if pod_id not in self.ending.ended:
            self._tell(f"ending {pod_id}")
            self.ending.ended.append(pod_id)


def youngest_s(there: Sequence[Pod], now: datetime) -> float:
    """The age of the youngest in seconds; for none, old enough for every list."""
    return min([LIST_LAG_S, *((now - pod.created_at).total_seconds() for pod in there)])


def older_than(age: timedelta | None, now: datetime) -> Callable[[Pod], bool]:
    """Which pods `pod.reap` ends: made so long ago, stopped ones, too; else long overdue ones."""
    if age is None:
        return lambda pod: _is_past_end(pod, now, FORGOTTEN)
    return lambda pod: now - pod.created_at > age
