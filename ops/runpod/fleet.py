"""What this project has on RunPod, and what it costs: pods, and network volumes, which are billed always.

Changes nothing.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import datetime
from typing import Any

from ops import heartbeats
from ops.cloud import Doomed, Inventory
from ops.runpod import bills, pods
from ops.runpod.api import PREFIX, RunPod
from ops.runpod.errors import ApiError
from ops.runpod.rows import pod_row
from ops.runpod.types import Pod, PodBill, Volume
from ops.settings import Settings
from worker.amounts import count, usd
from worker.errors import UserError
from worker.songs.status import Status
from worker.store.open import open_store


def inventory(runpod: RunPod, settings: Settings, now: datetime) -> Inventory:
    """Everything as it is now. Raises ApiError if the pods cannot be listed.

    Without the bills each cost is by the clock only; that the volumes could not be listed is wrong. The
    progress of songs is in the bucket, if there is one.
    """
    there = pods.ours(runpod)
    warnings, billed, volumes = [], None, []
    if there:
        try:
            billed = runpod.pod_bills(min(pod.created_at for pod in there))
        except ApiError as error:
            warnings.append(f"costs are without RunPod's bills: {error}")
    unseen = ""
    try:
        volumes = volumes_of(runpod.volumes(), there, settings.runpod_volume_id)
    except ApiError as error:
        unseen = f"could not list the network volumes: {error}"
        warnings.append(unseen)
    beats: Mapping[str, Status] = {}
    try:
        beats = _beats(there, settings.output_place)
    except UserError as error:
        warnings.append(f"no progress of songs: {error}")
    rows = [pod_row(pod, billed, now, beats.get(pod.id)) for pod in there]
    kept = [volume_row(volume, there) for volume in volumes]
    return Inventory(
        rows=[{"what": "pod"} | asdict(row) for row in rows] + kept,
        tables=[table for table in ([asdict(row) for row in rows], kept) if table],
        closing=_closing(there, billed, volumes, now),
        warnings=warnings,
        wrong=bool(unseen) or any(row.overdue for row in rows) or any(map(pods.is_broken, there)),
    )


def _beats(there: Sequence[Pod], output: str) -> Mapping[str, Status]:
    """The newest heartbeat of each pod whose worker has sent one to the bucket. Raises UserError."""
    if not (output.startswith("s3://") and any(pod.alive for pod in there)):
        return {}
    return heartbeats.by_host(open_store(output))


def volumes_of(volumes: Sequence[Volume], there: Sequence[Pod], volume_id: str | None) -> list[Volume]:
    """This project's: by name, by the setting, or because one of its pods has it."""
    used = {pod.volume_id for pod in there} | {volume_id}
    return [volume for volume in volumes if volume.id in used or volume.name.startswith(PREFIX)]


def volume_row(volume: Volume, there: Sequence[Pod]) -> dict[str, Any]:
    """One network volume as it is shown."""
    return {
        "what": "network volume",
        "id": volume.id,
        "name": volume.name,
        "size_gb": volume.size_gb,
        "where": volume.data_center,
        "per_month_usd": bills.month_usd(volume),
        "used_by": ", ".join(pod.id for pod in there if pod.volume_id == volume.id),
    }


def _closing(
    there: Sequence[Pod], billed: Sequence[PodBill] | None, volumes: Sequence[Volume], now: datetime
) -> str:
    billing = [pod for pod in there if pod.may_bill]
    hourly = sum(pod.usd_per_hour for pod in billing)
    costs = [bills.cost(pod, billed, now) for pod in there]
    spent = f"{usd(sum(cost.usd for cost in costs))} so far"
    if any(cost.is_least for cost in costs):
        spent = f"at least {spent}, as RunPod bills the last hours before a stop late"
    storage = storage_line(there, volumes)
    if not there:
        return f"no pod of this project{storage}"
    if not billing:
        return f"{count(len(there), 'pod')}, none of which runs, {spent}{storage}"
    return f"{count(len(there), 'pod')}, {usd(hourly)} per hour, {spent}{storage}"


def storage_line(there: Sequence[Pod], volumes: Sequence[Volume]) -> str:
    """`; storage costs $7.00 a month, although no pod runs (list price ...)`, or nothing."""
    month = sum(map(bills.month_usd, volumes))
    month += sum(bills.stopped_month_usd(pod) for pod in there if not pod.may_bill)
    runs = any(pod.may_bill for pod in there)
    if not month:
        return ""
    also = "also when no pod runs" if runs else "although no pod runs"
    return f"; storage costs {usd(month)} a month, {also} ({bills.LISTED}; see inv pod.volume-list)"


def doomed(runpod: RunPod, volume_id: str | None) -> Doomed:
    """What `kill-all` would end."""
    there = pods.all_ours(runpod)
    return Doomed(
        rows=[
            {
                "what": "pod",
                "id": pod.id,
                "region": pod.data_center or pod.cloud.lower(),
                "detail": f"{pod.name}, {pod.gpu}, {pod.status.lower()}"
                + (f", its disk of {pod.host_disk_gb} GB is lost" if pod.host_disk_gb else ""),
            }
            for pod in there
        ],
        closing=nothing_left(runpod, volume_id, seen="no pod of this project"),
    )


def nothing_left(runpod: RunPod, volume_id: str | None, seen: str = "no pod of this project is left") -> str:
    """That no pod is there, and what is billed all the same."""
    try:
        volumes = volumes_of(runpod.volumes(), [], volume_id)
    except ApiError as error:
        return f"{seen}; network volumes could not be listed, and are billed all the same: {error}"
    return f"{seen}{storage_line([], volumes)}"
