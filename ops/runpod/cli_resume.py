"""`inv pod.resume`: a stopped pod starts again, or a new one takes its place on the same network volume."""

from collections.abc import Callable
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta

from ops import boxes, models, ui
from ops.runpod import create, ending, needs, pods, prepare, ready, resume
from ops.runpod.api import RunPod
from ops.runpod.prepare import PodOptions
from ops.runpod.ready import SshChecks
from ops.runpod.rows import pod_row
from ops.runpod.types import Pod
from ops.settings import Settings
from worker.amounts import usd
from worker.errors import BadInput, UserError

# Makes a new pod like the plan's on the same network volume, with its own question. -> the new one.
Recreate = Callable[[resume.Plan], Pod]


@dataclass(frozen=True)
class ResumeOptions:
    """What the user gave; empty or None: not given."""

    pod: str = ""
    max_price_usd: float | None = None
    lifetime: timedelta | None = None


def resume_pod(
    settings: Settings,
    options: ResumeOptions,
    checks: SshChecks,
    recreate: Recreate | None = None,
    *,
    yes: bool,
    dry_run: bool,
    json: bool,
) -> None:
    """Start a stopped pod with a new end, and trust the host keys that its own log names from now on."""
    settings.check()
    runpod = RunPod.of(settings, "pod.resume", ui.say)
    there = pods.ours(runpod)
    stopped = [pod for pod in there if "start" in pod.actions]
    pod = pods.named(there if options.pod or not stopped else stopped, options.pod)
    if pod.alive:
        ui.say(f"{pod.id} is {pod.status.lower()} already; open a shell there: inv pod.ssh --pod {pod.id}")
        return
    if "start" not in pod.actions:
        raise UserError(f"{pod.id} is {pod.status} and cannot be started; run: inv pod.terminate")
    purpose = needs.purpose_of(prepare.purpose_of_pod(pod))
    if purpose.makes_songs:
        models.refuse_other_use(settings.model, settings.is_commercial)
    plan = _plan(runpod, settings, pod, options)
    question = f"Start it, for at most {usd(plan.worst_case_usd)}?"
    if not ui.agreed_for_json(plan.rows(), question, yes=yes, dry_run=dry_run, json=json):
        return
    resume.give_new_end(runpod, plan)
    try:
        with resume.stopped_again(runpod, pod, ui.say):
            resumed, box = resume.start(runpod, plan, settings.ssh_key, checks, ui.say)
            try:
                boxes.save(box)
            except OSError as error:
                raise ready.unwritable(error) from None
    except resume.NoFreeGpu as error:
        _elsewhere(runpod, plan, error, recreate, json=json)
        return
    if json:
        _show(resumed)
    else:
        ui.write(f"{box.id}  {box.user}@{box.host}:{box.port}")
    ui.say(
        f"{box.id} runs again, at {usd(resumed.usd_per_hour)} an hour; its own disk was emptied\n"
        "  go on       fab up logs\n"
        f"  end it now  inv pod.stop --pod {box.id}"
    )


def _show(pod: Pod) -> None:
    ui.show([asdict(pod_row(pod, None, datetime.now(UTC)))], json=True)


def _plan(runpod: RunPod, settings: Settings, pod: Pod, options: ResumeOptions) -> resume.Plan:
    lifetime = prepare.lifetime_of(settings, options.lifetime)
    cap = options.max_price_usd or prepare.cap_usd(settings, needs.purpose_of(prepare.purpose_of_pod(pod)))
    listed = _list_price(runpod, pod)
    if listed is not None and listed > cap:
        raise BadInput(
            f"{pod.id} costs {usd(listed)} an hour, over the maximum of {usd(cap)}; give --max-price"
        )
    own = settings.hourly_cost_usd
    return resume.Plan(
        pod, lifetime, datetime.now(UTC) + lifetime, cap, listed, report_usd=listed if own is None else own
    )


def _list_price(runpod: RunPod, pod: Pod) -> float | None:
    """RunPod's list price of its GPUs now, as a stopped pod shows 0; None if they are not listed."""
    prices = {kind.id: kind.usd_per_hour.get(pod.cloud) for kind in runpod.gpu_types(pod.cloud)}
    each = prices.get(pod.gpu or "")
    return None if each is None else each * pod.n_gpus


def _elsewhere(
    runpod: RunPod, plan: resume.Plan, error: resume.NoFreeGpu, recreate: Recreate | None, *, json: bool
) -> None:
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
    if json:
        _show(made)
    if lines := ending.terminate(runpod, [pod.id], ui.say).failures():
        raise UserError("\n".join(lines))
    ui.say(f"{made.id} has taken the place of {pod.id}, which is gone")


def replacement(settings: Settings, resumed: resume.Plan, checks: SshChecks, *, yes: bool, json: bool) -> Pod:
    """A new pod for the same purpose and with the same network volume as one that cannot be started again.

    Asks first. The old one stays as it is. Raises UserError if there is none to be had.
    """
    old = resumed.pod
    options = PodOptions(
        purpose=prepare.purpose_of_pod(old),
        cloud=old.cloud.lower(),
        max_price_usd=resumed.cap_usd,
        lifetime=resumed.lifetime,
        disk_gb=old.disk_gb,
        volume_id=old.volume_id,
        another=True,
    )
    runpod = RunPod.of(settings, "pod.resume", ui.say)
    plan, _ = prepare.prepare(runpod, settings, prepare.checked(settings, options))
    question = f"Create it, for at most {usd(plan.worst_case_usd)}?"
    ui.agreed_for_json(plan.rows(), question, yes=yes, dry_run=False, json=json)
    made = create.carry_out(runpod, plan, checks, ui.say, another=True)
    if made.pod is None:
        raise UserError(f"no pod was created in place of {old.id}")
    return made.pod
