"""Network volumes: which there are, where one can be made, and when one may be deleted."""

from collections.abc import Sequence
from typing import Any

from ops.runpod import bills, fleet
from ops.runpod.api import RunPod
from ops.runpod.errors import ApiError
from ops.runpod.types import Pod, Volume
from worker.errors import BadInput, UserError

SIZES_GB = (10, 4096)
_GONE_S = 60.0


def rows(volumes: Sequence[Volume], there: Sequence[Pod]) -> list[dict[str, Any]]:
    """Every volume of the account: whose it is, its name does not say for sure."""
    return [
        {name: value for name, value in fleet.volume_row(volume, there).items() if name != "what"}
        for volume in volumes
    ]


def checked(runpod: RunPod, name: str, size_gb: int, data_center: str) -> dict[str, Any]:
    """The plan of a new volume. Raises BadInput for a size or data centre that there is not.

    And for a name that there is: RunPod would make a second one of the same name, which costs as much again.
    """
    least, most = SIZES_GB
    if not least <= size_gb <= most:
        raise BadInput(f"--size {size_gb} is not from {least} to {most} GB; correct it")
    there = sorted(center.id for center in runpod.data_centers() if center.volume_types)
    if data_center not in there:
        given = f"{data_center} has no network volumes" if data_center else "a volume is in one data centre"
        raise BadInput(
            f"{given}; give --data-center with one of {', '.join(there)} that has your GPU (inv pod.offers)"
        )
    if same := next((volume for volume in runpod.volumes() if volume.name == name), None):
        raise BadInput(
            f"there is a network volume {name} already, {same.id} ({same.size_gb} GB in {same.data_center}); "
            f"use it with RUNPOD_NETWORK_VOLUME_ID={same.id}, or give another --name"
        )
    return {
        "name": name,
        "size_gb": size_gb,
        "data_center": data_center,
        "per_month_usd": size_gb * bills.NETWORK_GB_USD,
    }


def refuse_used(volume: Volume, there: Sequence[Pod]) -> None:
    """Raise UserError while a pod of the account has it, a stopped one, too."""
    used = [pod.id for pod in there if pod.volume_id == volume.id and pod.status != "TERMINATED"]
    if used:
        raise UserError(
            f"network volume {volume.id} is used by {', '.join(used)}, also while that is stopped; "
            f"first: inv pod.terminate --pod {used[0]}"
        )


def delete(runpod: RunPod, volume: Volume) -> None:
    """Delete it, and see that it is gone. Raises UserError."""
    refuse_used(volume, runpod.pods())
    runpod.delete_volume(volume.id)
    unseen: ApiError | None = None
    for _ in runpod.http.clock.looks(_GONE_S):
        try:
            if all(each.id != volume.id for each in runpod.volumes()):
                return
            unseen = None
        except ApiError as error:
            unseen = error
            if not error.passes:
                break
    if unseen:
        raise UserError(
            f"network volume {volume.id} may be left, and STILL BILLING: it was not seen to be gone "
            f"({unseen}); see: inv pod.volume-list"
        )
    raise UserError(
        f"network volume {volume.id} is still listed, and STILL BILLING; delete it in RunPod's console"
    )
