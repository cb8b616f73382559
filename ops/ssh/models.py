"""Models on a box. What takes long is a job of its own there (remote/models.sh), followed by its log.

A job goes on when the connection or this program ends; the same command joins it again. Holds no state.
"""

import functools
from typing import Any

from ops import ui
from ops.ssh import run_log
from ops.ssh.box import Box, CommandResult
from worker.errors import BadInput, Interrupted, UserError
from worker.songs.families import HEARTMULA_REHEARSAL
from worker.songs.model_names import REHEARSAL

_LIST_LIMIT_S = 120
_REMOVE_LIMIT_S = 600
_GOES_ON = "stopped following; the box goes on with it (the same command follows it again)"


class OnBox:
    """See ops.model_files.Place."""

    goes_on = _GOES_ON
    caution = ""  # the box looks for itself

    def __init__(self, box: Box) -> None:
        self._box = box

    def listed(self) -> list[dict[str, Any]]:
        ran = self._box.remote("models.sh", "list", "--json", limit_s=_LIST_LIMIT_S)
        found: list[dict[str, Any]] = _checked(ran).json()
        return found

    def remove(self, name: str) -> None:
        ran = _checked(self._box.remote("models.sh", "remove", name, limit_s=_REMOVE_LIMIT_S))
        ui.say(ran.out.strip())

    def job(self, kind: str, name: str) -> int:
        """Raises KeyboardInterrupt; the box goes on then."""
        return self._followed(kind, name)

    def have(self, model: str) -> None:
        """Have what the worker will load complete on the box. Raises UserError, Interrupted.

        A folder and the rehearsal models need nothing.
        """
        if model in (REHEARSAL, HEARTMULA_REHEARSAL) or model.startswith((".", "/", "~")):
            return
        try:
            code = self._followed("get", model)
        except KeyboardInterrupt:
            raise Interrupted(_GOES_ON) from None
        if code:
            raise UserError(f"the model {model} is not complete on the box (see above); run it again")

    def _followed(self, kind: str, name: str) -> int:
        started = _checked(self._box.remote("models.sh", "start", kind, name)).json()
        if started["joined"]:
            ui.say(f"the box is at it already (--{kind} {name}); following it")
        folder = started["folder"]
        settle = functools.partial(_settle, folder=folder)
        return run_log.follow(self._box, folder, ui.pour, ui.say, settle=settle)


def _settle(box: Box, folder: str) -> None:
    _checked(box.remote("models.sh", "settle", folder))


def _checked(ran: CommandResult) -> CommandResult:
    if ran.code:
        raise (BadInput if ran.code == 2 else UserError)(ran.reason())
    return ran
