"""One pod as `inv status` and `inv pod.list` show it, with a remark if something is to be known of it."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from ops import heartbeats
from ops.runpod import bills
from ops.runpod.pods import ends_at, is_overdue, overdue_line
from ops.runpod.types import Pod, PodBill
from worker.amounts import duration, usd
from worker.songs.status import Status
from worker.timestamps import stamp

_SLOW = timedelta(minutes=15)


@dataclass(frozen=True)
class PodRow:
    """Its columns."""

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
    run: str | None
    eta_s: float | None
    remark: str
    overdue: bool


def pod_row(pod: Pod, billed: Sequence[PodBill] | None, now: datetime, beat: Status | None = None) -> PodRow:
    """A pod with its cost so far, the progress of its songs, and a remark if something is to be known."""
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
        run=heartbeats.progress(beat) if beat and pod.alive else None,
        eta_s=beat.eta_s if beat and pod.alive else None,
        remark=_remark(pod, end, now, beat),
        overdue=is_overdue(pod, now),
    )


def _remark(pod: Pod, end: datetime | None, now: datetime, beat: Status | None) -> str:
    since = now - (pod.started_at or pod.created_at)
    if pod.unread:
        return f"RunPod's answer lacks {', '.join(pod.unread)}; it may be billed until: inv pod.terminate"
    if pod.status != "ERROR" and (late := overdue_line(pod, now)):
        return f"{late}; run: inv pod.stop --pod {pod.id}"
    if pod.status == "EXITED":
        disk = bills.stopped_month_usd(pod)
        late = "stopped; its last hours are billed late"
        return f"{late}; its disk costs {usd(disk)} a month" if disk else late
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
    if end is None:
        return "was given no deadline; fab install sets one"
    if beat is None:
        return f"its songs: fab -H {pod.id} status"
    return heartbeats.quiet(beat, now, f"fab -H {pod.id} logs")
