"""Carry out a pod's plan: one pod that takes a login, within its price and with an end, or nothing at all.

Offer by offer, the cheapest first; a pod that is not as asked for is terminated before the next one. Whatever
goes wrong, a Ctrl-C included, what was created is terminated before the error is raised, and what may be left
is said. Two creations at once end in one pod: the younger one is terminated.
Decides nothing about money: that is in the plan.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ops import boxes, interrupts
from ops.boxes import Known
from ops.runpod import pods, ready
from ops.runpod.api import LIST_LAG_S, RunPod, Tell
from ops.runpod.errors import NO_ANSWER, ApiError
from ops.runpod.offers import Offer
from ops.runpod.plan import PodPlan
from ops.runpod.ready import Login, NotReady, Terms, Wait
from ops.runpod.types import Pod
from worker.amounts import count, usd
from worker.errors import UserError

# Each is paid for until it is given up; what stops so many is probably the image or the settings.
MOST_PODS = 3
_FAULTS = 2
_EXEC_FORM = ("entrypoint", "cmd")


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
    login: Login,
    tell: Tell,
    *,
    another: bool = False,
    now: Callable[[], datetime] = lambda: datetime.now(UTC),
) -> Created:
    """Create the pod, wait until `login` works, and make it the current box.

    `another`: also beside other pods of this project, as where a stopped one is to be replaced. Raises
    UserError when there is none to be had; then nothing is left running that the messages do not name.
    """
    creation = _Creation(runpod, plan, tell, now)
    terms = Terms(plan.cap_usd, plan.key_file)
    with interrupts.terminate_as_interrupt(), creation.undone_on_error():
        if not another and (there := running(runpod)):
            return Created(there=there)
        for offer in plan.candidates:
            pod = creation.ask(offer)
            if pod is None:
                continue
            wait = Wait(runpod, pod, terms, login, tell)
            try:
                box = wait.run(_refuse_younger if not another else lambda pod, listed: None)
            except NotReady as reason:
                creation.give_up(wait.pod, offer, str(reason))
                continue
            except _OlderPod as older:
                tell(f"another creation was first; terminating {pod.id}")
                creation.end()
                return Created(there=older.pods)
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


def _refuse_younger(own: Pod, listed: Sequence[Pod]) -> None:
    """Raises _OlderPod if another one of this project's pods that are paid for is older."""
    others = [pod for pod in listed if pods.is_ours(pod) and pod.alive and pod.id != own.id]
    older = [pod for pod in others if (pod.created_at, pod.id) < (own.created_at, own.id)]
    if older:
        raise _OlderPod(older)


class _Creation:
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
            self._tell("RunPod's API knows no entrypoint and cmd; sending the same as args")
            self._exec_form = False
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
                    ending = pods.terminate(self._runpod, [pod.id for pod in there], self._tell, age_s)
                    if failures := ending.failures():
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
