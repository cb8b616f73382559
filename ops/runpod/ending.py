"""The end of pods: asked for, and then looked for, as only lists without a pod prove that it is gone."""

from collections.abc import Collection
from dataclasses import dataclass, field

from ops import interrupts
from ops.runpod.api import RunPod
from ops.runpod.calls import LIST_LAG_S, Tell
from ops.runpod.errors import ApiError
from ops.runpod.pods import LISTS_WITHOUT, ours
from ops.runpod.types import Pod
from worker.amounts import duration
from worker.errors import UserError

END_LIMIT_S = 300.0
STOP_LIMIT_S = 120.0


def stop(runpod: RunPod, pod: Pod, *, start_asked: bool = False) -> None:
    """Stop a pod, and see that it is, or that it is gone. Raises UserError: it may be billed.

    `start_asked`: RunPod was asked to start it, and for a while may show the state from before, and refuse
    the stop. That it is stopped is believed once it was seen to run, or when that while is over; until then
    the stop is asked for again whenever it is seen to run.
    """
    if pod.locked:
        raise UserError(f"{pod.id} is locked, so RunPod does not stop it; unlock it in RunPod's console")
    ran = not start_asked or _runs(runpod, pod.id)
    ask, state, without, unseen = True, pod.status, 0, None
    for since_s in runpod.http.clock.looks(STOP_LIMIT_S):
        try:
            if ask:
                _ask_to_stop(runpod, pod.id)
            now = runpod.pod(pod.id, whole=False) or next(iter(_ours_or(runpod, [pod.id])), None)
        except ApiError as error:
            without, unseen = 0, error
            if not error.passes:
                break
            continue
        without, unseen = (without + 1 if now is None else 0), None
        if without >= LISTS_WITHOUT or (now and not now.may_bill and (ran or since_s >= LIST_LAG_S)):
            return
        if ask := start_asked and now is not None and now.may_bill:
            ran = True
        state = now.status if now else state
    then = f"run it again, or: inv pod.terminate --pod {pod.id}"
    if unseen:
        failed = UserError(f"{pod.id} may be STILL BILLING: it was not seen to be stopped ({unseen}); {then}")
        failed.code = unseen.code
        raise failed
    raise UserError(
        f"{pod.id} is still {state} {duration(STOP_LIMIT_S)} after its stop, and STILL BILLING; {then}"
    )


def _runs(runpod: RunPod, pod_id: str) -> bool:
    """True if RunPod shows that it may be billed; False where it fails."""
    try:
        now = runpod.pod(pod_id, whole=False)
    except ApiError:
        return False
    return now is not None and now.may_bill


def _ask_to_stop(runpod: RunPod, pod_id: str) -> None:
    try:
        runpod.stop(pod_id)
    except ApiError as error:
        if error.status not in (404, 409):  # it may have stopped itself meanwhile
            raise


@dataclass
class Ending:
    """What was terminated, what is still listed, what was until the last looks, and why that is not known."""

    ended: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    unproved: list[str] = field(default_factory=list)
    unsure: str = ""

    def failures(self) -> list[str]:
        """A line for each pod that may be left."""
        lines = [
            f"{each} did not end, and is STILL BILLING; terminate it in RunPod's console"
            for each in self.left
        ]
        lines += [
            f"{each} may be left, and STILL BILLING: fewer than {LISTS_WITHOUT} lists in a row had no pod "
            f"after {duration(END_LIMIT_S)}; run it again, or look in RunPod's console"
            for each in self.unproved
        ]
        if self.unsure:
            lines.append(f"could not list the pods again: {self.unsure}; something may be left, run it again")
        return lines


def terminate(
    runpod: RunPod, ids: Collection[str] | None, tell: Tell, youngest_s: float = LIST_LAG_S
) -> Ending:
    """Terminate the pods with these ids, or all of this project, until three lists in a row have none.

    `youngest_s`: the age of the youngest; a list lags behind, so one that is new may be missing from it.
    """
    done = _Terminating(runpod, tell)
    for pod_id in ids or ():
        done.end(pod_id)
    without, last_seen = 0, list(ids or ())
    for since_s in runpod.http.clock.looks(END_LIMIT_S):
        try:
            there = [pod for pod in _ours_or(runpod, ids) if pod.status != "TERMINATED"]
        except ApiError as error:
            if not error.passes:
                raise
            without, done.ending.unsure = 0, str(error)
            continue
        done.ending.unsure, done.ending.left = "", [pod.id for pod in there]
        last_seen = done.ending.left or last_seen
        without = 0 if there else without + 1
        if without >= LISTS_WITHOUT and youngest_s + since_s >= LIST_LAG_S:
            return done.ending
        for pod in there:
            done.end(pod.id)
    if not done.ending.left:
        done.ending.unproved = last_seen
    return done.ending


def _ours_or(runpod: RunPod, ids: Collection[str] | None) -> list[Pod]:
    """The pods with these ids, or all of this project."""
    return ours(runpod) if ids is None else [pod for pod in runpod.pods() if pod.id in ids]


class _Terminating:
    """What one `terminate` has ended and said so far."""

    def __init__(self, runpod: RunPod, tell: Tell) -> None:
        self._runpod, self._tell, self._warned = runpod, interrupts.quietly(tell), set[str]()
        self.ending = Ending()

    def end(self, pod_id: str) -> None:
        try:
            self._runpod.terminate(pod_id)
        except UserError as error:
            if pod_id not in self._warned:
                self._tell(f"warning: {pod_id}: {error}")
            self._warned.add(pod_id)
            return
        if pod_id not in self.ending.ended:
            self._tell(f"ending {pod_id}")
            self.ending.ended.append(pod_id)
