"""The tasks of `inv` that show what RunPod has and what is rented there, and that create a pod.

In which order they ask RunPod, show, ask the user, act, and when they stop. What goes over SSH comes in as
functions (`SshChecks`): nothing here knows how.
"""

import contextlib
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from ops import boxes, ui
from ops.boxes import Known
from ops.runpod import create, fleet, needs, pods, prepare, refusals
from ops.runpod.api import RunPod
from ops.runpod.create import Created
from ops.runpod.offers import CLOUDS, Wanted, offers
from ops.runpod.prepare import PodOptions
from ops.runpod.ready import SshChecks
from ops.runpod.rows import pod_row
from ops.runpod.types import Pod
from ops.settings import Settings
from worker.amounts import count, usd
from worker.errors import UserError
from worker.timestamps import stamp


def show_offers(
    settings: Settings, purpose: str, cloud: str, max_price_usd: float | None, *, json: bool
) -> None:
    """Show what RunPod has for a purpose now. Raises UserError if nothing will do."""
    settings.check()
    needed = prepare.purpose_for(settings, purpose)
    chosen = prepare.cloud_of(settings, cloud)
    refusals.refuse_volume_outside_secure(settings.runpod_volume_id, chosen)
    runpod = RunPod.of(settings, "pod.offers", ui.say)
    wanted = Wanted(
        purpose=needed,
        clouds=CLOUDS[chosen],
        cap_usd=max_price_usd or prepare.cap_usd(settings, needed),
        min_cuda=needs.min_cuda(settings.runpod_image),
        volume=prepare.volume_of(runpod, settings.runpod_volume_id),
    )
    found = offers(runpod, wanted, prepare.rates(settings, needed))
    rows = [asdict(each) for each in found]
    ui.show(rows if json else list(map(_to_read, rows)), json=json)
    usable = prepare.usable(found, wanted)
    first = f"{usable[0].gpu} ({usable[0].why_first})"
    ui.say(f"{count(len(usable), 'offer')} of {len(found)} will do; first: {first}")


def _to_read(row: Mapping[str, Any]) -> dict[str, Any]:
    """An offer in fewer and narrower columns."""
    shown = dict(row)
    why_first = shown.pop("why_first")
    state = f"{row['state']} ({why_first})" if why_first else row["state"]
    return shown | {"data_centers": ", ".join(row["data_centers"]), "state": state}


def show_pods(settings: Settings, *, json: bool) -> bool:
    """Show what this project has on RunPod, and what it costs; True if nothing is wrong."""
    settings.export_aws()  # progress of songs comes from the bucket
    found = fleet.inventory(RunPod.of(settings, "pod.list", ui.say), settings, datetime.now(UTC))
    if json:
        ui.show(found.rows, json=True)
    else:
        for table in found.tables:
            ui.show(table, red=lambda row: bool(row.get("overdue")))
    for line in found.warnings:
        ui.say(f"warning: {line}")
    ui.say(found.closing)
    return not found.wrong


def box_of(settings: Settings, named: str) -> Known:
    """The pod as a box with its address of now, saved as the newest. Raises UserError if it has none."""
    runpod = RunPod.of(settings, "pod.ssh", ui.say)
    there = pods.ours(runpod)
    running = [pod for pod in there if pod.alive]
    pod = pods.named(there if named or not running else running, named)
    box = pods.known(pod, settings.ssh_key)
    if box is None:
        raise UserError(f"{pod.id} has no address, as it is {pod.status.lower()}; run: inv pod.resume")
    with contextlib.suppress(OSError):  # a convenience
        boxes.save(box)
    return box


def create_pod(
    settings: Settings, options: PodOptions, checks: SshChecks, *, dry_run: bool, yes: bool, json: bool
) -> None:
    """Check, show, ask, create, wait for the login, and say what is next and how to end it."""
    asked = prepare.checked(settings, options)
    if mismatch := prepare.other_model(settings, asked.purpose):
        ui.warn(mismatch)
    ui.refuse_json_that_asks(yes=yes, dry_run=dry_run, json=json)
    runpod = RunPod.of(settings, "pod.create", ui.say)
    ours = pods.ours(runpod)
    for pod in ours:
        if pod.may_bill and not (pod.alive or pod.unread):  # what cannot be read is said by the list
            ui.say(
                f"warning: {pod.id} is {pod.status}, and may be billed until: "
                f"inv pod.terminate --pod {pod.id}"
            )
    there = [pod for pod in ours if pod.alive]
    if there and not options.another:
        _already(there, json=json and not dry_run)
        if not dry_run:
            return
    plan, found = prepare.prepare(runpod, settings, asked)
    if not json:
        ui.show(found)
    question = f"Create it, for at most {usd(plan.worst_case_usd)}?"
    if not ui.agreed_for_json(plan.rows(), question, yes=yes, dry_run=dry_run, json=json):
        return
    if settings.runpod_host:
        ui.say("warning: RUNPOD_HOST is set, so Fabric goes there; remove it from .env to use the new pod")
    made = create.carry_out(runpod, plan, checks, ui.say, another=options.another)
    if made.pod is None:
        _already(made.there, json=json)
    else:
        _made(made, made.pod, json=json)


def _already(there: Sequence[Pod], *, json: bool) -> None:
    now = datetime.now(UTC)
    if json:
        ui.show([_row(pod) for pod in there], json=True)
    else:
        ui.show([pod_row(pod, None, now) for pod in there])
    listed = ", ".join(f"{pod.id} ({pod.status}, {usd(pod.usd_per_hour)} an hour)" for pod in there)
    ui.say(f"there is a pod already, nothing was created: {listed}")
    ui.say("create another one: inv pod.create --another    see them: inv status")


def _made(made: Created, pod: Pod, *, json: bool) -> None:
    if json:
        ui.show([_row(pod) | {"box": made.box and asdict(made.box)}], json=True)
    elif made.box:
        ui.write(f"{pod.id}  {made.box.user}@{made.box.host}:{made.box.port}")
    end, where = pods.ends_at(pod), pod.data_center or "the community cloud"
    ui.say(
        f"{pod.gpu} in {where} is on, at {usd(pod.usd_per_hour)} an hour; it stops itself after the run, "
        f"when nothing runs on it, and by {stamp(end) if end else '?'} at the latest\n"
        "  make songs  fab up logs\n"
        "  see it      inv status\n"
        "  log in      fab shell\n"
        "  end it now  inv pod.stop"
    )


def _row(pod: Pod) -> dict[str, object]:
    end = pods.ends_at(pod)
    return {
        "id": pod.id,
        "name": pod.name,
        "gpu": pod.gpu,
        "cloud": pod.cloud,
        "data_center": pod.data_center,
        "state": pod.status,
        "per_hour_usd": pod.usd_per_hour,
        "volume": pod.volume_id,
        "ends_at": stamp(end) if end else None,
    }
