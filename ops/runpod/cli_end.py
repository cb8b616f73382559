"""`inv pod.stop`, `pod.terminate` and `pod.reap`: what they ask, show, carry out and prove.

A malformed setting that they do not need keeps no pod billing.
"""

from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta
from typing import Any

from ops import ui
from ops.runpod import bills, ending, fleet, pods
from ops.runpod.api import RunPod
from ops.runpod.errors import ApiError
from ops.runpod.rows import pod_row
from ops.runpod.types import Pod, Volume
from ops.settings import Settings
from worker.amounts import count, duration
from worker.errors import BadInput, UserError

_LONG_OVERDUE = f"is {duration(pods.FORGOTTEN.total_seconds())} past the end it was made with"


def stop_pod(settings: Settings, named: str, *, yes: bool, dry_run: bool, json: bool) -> None:
    """Show, ask, stop, see that it is, and say what is billed all the same. What is stopped is no error."""
    runpod = RunPod.of(settings, "pod.stop", ui.say)
    there = pods.ours(runpod)
    running = [pod for pod in there if pod.may_bill]
    if not named and not running:
        kept = fleet.storage_line(there, _volumes(runpod, there, settings))
        ui.say(f"no pod of this project runs{kept}")
        return
    pod = pods.named(there if named else running, named)
    if pod.may_bill:
        question = "Stop it? Its container's disk is emptied."
        if not ui.agreed([_short(pod)], question, yes=yes, dry_run=dry_run, json=json):
            return
        ending.stop(runpod, pod)
    ui.say(f"{pod.id} is stopped; {bills.while_stopped(pod, _volumes_by_id(runpod))}")


def terminate_pods(
    settings: Settings, named: str, *, everything: bool, yes: bool, dry_run: bool, json: bool
) -> None:
    """Show, ask, terminate, and list again until none is left. Raises UserError if one may be."""
    if named and everything:
        raise BadInput("--pod is one pod and --all is every one; give one of them")
    runpod = RunPod.of(settings, "pod.terminate", ui.say)
    there = pods.all_ours(runpod) if everything else pods.ours(runpod)
    if everything and not there:
        ui.say(fleet.nothing_left(runpod, settings.runpod_volume_id))
        return
    chosen = there if everything else [pods.named(there, named)]
    _end(
        runpod, settings, chosen, None if everything else [chosen[0].id], yes=yes, dry_run=dry_run, json=json
    )


def reap(settings: Settings, age: timedelta | None, *, yes: bool, dry_run: bool, json: bool) -> None:
    """Terminate what was forgotten: pods made longer ago than this; without it, those long past their end."""
    runpod = RunPod.of(settings, "pod.reap", ui.say)
    now = datetime.now(UTC)
    wanted, there = pods.older_than(age, now), pods.ours(runpod)
    chosen = [pod for pod in there if wanted(pod)]
    for pod in there:
        if pod not in chosen and (late := pods.overdue_line(pod, now)):
            ui.say(f"warning: {pod.id} is left: {late}; if not: inv pod.terminate --pod {pod.id}")
    if not chosen:
        than = f"is older than {duration(age.total_seconds())}" if age else _LONG_OVERDUE
        ui.show([], json=True) if json else None
        ui.say(f"no pod of this project {than}")
        return
    _end(runpod, settings, chosen, [pod.id for pod in chosen], yes=yes, dry_run=dry_run, json=json)


def _end(
    runpod: RunPod,
    settings: Settings,
    chosen: Sequence[Pod],
    ids: Sequence[str] | None,
    *,
    yes: bool,
    dry_run: bool,
    json: bool,
) -> None:
    """Ask and terminate; `ids`: None for all of this project, new ones too."""
    question = f"Terminate {'it' if len(chosen) == 1 else 'them'}, with all that is not on a network volume?"
    if not ui.agreed([_short(pod) for pod in chosen], question, yes=yes, dry_run=dry_run, json=json):
        return
    done = ending.terminate(runpod, ids, ui.say, pods.youngest_s(chosen, datetime.now(UTC)))
    if lines := done.failures():
        raise UserError("\n".join(lines))
    kept = fleet.storage_line([], _volumes(runpod, chosen, settings))
    ui.say(f"ended {count(len(done.ended), 'pod')}{kept}")


def _short(pod: Pod) -> dict[str, Any]:
    """A pod in a question."""
    found = pod_row(pod, None, datetime.now(UTC))
    names = ("id", "name", "gpu", "where", "state", "age_s", "per_hour_usd", "volume")
    more = {"disk": f"{pod.host_disk_gb} GB on its machine"} if pod.host_disk_gb else {}
    if late := pods.overdue_line(pod, datetime.now(UTC)):
        more["end"] = late
    return {name: getattr(found, name) for name in names} | more


def _volumes_by_id(runpod: RunPod) -> Mapping[str, Volume] | None:
    """The account's network volumes; None if they could not be listed."""
    try:
        return {volume.id: volume for volume in runpod.volumes()}
    except ApiError as error:
        ui.say(f"warning: could not list the network volumes: {error}")
        return None


def _volumes(runpod: RunPod, there: Sequence[Pod], settings: Settings) -> list[Volume]:
    found = _volumes_by_id(runpod) or {}
    return fleet.volumes_of(list(found.values()), there, settings.runpod_volume_id)
