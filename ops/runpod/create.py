"""Carry out a pod's plan: one pod that takes a login, within its price and with an end, or nothing at all.

Offer by offer, in the plan's order; a pod that is not as asked for is terminated before the next. Whatever
goes wrong, a Ctrl-C included, what was created is terminated before the error is raised, and what may be left
is said. Creations at the same time end in one pod: the younger ones are terminated.
Decides nothing about money: that is in the plan.
"""

from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime

from ops import boxes, interrupts
from ops.boxes import Known
from ops.runpod import pods, ready
from ops.runpod.api import RunPod
from ops.runpod.calls import LIST_LAG_S, Tell
from ops.runpod.creation import Creation
from ops.runpod.plan import PodPlan
from ops.runpod.ready import NotArmed, NotReady, SshChecks, Terms, Wait
from ops.runpod.types import Pod


@dataclass(frozen=True)
class Created:
    """The new pod and how to reach it; without one, `there` are those that were there already."""

    pod: Pod | None = None
    box: Known | None = None
    there: Sequence[Pod] = ()


def running(runpod: RunPod) -> list[Pod]:
    """This project's pods that are paid for, the oldest first."""
    return [pod for pod in pods.ours(runpod) if pod.alive]


def carry_out(
    runpod: RunPod,
    plan: PodPlan,
    checks: SshChecks,
    tell: Tell,
    *,
    another: bool = False,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Created:
    """Create the pod, wait until a login works and its end is armed, and make it the current box.

    `another`: also beside other pods of this project, as where a stopped one is to be replaced. Raises
    UserError when there is none to be had; then nothing is left running that the messages do not name.
    """
    creation = Creation(runpod, plan, tell, now)
    # An older pod was created before this one, so a list of so long afterwards has it, however each lags.
    terms = Terms(plan.cap_usd, plan.key_file, listed_s=0.0 if another else LIST_LAG_S)
    offers = deque(plan.candidates)
    with interrupts.terminate_as_interrupt(), creation.undone_on_error():
        if not another and (there := running(runpod)):
            return Created(there=there)
        while offers:
            offer = offers.popleft()
            pod = creation.ask(offer)
            if pod is None:
                continue
            wait = Wait(runpod, pod, terms, checks, tell)
            try:
                box = wait.run(_refuse_younger if not another else lambda pod, listed: None)
            except NotArmed as reason:
                creation.give_up_unarmed(wait.pod, str(reason))
                offers.appendleft(offer)
                continue
            except NotReady as reason:
                creation.give_up(wait.pod, offer, str(reason))
                continue
            except _OlderPod as first:
                tell(f"another creation was first; terminating {pod.id}")
                creation.end()
                return Created(there=first.pods)
            try:
                boxes.save(box)
            except OSError as error:
                raise ready.unwritable(error) from None
            creation.keep()
            return Created(wait.pod, box)
        raise creation.refused()


class _OlderPod(Exception):
    """Somebody else was first."""

    def __init__(self, pods: Sequence[Pod]) -> None:
        super().__init__()
        self.pods = pods


def older(own: Pod, listed: Sequence[Pod]) -> list[Pod]:
    """This project's other pods that are paid for and come before this one, in an order that all agree on."""
    others = [pod for pod in listed if pods.is_ours(pod) and pod.alive and pod.id != own.id]
    return [pod for pod in others if (pod.created_at, pod.id) < (own.created_at, own.id)]


def _refuse_younger(own: Pod, listed: Sequence[Pod]) -> None:
    """Raises _OlderPod if there is one."""
    if found := older(own, listed):
        raise _OlderPod(found)
