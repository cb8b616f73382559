"""Start a stopped pod again: a new end first, then the start, its GPU, its price and its new host keys.

Whatever goes wrong after the start stops it again. Where its machine has no free GPU, NoFreeGpu says so.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime

from ops import host_keys, interrupts
from ops.runpod import pods, refusals
from ops.runpod.api import RunPod, Tell
from ops.runpod.errors import ApiError
from ops.runpod.types import Pod
from worker.amounts import duration, usd
from worker.errors import UserError
from worker.timestamps import stamp

READY_S = 600.0
NO_GPU_S = 60.0  # so long a pod may run before its GPUs are shown
STALE_S = 30.0  # so long the state from before the start may be shown
KEYS_S = 90.0
_LOG_LINES = 5000


class NoFreeGpu(UserError):
    """The pod's machine has no free GPU. `started`: it was started all the same, without one."""

    def __init__(self, text: str, *, started: bool) -> None:
        super().__init__(text)
        self.started = started


class NotStarted(UserError):
    """RunPod refused the start, so nothing is paid for."""


@dataclass(frozen=True)
class Plan:
    """What a resume will do. `per_hour_usd`: what the pod cost before, or RunPod's list price, if known."""

    pod: Pod
    ends_at: datetime
    cap_usd: float
    per_hour_usd: float | None

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


@dataclass(frozen=True)
class Resumed:
    """A pod that runs again, and what its container has printed since that start."""

    pod: Pod
    log: str


@contextmanager
def stopped_again(runpod: RunPod, pod: Pod, tell: Tell) -> Iterator[None]:
    """Stop the pod if the block fails, or is interrupted: what it was started for is not done."""
    try:
        with interrupts.terminate_as_interrupt():
            yield
    except BaseException as error:
        if isinstance(error, NotStarted) or (isinstance(error, NoFreeGpu) and not error.started):
            raise
        with interrupts.held(tell, f"the stop of {pod.id}"):
            try:
                tell(f"stopping {pod.id} again ...")
                pods.stop(runpod, pod)
            except UserError as error:
                tell(f"STILL BILLING: {error}; run: inv pod.stop --pod {pod.id}")
        raise


def give_new_end(runpod: RunPod, plan: Plan) -> None:
    """Move the end of the stopped pod's lifetime: a pod that started with the old one would soon stop itself.

    While it is stopped: a change restarts a container that runs.
    """
    refusals.refuse_wrong_clock(runpod.http.clock_ahead_s)
    env = {**plan.pod.env, pods.END: str(int(plan.ends_at.timestamp()))}
    runpod.change_pod(plan.pod.id, {"env": env})


def start(runpod: RunPod, plan: Plan, tell: Tell) -> Resumed:
    """Start the plan's pod and wait until it has an address and a GPU. Call it within `stopped_again`.

    Raises NoFreeGpu, or UserError if it costs more than the plan's maximum or does not become ready.
    """
    pod = plan.pod
    before = _log_ids(runpod, pod.id)
    with interrupts.held(tell, f"the start of {pod.id}"):
        _ask(runpod, pod)
    tell(f"{pod.id} is starting ...")
    ready = _ready(runpod, pod)
    if ready.usd_per_hour > plan.cap_usd:
        raise UserError(
            f"{pod.id} now costs {usd(ready.usd_per_hour)} an hour, over the maximum of {usd(plan.cap_usd)}; "
            "give --max-price to take it"
        )
    return Resumed(ready, "" if before is None else _log_since(runpod, pod.id, before))


def _ask(runpod: RunPod, pod: Pod) -> None:
    """Ask for the start. Raises NoFreeGpu if RunPod refuses it."""
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


def _ready(runpod: RunPod, pod: Pod) -> Pod:
    """The pod once it can be used."""
    running_since_s: float | None = None
    state = pod.status
    for since_s in runpod.http.clock.looks(READY_S):
        now = runpod.pod(pod.id)
        state = now.status if now else "gone"
        if now is None or (not now.alive and since_s >= STALE_S):
            raise UserError(f"{pod.id} did not start: it is {state}{_last_words(runpod, pod.id)}")
        if now.status == "RUNNING":
            running_since_s = since_s if running_since_s is None else running_since_s
            if now.address and now.has_running_gpu:
                return now
            if not now.has_running_gpu and since_s - running_since_s >= NO_GPU_S:
                raise NoFreeGpu("it was started without a GPU", started=True)
    lacks = " without an address" if state == "RUNNING" else ""
    raise UserError(
        f"{pod.id} is still {state}{lacks} after {duration(READY_S)}{_last_words(runpod, pod.id)}; "
        "try again, or look at it in RunPod's console"
    )


def _last_words(runpod: RunPod, pod_id: str) -> str:
    """`; its log ends with: ...`, which names a driver that is too old; empty if there is none."""
    try:
        lines = runpod.log(pod_id, "system", 1)
    except ApiError:
        return ""
    return f"; its log ends with: {' '.join(lines[-1].text.split())}" if lines else ""


def _log_ids(runpod: RunPod, pod_id: str) -> list[str] | None:
    """The ids of the lines that earlier starts have printed; None if that cannot be known."""
    try:
        return [line.id for line in runpod.log(pod_id, "container", _LOG_LINES)]
    except ApiError:
        return None


def _log_since(runpod: RunPod, pod_id: str, before: list[str]) -> str:
    """What the container has printed since, once two looks in a row find the same host keys in it."""
    old, after = set(before), before[-1] if before else ""
    text, seen = "", list[str]()
    for _ in runpod.http.clock.looks(KEYS_S):
        try:
            lines = runpod.log(pod_id, "container", _LOG_LINES, after)
        except ApiError:
            continue
        text = "\n".join(line.text for line in lines if line.id not in old)
        found = host_keys.fingerprints(text)
        if found and found == seen:
            break
        seen = found
    return text
