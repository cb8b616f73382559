"""The tasks of `inv` for pods and network volumes that are there: what they ask, show, carry out and say.

What goes over SSH comes in as a function (`Login`): nothing here knows how.
"""

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta
from typing import Any

from ops import boxes, ui
from ops.boxes import Known
from ops.runpod import bills, fleet, needs, pods, prepare, ready, resume, volumes
from ops.runpod.api import RunPod
from ops.runpod.errors import ApiError
from ops.runpod.ready import Login
from ops.runpod.types import Pod, Volume
from ops.settings import Settings
from worker.amounts import count, duration, usd
from worker.errors import BadInput, UserError

# Makes a new pod like the plan's on the same network volume, with its own question. -> the new one.
Recreate = Callable[[resume.Plan], Pod]

_LONG_OVERDUE = f"is {duration(pods.FORGOTTEN.total_seconds())} past the end it was made with"


def show_pods(settings: Settings, *, json: bool) -> bool:
    """Show what this project has on RunPod, and what it costs; True if nothing is wrong."""
    found = fleet.inventory(_account(settings, "pod.list"), settings.runpod_volume_id, _now())
    if json:
        ui.show(found.rows, json=True)
    else:
        for table in found.tables:
            ui.show(table, red=lambda row: bool(row.get("overdue")))
    for line in found.warnings:
        ui.say(f"warning: {line}")
    ui.say(found.closing)
    return not found.wrong


# --- resume


@dataclass(frozen=True)
class ResumeOptions:
    """What the user gave; empty or None: not given."""

    pod: str = ""
    max_price_usd: float | None = None
    lifetime: timedelta | None = None


def resume_pod(
    settings: Settings,
    options: ResumeOptions,
    login: Login,
    recreate: Recreate | None = None,
    *,
    yes: bool,
    dry_run: bool,
    json: bool,
) -> None:
    """Start a stopped pod with a new end, and trust the host keys that its own log names from now on."""
    settings.check()
    runpod = _account(settings, "pod.resume")
    there = pods.ours(runpod)
    stopped = [pod for pod in there if "start" in pod.actions]
    pod = pods.named(there if options.pod or not stopped else stopped, options.pod)
    if pod.alive:
        ui.say(f"{pod.id} is {pod.status.lower()} already; open a shell there: inv pod.ssh --pod {pod.id}")
        return
    if "start" not in pod.actions:
        raise UserError(f"{pod.id} is {pod.status} and cannot be started; run: inv pod.terminate")
    plan = _plan(runpod, settings, pod, options)
    most = plan.cap_usd * (plan.ends_at - _now()).total_seconds() / 3600
    if not ui.agreed_for_json(
        plan.rows(), f"Start it, for at most {usd(most)}?", yes=yes, dry_run=dry_run, json=json
    ):
        return
    resume.give_new_end(runpod, plan)
    try:
        with resume.stopped_again(runpod, pod, ui.say):
            resumed, box = resume.start(runpod, plan, settings.ssh_key, login, ui.say)
            try:
                boxes.save(box)
            except OSError as error:
                raise ready.unwritable(error) from None
    except resume.NoFreeGpu as error:
        _elsewhere(runpod, plan, error, recreate)
        return
    if json:
        ui.show([asdict(pods.row(resumed, None, _now()))], json=True)
    else:
        ui.write(f"{box.id}  {box.user}@{box.host}:{box.port}")
    ui.say(
        f"{box.id} runs again, at {usd(resumed.usd_per_hour)} an hour; its own disk was emptied\n"
        "  go on       fab up logs\n"
        f"  end it now  inv pod.stop --pod {box.id}"
    )


def _plan(runpod: RunPod, settings: Settings, pod: Pod, options: ResumeOptions) -> resume.Plan:
    lifetime = prepare.lifetime_of(settings, options.lifetime)
    cap = options.max_price_usd or prepare.cap_usd(settings, needs.purpose_of(prepare.purpose_of_pod(pod)))
    listed = _list_price(runpod, pod)
    if listed is not None and listed > cap:
        raise BadInput(
            f"{pod.id} costs {usd(listed)} an hour, over the maximum of {usd(cap)}; give --max-price"
        )
    own = settings.hourly_cost_usd
    return resume.Plan(pod, _now() + lifetime, cap, listed, report_usd=listed if own is None else own)


def _list_price(runpod: RunPod, pod: Pod) -> float | None:
    """RunPod's list price of its GPUs now, as a stopped pod shows 0; None if they are not listed."""
    prices = {kind.id: kind.usd_per_hour.get(pod.cloud) for kind in runpod.gpu_types(pod.cloud)}
    each = prices.get(pod.gpu or "")
    return None if each is None else each * pod.n_gpus


def _box(pod: Pod, settings: Settings) -> Known:
    box = pods.known(pod, settings.ssh_key)
    if box is None:
        raise UserError(f"{pod.id} has no address, as it is {pod.status.lower()}; run: inv pod.resume")
    return box


def _elsewhere(runpod: RunPod, plan: resume.Plan, error: resume.NoFreeGpu, recreate: Recreate | None) -> None:
    """Go on with the same network volume on another machine. Raises UserError where that cannot be done."""
    pod = plan.pod
    why = f"the machine of {pod.id} has no free GPU ({error})"
    if pod.volume_id is None:
        lost = (
            f"its disk of {pod.host_disk_gb} GB is on that machine only, and would be lost"
            if pod.host_disk_gb
            else "it has no network volume, so nothing of it is kept"
        )
        raise UserError(f"{why}, and {lost}; try again later, or: inv pod.terminate --pod {pod.id}")
    if recreate is None:
        raise UserError(
            f"{why}; network volume {pod.volume_id} has its data: inv pod.terminate --pod {pod.id}, "
            "then make a new pod with that volume"
        )
    ui.say(f"{why}; making a new pod with network volume {pod.volume_id}")
    made = recreate(plan)
    ending = pods.terminate(runpod, [pod.id], ui.say)
    if lines := ending.failures():
        raise UserError("\n".join(lines))
    ui.say(f"{made.id} has taken the place of {pod.id}, which is gone")


# --- stop, terminate, reap: a malformed setting that they do not need keeps no pod billing


def stop_pod(settings: Settings, named: str, *, yes: bool, dry_run: bool, json: bool) -> None:
    """Show, ask, stop, see that it is, and say what is billed all the same. What is stopped is no error."""
    runpod = _account(settings, "pod.stop")
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
        pods.stop(runpod, pod)
    ui.say(f"{pod.id} is stopped; {bills.while_stopped(pod, _volumes_by_id(runpod))}")


def terminate_pods(
    settings: Settings, named: str, *, everything: bool, yes: bool, dry_run: bool, json: bool
) -> None:
    """Show, ask, terminate, and list again until none is left. Raises UserError if one may be."""
    if named and everything:
        raise BadInput("--pod is one pod and --all is every one; give one of them")
    runpod = _account(settings, "pod.terminate")
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
    runpod = _account(settings, "pod.reap")
    now = _now()
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
    ending = pods.terminate(runpod, ids, ui.say, pods.youngest_s(chosen, _now()))
    if lines := ending.failures():
        raise UserError("\n".join(lines))
    kept = fleet.storage_line([], _volumes(runpod, chosen, settings))
    ui.say(f"ended {count(len(ending.ended), 'pod')}{kept}")


def _short(pod: Pod) -> dict[str, Any]:
    """A pod in a question."""
    found = pods.row(pod, None, _now())
    names = ("id", "name", "gpu", "where", "state", "age_s", "per_hour_usd", "volume")
    more = {"disk": f"{pod.host_disk_gb} GB on its machine"} if pod.host_disk_gb else {}
    if late := pods.overdue_line(pod, _now()):
        more["end"] = late
    return {name: getattr(found, name) for name in names} | more


def box_of(settings: Settings, named: str) -> Known:
    """The pod as a box with its address of now, saved as the newest. Raises UserError if it has none."""
    runpod = _account(settings, "pod.ssh")
    there = pods.ours(runpod)
    running = [pod for pod in there if pod.alive]
    pod = pods.named(there if named or not running else running, named)
    box = _box(pod, settings)
    with contextlib.suppress(OSError):  # a convenience
        boxes.save(box)
    return box


# --- network volumes


def show_volumes(settings: Settings, *, json: bool) -> None:
    """Show every network volume of the account, what it costs, and which pods have it."""
    runpod = _account(settings, "pod.volume-list")
    found, there = runpod.volumes(), runpod.pods()
    ui.show(volumes.rows(found, there), json=json)
    month = sum(map(bills.month_usd, found))
    ui.say(
        f"{count(len(found), 'network volume')}, {usd(month)} a month, used or not"
        if found
        else "no network volume"
    )


def create_volume(
    settings: Settings, name: str, size_gb: int, data_center: str, *, yes: bool, dry_run: bool, json: bool
) -> None:
    """Show what it costs, ask, make a network volume, and say how a pod gets it."""
    settings.check()
    runpod = _account(settings, "pod.volume-create")
    plan = volumes.checked(runpod, name, size_gb, data_center)
    question = f"Make it, for {usd(plan['per_month_usd'])} a month until it is deleted?"
    if not ui.agreed_for_json([plan], question, yes=yes, dry_run=dry_run, json=json):
        return
    made = runpod.create_volume(name, size_gb, data_center)
    if json:
        ui.show(volumes.rows([made], []), json=True)
    else:
        ui.write(made.id)
    ui.say(f"a pod gets it by this line in .env: RUNPOD_NETWORK_VOLUME_ID={made.id}")


def delete_volume(settings: Settings, volume_id: str, *, yes: bool, dry_run: bool, json: bool) -> None:
    """Show, ask, and delete a network volume that no pod has; see that it is gone."""
    settings.check()
    runpod = _account(settings, "pod.volume-delete")
    found = {volume.id: volume for volume in runpod.volumes()}
    if volume_id not in found:
        raise BadInput(f"the RunPod account has no network volume {volume_id}; see: inv pod.volume-list")
    volume, there = found[volume_id], runpod.pods()
    volumes.refuse_used(volume, there)
    question = "Delete it, with all songs and weights on it?"
    if not ui.agreed(volumes.rows([volume], there), question, yes=yes, dry_run=dry_run, json=json):
        return
    volumes.delete(runpod, volume)
    ui.say(f"network volume {volume_id} is gone, and {usd(bills.month_usd(volume))} a month with it")


# --- what they share


def _account(settings: Settings, task: str) -> RunPod:
    return RunPod.of(settings, task, ui.say)


def _now() -> datetime:
    return datetime.now(UTC)


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
