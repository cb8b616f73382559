"""Start and stop the worker or a training on a box, and read its state. remote/session.sh does the work.

Holds no state: every answer comes from the box. Does not follow a log.
"""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from enum import Enum
from typing import Any

from ops.ssh.box import Box, CommandResult
from worker import amounts
from worker.errors import UserError

# As session.sh names the jobs, and how messages do.
TRAIN = "train"
WORKER = "worker"
_NAMES = {TRAIN: "training"}
# Seconds after the first signal, where none are asked for: session.sh says the same.
GRACE_S = {WORKER: 60, TRAIN: 300}
# session.sh waits this much longer than the grace for SIGTERM and SIGKILL.
_AFTER_GRACE_S = 20
# A worker that cannot run at all ends within this time.
_SETTLE_S = 1.0

# The scripts in remote/ say the same.
STAYS_ON = "nothing turns this box off; it bills until you stop it"


class StopNeeded(Enum):
    """What a stop needed, as session.sh names it."""

    NOTHING = "nothing"
    SIGINT = "SIGINT"
    SIGTERM = "SIGTERM"
    SIGKILL = "SIGKILL"


def name_of(job: str | None) -> str:
    """As messages name it: `worker`, `training`. A run of an earlier release has none: a worker's."""
    return _NAMES.get(job or WORKER, WORKER)


def ended_by(needed: StopNeeded, job: str | None) -> str:
    """What a stop needed, in words. A training gets SIGTERM first, on which it can save a checkpoint."""
    if needed is StopNeeded.NOTHING:
        return "nothing was running"
    resumes = "a training resumes from its newest checkpoint"
    if job == TRAIN:
        killed = needed is StopNeeded.SIGKILL
        return f"it {'did not react and was killed' if killed else 'stopped at SIGTERM'}; {resumes}"
    return {
        StopNeeded.SIGINT: "it stopped by itself and kept its checkpoints",
        StopNeeded.SIGTERM: "it ignored SIGINT and stopped at SIGTERM",
        StopNeeded.SIGKILL: (
            "it did not react and was killed; songs in progress resume from their checkpoints"
        ),
    }[needed]


@dataclass(frozen=True)
class Run:
    """The newest run on the box; `run_id` is None if there was none. `job`: see `name_of`."""

    run_id: str | None
    running: bool
    pid: int | None
    exit_code: int | None
    log_bytes: int
    release: str | None
    state_dir: str | None
    stop_hook: str | None
    keep_alive: bool
    job: str | None


def status(box: Box) -> Run:
    """The newest run."""
    return _run(_checked(box, box.remote("session.sh", "status")).json())


def status_if_deployed(box: Box) -> Run | None:
    """The newest run; None on a box without a release."""
    script = f"{box.info.root}/current/remote/session.sh"
    ran = box.shell('[ -f "$1" ] || exit 66; exec bash "$1" status', script)
    return None if ran.code == 66 else _run(_checked(box, ran).json())


def start(box: Box, *, job: str = WORKER, keep_alive: bool = False, arguments: Sequence[str] = ()) -> Run:
    """Start a job, which keeps running when the connection ends. -> the run, a moment later.

    Raises UserError if one of either kind is running.
    """
    # Not for the worker: a box may still have a release that knows no other.
    words = ["--job", job] * (job != WORKER) + ["--keep-alive"] * keep_alive
    ran = box.remote("session.sh", "start", *words, "--", *arguments)
    if ran.code == 4:
        raise UserError(f"{ran.reason().partition(';')[0]}; see it: fab logs, or stop it: fab stop")
    _checked(box, ran)
    time.sleep(_SETTLE_S)
    return status(box)


def guard(box: Box, lifetime_h: float = 0) -> dict[str, Any]:
    """Start the box's watchdog unless it is running; -> its status.

    With `lifetime_h`, a box that has no deadline gets one. An EC2 machine has had its own since its start.
    """
    if lifetime_h and box.info.platform != "ec2":
        _checked(box, box.remote("deadline.sh", "renew", str(max(1, round(lifetime_h * 3600)))))
    ran = box.remote("watchdog.sh", "start")
    if ran.code != 4:  # it is running
        _checked(box, ran)
    found: dict[str, Any] = ran.json()
    return found


def ending(watchdog: Mapping[str, Any]) -> str:
    """What ends the box, and when, as a line."""
    left = "" if watchdog.get("left_s") is None else f"in {amounts.duration(max(0, watchdog['left_s']))}"
    if not watchdog.get("turns_off"):
        return STAYS_ON + (f"; its worker is stopped {left} at the latest" if left else "")
    if left:
        return f"this box switches off {left} at the latest"
    return "this box has no deadline; it switches off after a run, or when no worker runs"


def stop(box: Box, grace_s: int | None = None, by: str = "fab stop") -> tuple[Run, StopNeeded]:
    """Stop the run: the worker by SIGINT, after `grace_s` SIGTERM; a training by SIGTERM; then SIGKILL.

    The box stays on. `grace_s`: None is GRACE_S of the job. `by`: the command that `fab status` names.
    -> the run, and what the stop needed.
    """
    limit_s = (max(GRACE_S.values()) if grace_s is None else grace_s) + _AFTER_GRACE_S + 30
    grace = "" if grace_s is None else str(grace_s)
    ran = box.remote("session.sh", "stop", "--keep", grace, by, limit_s=limit_s)
    found = _checked(box, ran).json()
    return _run(found), StopNeeded(found["needed"])


def _run(found: dict[str, Any]) -> Run:
    values: dict[str, Any] = {field.name: found.get(field.name) for field in fields(Run)}
    return Run(**values)


def _checked(box: Box, ran: CommandResult) -> CommandResult:
    if ran.code == 0:
        return ran
    reason = ran.reason()
    if "tmux" in reason or "environment" in reason:
        raise UserError(f"{reason.partition(';')[0]}; run: fab install")
    raise UserError(reason if ";" in reason else f"{reason}; see what is missing: fab validate")
