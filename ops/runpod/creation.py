"""What was asked of RunPod for one pod, what has come of it, and its end: whatever is answered, none is lost.

A pod whose answer was lost is looked for, and what is of no use is terminated before the next is asked for.
Decides nothing about money, and does not wait for a pod: that is in the plan, and in ops/runpod/ready.py.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from datetime import datetime
from typing import Any

from ops import boxes, interrupts
from ops.runpod import ending, pods
from ops.runpod.api import RunPod
from ops.runpod.calls import LIST_LAG_S, Tell
from ops.runpod.errors import NO_ANSWER, ApiError
from ops.runpod.offers import Offer
from ops.runpod.plan import PodPlan
from ops.runpod.types import Pod
from worker.amounts import count, usd
from worker.errors import UserError

# Each is paid for until it is given up; what stops so many is probably the image or the settings.
MOST_PODS = 3
_FAULTS = 2
_EXEC_FORM = ("entrypoint", "cmd")


class Creation:
    """What was asked for, what is known to have come of it, and why offers were refused."""

    def __init__(self, runpod: RunPod, plan: PodPlan, tell: Tell, now: Callable[[], datetime]) -> None:
        self._runpod, self._plan, self._tell, self._now = runpod, plan, tell, now
        self._exec_form = True
        self._pods: dict[str, Pod] = {}  # by name; what is paid for
        self._lost: list[str] = []  # names of pods that may have been created
        self._n_pods = 0
        self._reasons: dict[str, list[str]] = {}
        self._errors: list[ApiError] = []

    # --- asking

    def ask(self, offer: Offer) -> Pod | None:
        """The new pod; None if RunPod has none of these now, or does not let this account have it."""
        where = f"{offer.gpu} in the {offer.cloud.lower()} cloud"
        self._tell(f"asking for {where} at {usd(offer.per_hour_usd or 0)} an hour ...")
        for n_faults in range(1, _FAULTS + 1):
            try:
                return self._create(offer)
            except ApiError as error:
                if error.status in (400, 403):
                    self._refuse(offer, error.detail or f"RunPod answers {error.status}")
                    self._errors.append(error)
                    return None
                # That it was not created is known: after a lost answer its name was looked for.
                fault = (error.status >= 500 or error.status == NO_ANSWER) and not error.may_have_acted
                if not fault or n_faults == _FAULTS:
                    raise
                self._tell(f"{error}")
        return None

    def _create(self, offer: Offer) -> Pod:
        now = self._now()
        name = self._plan.new_name(now)
        request = self._plan.request(offer, name, now, exec_form=self._exec_form)
        try:
            # A Ctrl-C that was held is raised at the end of this block: the pod is known before.
            with interrupts.held(self._tell, "RunPod's answer"):
                pod = self._asked(name, request)
        except ApiError as error:
            refused = error.status == 422 and any(field in error.detail for field in _EXEC_FORM)
            if not (refused and self._exec_form):
                raise
            self._send_args("RunPod's API knows no entrypoint and cmd")
            return self._create(offer)
        self._tell(f"created {pod.id} ({name}) in {pod.data_center or 'a data centre that is not named'}")
        listed_usd = offer.per_hour_usd or 0.0
        is_counted = "HOURLY_COST_USD" not in self._plan.env
        if is_counted and listed_usd < pod.usd_per_hour <= self._plan.cap_usd:
            self._tell(
                f"warning: it costs {usd(pod.usd_per_hour)} an hour, and was listed at {usd(listed_usd)}, "
                "with which cost reports count; for the true price set HOURLY_COST_USD before fab up"
            )
        return pod

    def _send_args(self, why: str) -> None:
        self._tell(f"{why}; sending the same as args")
        self._exec_form = False

    def _asked(self, name: str, request: dict[str, Any]) -> Pod:
        self._lost.append(name)  # whatever error it is that hides the answer
        try:
            pod = self._runpod.create_pod(request)
        except UserError as error:
            if not (isinstance(error, ApiError) and error.may_have_acted):
                self._lost.remove(name)
            raise
        self._pods[name] = pod
        self._lost.remove(name)
        self._n_pods += 1
        return pod

    # --- giving up

    def _refuse(self, offer: Offer, reason: str) -> None:
        where = f"{offer.gpu}, {offer.cloud.lower()} cloud"
        self._tell(f"  refused: {reason}")
        self._reasons.setdefault(reason, []).append(where)

    def give_up(self, pod: Pod, offer: Offer, reason: str) -> None:
        """Terminate a pod that is of no use. Raises UserError if it may be left, or was the last to try."""
        self._tell(f"{pod.id} is given up: {reason}")
        self.end()
        self._reasons.setdefault(reason, []).append(f"{offer.gpu}, {offer.cloud.lower()} cloud")
        if self._n_pods >= MOST_PODS:
            raise self.refused()

    def give_up_unarmed(self, pod: Pod, reason: str) -> None:
        """Terminate a pod whose image has not run the start script, and ask in the other form from now on.

        Raises UserError if there is no other form: no pod of this image would end.
        """
        self._tell(f"{pod.id} is given up: {reason}")
        self.end()
        if not self._exec_form:
            raise UserError(
                f"no pod was created: the image {self._plan.image} does not run a request's start script, "
                "so nothing would end a pod of it; set RUNPOD_IMAGE to an image of RunPod"
            )
        self._send_args("it may obey args")

    def refused(self) -> UserError:
        """One line with every reason."""
        if self._errors and all(error.status == 403 for error in self._errors) and not self._n_pods:
            return self._errors[-1]  # a key without rights, more likely than a GPU that one may not have
        reasons = "; ".join(f"{reason} ({', '.join(where)})" for reason, where in self._reasons.items())
        n = sum(map(len, self._reasons.values()))
        volume = self._plan.volume
        place = f", or another volume: this one allows only {volume.data_center}" if volume else ""
        return UserError(
            f"none of {count(n, 'offer')} became a pod, and nothing is running: {reasons}; "
            f"try later, or give --max-price or --cloud any{place}"
        )

    # --- ending

    def keep(self) -> None:
        """It is as asked for: nothing is to be undone any more."""
        self._pods.clear()

    def end(self) -> None:
        """Terminate whatever was or may have been created. A Ctrl-C waits for it.

        Raises an error, usually UserError, after a warning that names it, if something may be left.
        """
        if not self._pods and not self._lost:
            return
        tell = interrupts.quietly(self._tell)
        with interrupts.held(tell, "the end of the pod"):
            try:
                unseen = self._find_lost()
                if there := list(self._pods.values()):
                    age_s = pods.youngest_s(there, self._now())
                    ids = [pod.id for pod in there]
                    if failures := ending.terminate(self._runpod, ids, self._tell, age_s).failures():
                        raise UserError("; ".join(failures))
                if unseen:
                    raise unseen
            except Exception as error:
                names = ", ".join([*(pod.id for pod in self._pods.values()), *self._lost])
                tell(
                    f"WARNING: {names} may still be running, and STILL BILLING ({error}); it stops itself "
                    "at its deadline; end it now: inv pod.terminate"
                )
                raise
            self._pods.clear()
            tell("nothing of it is running")
            for pod in there:
                with suppress(Exception):  # a convenience, and no reason to raise another error
                    boxes.forget(pod.id)

    def _find_lost(self) -> ApiError | None:
        """Give a pod whose answer was lost time to be listed. -> why it is not known whether it is there."""
        unseen: ApiError | None = None
        for _ in self._runpod.http.clock.looks(LIST_LAG_S):
            if not self._lost:
                return None
            try:
                listed = self._runpod.pods()
            except ApiError as error:
                unseen = error
                continue
            unseen = None
            for pod in listed:
                if pod.name in self._lost:
                    self._lost.remove(pod.name)
                    self._pods[pod.name] = pod
        if unseen is None:
            self._lost.clear()  # it is in no list, and it would be by now
        return unseen

    @contextmanager
    def undone_on_error(self) -> Iterator[None]:
        """Nothing that was created is left after an error of the block."""
        try:
            yield
        except BaseException:
            with suppress(KeyboardInterrupt, Exception):  # the block's own error is raised
                try:
                    self.end()
                except KeyboardInterrupt:  # it may have come before it could be held
                    self.end()
            raise
