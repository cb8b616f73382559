"""Start and stop the worker on a box, and read its state. remote/session.sh does the work there.

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

GRACE_S = 60
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

    def __str__(self) -> str:
        return {
            self.NOTHING: "nothing was running",
            self.SIGINT: "it stopped by itself and kept its checkpoints",
            self.SIGTERM: "it ignored SIGINT and stopped at SIGTERM",
            self.SIGKILL: "it did not react and was killed; songs in progress resume from their checkpoints",
        }[self]


@dataclass(frozen=True)
class Run:
    """The newest run on the box; `run_id` is None if there was none."""

    run_id: str | None
    running: bool
    pid: int | None
    exit_code: int | None
    log_bytes: int
    release: str | None
    state_dir: str | None
    stop_hook: str | None
    keep_alive: bool


def status(box: Box) -> Run:
    """The newest run."""
    return _run(_checked(box, box.remote("session.sh", "status")).json())


def status_if_deployed(box: Box) -> Run | None:
    """The newest run; None on a box without a release."""
    script = f"{box.info.root}/current/remote/session.sh"
    ran = box.shell('[ -f "$1" ] || exit 66; exec bash "$1" status', script)
    return None if ran.code == 66 else _run(_checked(box, ran).json())


def start(box: Box, *, keep_alive: bool = False, arguments: Sequence[str] = ()) -> Run:
    """Start the worker, which keeps running when the connection ends. -> the run, a moment later.

    Raises UserError if one is running.
    """
    words = ["--keep-alive"] if keep_alive else []
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


def stop(box: Box, grace_s: int = GRACE_S, by: str = "fab stop") -> tuple[Run, StopNeeded]:
    """Stop the worker: SIGINT, after `grace_s` SIGTERM, then SIGKILL. The box stays on.

    `by`: the command that `fab status` names. -> the run, and what the stop needed.
    """
    limit_s = grace_s + _AFTER_GRACE_S + 30
    ran = box.remote("session.sh", "stop", "--keep", str(grace_s), by, limit_s=limit_s)
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
