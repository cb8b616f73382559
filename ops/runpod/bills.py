"""What pods and volumes cost: so far, by RunPod's bills and the clock, and what is billed all the time.

RunPod's API tells no price of storage, only what was billed for it, so these are constants; what is said of
them says `LISTED`, or leads to a command that does. Asks nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from ops.runpod.types import Pod, PodBill, Volume
from worker.amounts import usd

# USD per GB and month, from https://docs.runpod.io/pods/storage as of then.
LISTED = "list price of November 2026"
DISK_GB_USD = 0.10  # of the container's disk, and while the pod runs of the one that is tied to the machine
STOPPED_DISK_GB_USD = 0.20  # of the latter while it is stopped
NETWORK_GB_USD = 0.07  # of a standard volume; what a high-performance one costs is not known here
HOURS_OF_MONTH = 730
# A container that starts so long after its pod's creation is not the first one.
_FIRST_START = timedelta(hours=1)


@dataclass(frozen=True)
class Cost:
    """What a pod has cost. `billed_usd`: None where the bills are not known.

    `usd` has its price for the hours that no bill has yet, of a start that still runs. RunPod does not say
    when an earlier one ended, and bills hours late: with `is_least` more may come for what has ended.
    """

    usd: float
    billed_usd: float | None
    is_least: bool = False


def cost(pod: Pod, bills: Sequence[PodBill] | None, now: datetime) -> Cost:
    """What the pod has cost until now; bills of other pods are left out."""
    own = [bill for bill in bills or () if bill.pod_id == pod.id]
    since = max([pod.started_at or pod.created_at, *(bill.end for bill in own)])
    unbilled_s = max((now - since).total_seconds(), 0.0) if pod.may_bill else 0.0
    billed = sum(bill.total_usd for bill in own)
    billed_until = max([pod.created_at, *(bill.end for bill in own)])
    is_restarted = pod.started_at is not None and pod.started_at - billed_until > _FIRST_START
    return Cost(
        billed + unbilled_s / 3600 * pod.usd_per_hour,
        None if bills is None else billed,
        is_least=is_restarted or not pod.may_bill,
    )


def disk_hour_usd(size_gb: int) -> float:
    """What a container's disk costs an hour, while the pod runs."""
    return size_gb * DISK_GB_USD / HOURS_OF_MONTH


def month_usd(volume: Volume) -> float:
    """What a network volume costs a month."""
    return volume.size_gb * NETWORK_GB_USD


def stopped_month_usd(pod: Pod) -> float:
    """What a pod costs a month while it is stopped: its disk on the machine, if it has one."""
    return pod.host_disk_gb * STOPPED_DISK_GB_USD


def while_stopped(pod: Pod, volumes: Mapping[str, Volume] | None) -> str:
    """What of a stopped pod is billed. `volumes`: the account's, by id; None: not known."""
    parts = []
    if pod.host_disk_gb:
        parts.append(
            f"its disk of {pod.host_disk_gb} GB costs {usd(stopped_month_usd(pod))} a month while it is "
            f"stopped ({LISTED}), twice as much as before, until: inv pod.terminate --pod {pod.id}"
        )
    if pod.volume_id:
        parts.append(volume_line(pod.volume_id, volumes))
    return "; ".join(parts) or "nothing of it is billed while it is stopped"


def volume_line(volume_id: str, volumes: Mapping[str, Volume] | None) -> str:
    """That a network volume is billed whether or not a pod uses it."""
    volume = (volumes or {}).get(volume_id)
    price = f"{usd(month_usd(volume))} a month" if volume else f"{usd(NETWORK_GB_USD)} per GB a month"
    until = f"inv pod.volume-delete --volume {volume_id}"
    return f"network volume {volume_id} costs {price} ({LISTED}) until: {until}"
