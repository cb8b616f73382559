"""The box's address: `-H`, else RUNPOD_HOST, else the newest box in `.boxes`.

Never falls back to this machine or the local user. Connects to nothing.
"""

import getopt
import re
import shlex
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace

from ops import boxes
from ops.boxes import Known
from ops.settings import Settings
from worker.errors import BadInput

_PROXY = "ssh.runpod.io"
_TEXT = re.compile(
    r"(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9_.-]*)@)?"
    r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9][A-Za-z0-9_.-]*|[0-9A-Fa-f]*:[0-9A-Fa-f]*:[0-9A-Fa-f:.]+)"
    r"(?::(?P<port>[0-9]{1,5}))?"
)

NO_BOX = "no box is named; give -H root@IP:PORT or -H ID, set RUNPOD_HOST in .env, or rent one: inv launch"
PROXIED = (
    "{host} is RunPod's proxied SSH, which runs no commands and takes no files; "
    'use the pod\'s "SSH over exposed TCP": RUNPOD_HOST=root@IP:PORT'
)


@dataclass(frozen=True)
class Address:
    """Where a box is. None: as in ~/.ssh/config, else SSH's default. `id` names its folder in `.boxes`.

    `may_move`: it was named by its id, so its address is looked up again when it does not answer.
    `pasted_key`: the key of an ssh command line, for which RunPod shows the usual one: any other one wins.
    """

    host: str
    user: str | None = None
    port: int | None = None
    key_file: str | None = None
    id: str | None = None
    pasted_key: str | None = None
    may_move: bool = False


def of_box(box: Known) -> Address:
    """The address of a box that was named by its id."""
    return Address(box.host, box.user, box.port, box.key_file, box.id, may_move=True)


def parse(text: str, what: str) -> Address:
    """`[user@]host[:port]`, or an ssh command line with -p, -l and -i, as RunPod shows it.

    `what` is the option or setting it comes from. Raises BadInput.
    """
    target, options = _taken_apart(text)
    found = _TEXT.fullmatch(target)
    digits = options.get("-p") or (found and found["port"])
    port = int(digits) if digits and re.fullmatch("[0-9]{1,5}", digits) else None
    if not found or (digits and (port is None or not 0 < port < 65536)):
        hint = " (is a variable empty in this shell? RUNPOD_HOST is read from .env)" if what == "-H" else ""
        raise BadInput(
            f"{what} {text.strip()!r} is not a valid address{hint}; write it like root@203.0.113.7:22001"
        )
    return Address(
        found["host"].strip("[]"), found["user"] or options.get("-l"), port, pasted_key=options.get("-i")
    )


def _taken_apart(text: str) -> tuple[str, dict[str, str]]:
    """The host of `ssh HOST -p PORT ...`, and its options; for any other text, the text without options."""
    text = text.strip()
    if not text.startswith("ssh "):
        return text, {}
    try:
        # Backslashes are part of a Windows path, not quotes.
        options, hosts = getopt.gnu_getopt(shlex.split(text.replace("\\", "\\\\"))[1:], "p:i:l:")
    except (ValueError, getopt.GetoptError):
        return text, {}
    return (hosts[0] if len(hosts) == 1 else text), dict(options)


def given(text: str, tasks: Collection[str]) -> Address | None:
    """The box that -H names, or None.

    Raises BadInput where -H has a task's name instead, as after an empty variable, or several boxes.
    """
    if not text.strip() or is_unexpanded(text):
        return None
    if text in tasks:
        raise BadInput(
            f"-H took the task `{text}` for a box, as $RUNPOD_HOST is empty in this shell; "
            "leave -H out: RUNPOD_HOST is read from .env"
        )
    if "," in text:
        raise BadInput(f"-H {text} names several boxes; give one, and run it again for the next")
    return parse(text, "-H")


def is_unexpanded(text: str) -> bool:
    """True for a variable that the shell did not replace: $NAME in cmd.exe, %NAME% elsewhere."""
    return text.rpartition("@")[2][:1] in ("$", "%")


def find(given: Address | None, settings: Settings, report: Callable[[str], None]) -> Address:
    """The box to use; `report` is told where RUNPOD_HOST hides the newest one.

    Raises BadInput if none is named, or only RunPod's proxy.
    """
    named, newest = _of_settings(settings), boxes.current()
    address = given or named or (of_box(newest) if newest else None)
    if address is None:
        raise BadInput(NO_BOX)
    if address is named and newest and (named.host, named.port or 22) != (newest.host, newest.port):
        report(
            f"the box is {settings.runpod_host}, as RUNPOD_HOST is set, and not {newest.id}, which was "
            f"rented last; for that one: -H {newest.id}, or remove RUNPOD_HOST from .env"
        )
    if address.host.lower().endswith(_PROXY):
        raise BadInput(PROXIED.format(host=address.host))
    return replace(address, key_file=address.key_file or settings.ssh_key or address.pasted_key)


def _of_settings(settings: Settings) -> Address | None:
    if not settings.runpod_host or is_unexpanded(settings.runpod_host):
        return None
    return parse(settings.runpod_host, "RUNPOD_HOST")
