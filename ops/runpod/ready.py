"""Wait until one can log in to a pod that was just created or started, and see early that it never will.

RunPod's own words about it are shown as they come. Only a login proves that a pod can be used: its status
does not. Only its container's log, or its timer seen over SSH, proves that the pod will end: that RunPod took
the start script does not mean that the image has run it. Ends nothing: who asked decides what becomes of a
pod that is not ready.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime

from ops import boxes, host_keys
from ops.boxes import Known
from ops.runpod import container, errors, pods
from ops.runpod.api import RunPod
from ops.runpod.calls import LIST_LAG_S, Tell
from ops.runpod.errors import ApiError
from ops.runpod.types import LogLine, Pod
from worker.amounts import duration, usd
from worker.errors import UserError
from worker.timestamps import stamp

_LOG_LINES = 5000
# What RunPod's log says over and over where the machine's driver is older than the image's CUDA.
_OLD_DRIVER = "unsatisfied condition: cuda"


# The pod is paid for meanwhile. At its start an image of 10 GB is pulled.
START_S = 900.0
PRICE_S = 60.0  # after RUNNING
ADDRESS_S = 120.0  # the same
GPU_S = 180.0  # after the address, for the login to a pod of which RunPod shows no GPU
HOST_KEYS_S = 30.0  # after the address, for the log that names them
ARMED_S = 120.0  # after the address, for the proof that it will end
LOGIN_S = 300.0  # after the address


def unwritable(error: OSError) -> UserError:
    """The error of a folder in which no box can be remembered."""
    folder = boxes.boxes_folder()
    return UserError(f"cannot write {folder} ({error.strerror}); free the disk, or make the folder writable")


class NotReady(Exception):
    """This pod will not be of use, and another one may be."""


class NotArmed(NotReady):
    """Its image has not run the start script, so nothing would end it."""


class NoGpu(NotReady):
    """It was started without its GPU: its machine has none free."""


@dataclass(frozen=True)
class SshChecks:
    """What is asked of a box over SSH: can one log in to a GPU, and does its timer run?

    Empty: yes; else why not yet.

    They raise UserError where that will not change.
    """

    login: Callable[[Known], str]
    timer: Callable[[Known], str]


@dataclass(frozen=True)
class Terms:
    """What the pod may cost per hour, and which private key opens it; None: one that SSH finds.

    `old_lines`: the ids of what its logs had before this start, with host keys that are not trusted any
    more; None: that is not known, so that none is trusted for being in the log. `ends_itself`: its end has
    to be proved; False for a pod that was not given our start script. `ends_at`: the end that its log has to
    name, as a line of an earlier start may be there, too; None: any, as there was none. `listed_s`: so long
    after its creation a list has to show it.
    """

    cap_usd: float
    key_file: str | None
    old_lines: Collection[str] | None = ()
    ends_itself: bool = True
    ends_at: datetime | None = None
    listed_s: float = 0.0


class Wait:
    """One pod from its creation or start until the login. `pod`: as it was seen last."""

    def __init__(self, runpod: RunPod, pod: Pod, terms: Terms, checks: SshChecks, tell: Tell) -> None:
        self.pod = pod
        self._runpod, self._terms, self._checks, self._tell = runpod, terms, checks, tell
        self._clock = runpod.http.clock
        self._began_s = self._clock.monotonic()
        self._running_s: float | None = None
        self._addressed_s: float | None = None
        self._told = set[str]()
        self._last_line = ""
        self._trusted: tuple[str, int, list[str]] | None = None  # where, and which host keys
        self._opened: tuple[str, int] | None = None  # where a login has worked
        self._armed = not terms.ends_itself

    def run(self, each_list: Callable[[Pod, list[Pod]], None] = lambda pod, listed: None) -> Known:
        """The box, once a login works and its end is armed.

        `each_list` gets this pod and every list; the last one is of `listed_s` after the creation or later,
        and has this pod. Raises NotReady; UserError where no other pod would do better, such as for a key
        that is refused.
        """
        limit_s = START_S + ADDRESS_S + LOGIN_S
        for _ in self._clock.looks(limit_s):
            asked_s = self._since_s(self._began_s)
            listed = self._look()
            self._show_log()
            self._refuse_unusable()
            each_list(self.pod, listed)
            log = self._container_log()
            box = self._box(log)
            is_open = box is not None and self._logs_in(box, log or ())
            self._prove_its_end(box, log or (), is_open)
            if box and is_open and self._armed and self.pod.usd_per_hour > 0:
                if asked_s >= self._terms.listed_s and any(pod.id == self.pod.id for pod in listed):
                    return box
                self._tell_once("  it is ready; waiting until RunPod lists what was created before it ...")
                self._clock.sleep(max(0.0, self._terms.listed_s - asked_s))
        raise NotReady(f"it was not ready within {duration(limit_s)}")

    def _tell_once(self, line: str) -> None:
        if line not in self._told:
            self._told.add(line)
            self._tell(line)

    def _since_s(self, moment_s: float | None) -> float:
        return 0.0 if moment_s is None else self._clock.monotonic() - moment_s

    # --- what RunPod says

    def _look(self) -> list[Pod]:
        """Ask for the pod as it is now; -> all pods, or none where RunPod fails for the moment."""
        try:
            listed = self._runpod.pods()
            now = next((pod for pod in listed if pod.id == self.pod.id), None)
            now = now or self._runpod.pod(self.pod.id)
        except ApiError as error:
            if not error.passes:
                raise
            self._tell(f"  {error}")
            return []
        if now is None:
            if self._since_s(self._began_s) > LIST_LAG_S:  # before, it proves nothing
                raise NotReady("RunPod does not know it any more")
            return listed
        self.pod = now
        where = f" at {now.address.host}:{now.address.port}" if now.address else ""
        self._tell_once(f"  {now.id} is {now.status}{where}")
        return listed

    def _show_log(self) -> None:
        """What RunPod has written since the last look."""
        for line in self._log("system", self._last_line) or ():
            self._last_line = line.id
            if line.id in (self._terms.old_lines or ()):
                continue
            text = errors.one_line(line.text)
            self._tell(f"  RunPod: {text}")
            if _OLD_DRIVER in text.lower():
                raise NotReady("its driver is too old for the image's CUDA")

    def _log(self, source: str, after: str = "") -> list[LogLine] | None:
        """A log, or None: RunPod may not know the pod yet."""
        try:
            return self._runpod.log(self.pod.id, source, _LOG_LINES, after)
        except ApiError:
            return None

    def _container_log(self) -> list[LogLine] | None:
        """What its container has printed since this start; None where that is not known."""
        old = self._terms.old_lines
        if self.pod.address is None or old is None or (log := self._log("container")) is None:
            return None
        return [line for line in log if line.id not in old]

    def _refuse_unusable(self) -> None:
        pod, now_s = self.pod, self._clock.monotonic()
        if not pod.alive:
            raise NotReady(f"RunPod reports {pod.status}")
        if pod.usd_per_hour > self._terms.cap_usd + 1e-6:  # it is a binary fraction
            raise NotReady(
                f"it costs {usd(pod.usd_per_hour)} an hour, over the maximum of {usd(self._terms.cap_usd)}"
            )
        if pod.status != "RUNNING":
            self._running_s = self._addressed_s = None
            if self._since_s(self._began_s) >= START_S:
                raise NotReady(f"it is still {pod.status} after {duration(START_S)}")
            return
        self._running_s = now_s if self._running_s is None else self._running_s
        if not pod.usd_per_hour > 0 and self._since_s(self._running_s) >= PRICE_S:
            raise NotReady("RunPod does not say what it costs")
        if pod.address is None:
            self._addressed_s = None
            if self._since_s(self._running_s) >= ADDRESS_S:
                raise NotReady(f"it has had no SSH address for {duration(ADDRESS_S)}")
            return
        self._addressed_s = now_s if self._addressed_s is None else self._addressed_s

    # --- the proof that it will end

    def _prove_its_end(self, box: Known | None, log: Sequence[LogLine], is_open: bool) -> None:
        """Look for the line of the start script in the log, and where there is none for the timer itself.

        `is_open`: a login works. Raises NotArmed if there is neither in time.
        """
        self._armed = self._armed or any(self._says_its_end(line.text) for line in log)
        is_late = self._since_s(self._addressed_s) >= ARMED_S
        if self._armed or box is None or not (is_late or (is_open and not log)):
            return
        if not (why := self._checks.timer(box)):
            self._tell("  its log does not say that it will end; its timer, seen over SSH, does")
            self._armed = True
        elif is_late:
            raise NotArmed(f"its image did not run our start script, so nothing would end it ({why})")

    def _says_its_end(self, line: str) -> bool:
        _, said, end = line.partition(container.ARMED)
        wanted = self._terms.ends_at
        # Seconds since 1970 where the image's `date` knows no better.
        return bool(said) and (wanted is None or end.strip() in (stamp(wanted), str(int(wanted.timestamp()))))

    # --- the box itself

    def _box(self, lines: Sequence[LogLine] | None) -> Known | None:
        """The pod as a box, with the host keys that its log names; None until then.

        What its log has named for this address is trusted although a later look at it finds less or fails.
        """
        box = pods.known(self.pod, self._terms.key_file)
        if box is None:
            return None
        log = "\n".join(line.text for line in lines or ())
        named = host_keys.fingerprints(log)
        if self._trusted and self._trusted[:2] == (box.host, box.port) and {*named} <= {*self._trusted[2]}:
            return box
        if not named and self._since_s(self._addressed_s) < HOST_KEYS_S:
            return None
        self._opened = None
        try:
            said = host_keys.started(box, log)
        except OSError as error:
            raise unwritable(error) from None
        if self._trusted is None or not named:
            self._tell(f"  {said}")
        self._trusted = (box.host, box.port, named)
        return box

    def _logs_in(self, box: Known, log: Sequence[LogLine]) -> bool:
        """True if a login works, or has worked at this address."""
        if self._opened == (box.host, box.port):
            return True
        why = self._checks.login(box)
        if not why:
            self._opened = box.host, box.port
            return True
        # That RunPod shows no GPU proves nothing: it may show nothing yet. The login asks the GPU itself.
        if not self.pod.has_running_gpu and self._since_s(self._addressed_s) >= GPU_S:
            raise NoGpu(f"it was started without a GPU ({why})")
        if self._since_s(self._addressed_s) >= LOGIN_S:
            for line in log[-5:]:
                self._tell(f"  its container: {errors.one_line(line.text)}")
            raise NotReady(f"no login within {duration(LOGIN_S)} ({why})")
        return False
