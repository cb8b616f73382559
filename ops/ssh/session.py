"""The worker on a box: start it, stop it, ask how it is. remote/session.sh does the work there.

Holds no state: every answer is asked of the box. Does not follow a log.
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any

from ops.ssh.box import Box, CommandResult
from worker.errors import UserError

GRACE_S = 60
# session.sh waits this much longer than the grace for SIGTERM and SIGKILL.
_AFTER_GRACE_S = 20
# A worker that cannot run at all ends within this time.
_FIRST_S = 1.0

HOW = {
    "nothing": "nothing was running",
    "SIGINT": "it stopped by itself and kept its checkpoints",
    "SIGTERM": "it had to be told twice, and stopped",
    "SIGKILL": "it did not react and was killed; songs in work begin again at their last checkpoint",
}


@dataclass(frozen=True)
class Run:
    """One run on the box, or none (`run_id` is None)."""

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
    """The newest run; None on a box that nothing was ever deployed to."""
    script = f"{box.info.root}/current/remote/session.sh"
    ran = box.shell('[ -f "$1" ] || exit 66; exec bash "$1" status', script)
    return None if ran.code == 66 else _run(_checked(box, ran).json())


def start(box: Box, *, keep_alive: bool = False, arguments: Sequence[str] = ()) -> Run:
    """Start the worker; it goes on when we leave. -> the run, a moment later.

    Raises UserError if one is running.
    """
    words = ["--keep-alive"] if keep_alive else []
    ran = box.remote("session.sh", "start", *words, "--", *arguments)
    if ran.code == 4:
        raise UserError(f"{ran.reason().partition(';')[0]}; see it: fab logs, or end it: fab stop")
    _checked(box, ran)
    time.sleep(_FIRST_S)
    return status(box)


def guard(box: Box) -> bool:
    """Start the box's watchdog unless it runs; -> whether it was started now."""
    ran = box.remote("watchdog.sh", "start")
    if ran.code != 4:  # it is running
        _checked(box, ran)
    return ran.code == 0


def stop(box: Box, grace_s: int = GRACE_S) -> tuple[Run, str]:
    """End the worker, gently for `grace_s`, then firmly; the machine stays on. -> the run, what it took."""
    ran = box.remote("session.sh", "stop", "--keep", str(grace_s), limit_s=grace_s + _AFTER_GRACE_S + 30)
    found = _checked(box, ran).json()
    return _run(found), HOW.get(found.get("needed"), str(found.get("needed")))


def _run(found: dict[str, Any]) -> Run:
    values: dict[str, Any] = {field.name: found.get(field.name) for field in fields(Run)}
    return Run(**values)


def _checked(box: Box, ran: CommandResult) -> CommandResult:
    if ran.code == 0:
        return ran
    reason = ran.reason()
    if "tmux" in reason or "environment" in reason:
        raise UserError(f"{reason.partition(';')[0]}; run: fab install")
    raise UserError(reason if ";" in reason else f"{reason}; look with: fab validate")
