"""Start a stopped pod again: a new end first, then the start, its GPU, its price, new host keys, a login.

Whatever goes wrong after the start stops it again. Where its machine has no free GPU, NoFreeGpu says so.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime, timedelta

from ops import interrupts
from ops.boxes import Known
from ops.runpod import bills, ending, pods, refusals
from ops.runpod.api import RunPod
from ops.runpod.calls import Tell
from ops.runpod.errors import ApiError
from ops.runpod.ready import NoGpu, NotArmed, NotReady, SshChecks, Terms, Wait
from ops.runpod.types import Pod
from worker.errors import UserError
from worker.timestamps import stamp

_STALE_S = 30.0  # so long the state from before the start may be shown
_LOG_LINES = 5000


class NoFreeGpu(UserError):
    """The pod's machine has no free GPU. `started`: it was started all the same, without one."""

    def __init__(self, text: str, *, started: bool) -> None:
        super().__init__(text)
        self.started = started


class NotStarted(UserError):
    """RunPod refused the start, so the pod is as it was."""


@dataclass(frozen=True)
class Plan:
    """What a resume will do. `per_hour_usd`: the list price, if known; `report_usd`: what reports count.

    `lifetime`: that of the pod, which ends at `ends_at`, or of a new one in its place.
    """

    pod: Pod
    lifetime: timedelta
    ends_at: datetime
    cap_usd: float
    per_hour_usd: float | None
    report_usd: float | None = None

    @property
    def worst_case_usd(self) -> float:
        """The whole lifetime at the maximum price, with the disks that are billed while it runs."""
        disks_usd = bills.disk_hour_usd(self.pod.disk_gb + self.pod.host_disk_gb)
        return (self.cap_usd + disks_usd) * self.lifetime.total_seconds() / 3600

    def rows(self) -> list[dict[str, object]]:
        """For the user."""
        return [
            {
                "id": self.pod.id,
                "name": self.pod.name,
                "gpu": self.pod.gpu,
                "where": self.pod.data_center or self.pod.cloud.lower(),
                "volume": self.pod.volume_id,
                "per_hour_usd": self.per_hour_usd,
                "maximum_usd": self.cap_usd,
                "ends_at": stamp(self.ends_at),
            }
        ]


@contextmanager
def stopped_again(runpod: RunPod, pod: Pod, tell: Tell) -> Iterator[None]:
    """Stop the pod if the block fails, or is interrupted: what it was started for is not done."""
    with interrupts.terminate_as_interrupt():
        try:
            yield
        except BaseException as error:
            if isinstance(error, NotStarted) or (isinstance(error, NoFreeGpu) and not error.started):
                if pod.may_bill:
                    interrupts.quietly(tell)(
                        f"warning: {pod.id} is {pod.status}, as before, and may be billed until: "
                        f"inv pod.terminate --pod {pod.id}"
                    )
                raise
            tell = interrupts.quietly(tell)
            with interrupts.held(tell, f"the stop of {pod.id}"):
                try:
                    tell(f"stopping {pod.id} again ...")
                    ending.stop(runpod, pod, start_asked=True)
                except UserError as error:
                    tell(f"STILL BILLING: {error}; run: inv pod.stop --pod {pod.id}")
            raise


def give_new_end(runpod: RunPod, plan: Plan) -> None:
    """Move the end of the stopped pod's lifetime: with the old one it would soon stop itself again.

    While it is stopped: a change restarts a container that runs.
    """
    refusals.refuse_wrong_clock(runpod.http.clock_ahead_s)
    env = {**plan.pod.env, pods.END: str(int(plan.ends_at.timestamp()))}
    if plan.report_usd is not None:
        env["HOURLY_COST_USD"] = f"{plan.report_usd:g}"
    runpod.change_pod(plan.pod.id, {"env": env})


def start(
    runpod: RunPod, plan: Plan, key_file: str | None, checks: SshChecks, tell: Tell
) -> tuple[Pod, Known]:
    """Start the plan's pod, and wait until one can log in and it is sure to end. Within `stopped_again`.

    Raises NoFreeGpu, or UserError if it costs more than the plan's maximum or does not become ready.
    """
    pod = plan.pod
    old_lines = _log_ids(runpod, pod.id)
    with interrupts.held(tell, f"the start of {pod.id}"):
        _ask(runpod, pod)
    tell(f"{pod.id} is starting ...")
    if not pods.is_created(pod):
        tell(f"warning: inv pod.create did not make {pod.id}, so nothing ends it until you run: fab install")
    terms = Terms(plan.cap_usd, key_file, old_lines, ends_itself=pods.is_created(pod), ends_at=plan.ends_at)
    wait = Wait(runpod, _started(runpod, pod), terms, checks, tell)
    try:
        box = wait.run()
    except NoGpu as reason:
        raise NoFreeGpu(str(reason), started=True) from None
    except NotArmed as reason:
        raise UserError(f"{pod.id} is of no use: {reason}; make a new one: inv pod.create") from None
    except NotReady as reason:
        raise UserError(
            f"{pod.id} is of no use now: {reason}; try again, or look in RunPod's console"
        ) from None
    return wait.pod, box


def _ask(runpod: RunPod, pod: Pod) -> None:
    """Ask for the start. Raises NoFreeGpu or NotStarted if RunPod refuses it."""
    try:
        runpod.start(pod.id)
    except ApiError as error:
        if error.may_have_acted:
            return  # whether it starts is seen soon
        if error.status not in (400, 409):
            refused = NotStarted(str(error))
            refused.code = error.code
            raise refused from None
        now = runpod.pod(pod.id)
        if error.status == 409 and now and now.alive:
            return  # somebody else has started it
        raise NoFreeGpu(error.detail, started=False) from None


def _started(runpod: RunPod, pod: Pod) -> Pod:
    """The pod once its state is not that of before the start any more."""
    state = pod.status
    for _ in runpod.http.clock.looks(_STALE_S):
        now = runpod.pod(pod.id)
        if now and now.alive:
            return now
        state = now.status if now else "gone"
    raise UserError(f"{pod.id} did not start: it is {state}; look in RunPod's console")


def _log_ids(runpod: RunPod, pod_id: str) -> frozenset[str] | None:
    """The ids of what the pod's logs have of earlier starts; None if that cannot be known."""
    try:
        logs = [runpod.log(pod_id, source, _LOG_LINES) for source in ("container", "system")]
    except ApiError:
        return None
    return frozenset(line.id for log in logs for line in log)
