"""The box's address: `-H`, else RUNPOD_HOST, else the newest box in `.boxes`.

Never falls back to this machine or the local user. Connects to nothing; only `current_host` asks AWS.
"""

import getopt
import re
import shlex
from collections.abc import Collection
from dataclasses import dataclass, replace

from ops import boxes
from ops.boxes import Known
from ops.settings import Settings
from worker.errors import BadInput, UserError

_PROXY = "ssh.runpod.io"
_TEXT = re.compile(
    r"(?:(?P<user>[A-Za-z0-9_][A-Za-z0-9_.-]*)@)?"
    r"(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9][A-Za-z0-9_.-]*|[0-9A-Fa-f]*:[0-9A-Fa-f]*:[0-9A-Fa-f:.]+)"
    r"(?::(?P<port>[0-9]{1,5}))?"
)

NO_BOX = "no box is named; give -H root@IP:PORT, set RUNPOD_HOST in .env, or rent one: inv launch"
PROXIED = (
    "{host} is RunPod's proxied SSH, which runs no commands and takes no files; "
    'use the pod\'s "SSH over exposed TCP": RUNPOD_HOST=root@IP:PORT'
)


@dataclass(frozen=True)
class Address:
    """Where a box is. None: as in ~/.ssh/config, else SSH's default. `id` names its folder in `.boxes`.

    `pasted_key`: the key of an ssh command line, for which RunPod shows the usual one: any other one wins.
    """

    host: str
    user: str | None = None
    port: int | None = None
    key_file: str | None = None
    id: str | None = None
    pasted_key: str | None = None


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


def find(given: Address | None, settings: Settings) -> Address:
    """The box to use. Raises BadInput if none is named, or only RunPod's proxy."""
    address = given or _of_settings(settings) or _of_current()
    if address is None:
        raise BadInput(NO_BOX)
    if address.host.lower().endswith(_PROXY):
        raise BadInput(PROXIED.format(host=address.host))
    return Address(
        address.host,
        address.user,
        address.port,
        address.key_file or settings.ssh_key or address.pasted_key,
        address.id,
    )


def current_host(box: Known | None, settings: Settings) -> str | None:
    """The address that AWS has for an EC2 machine, saved in `.boxes`; None if there is none.

    It changes when the machine is stopped and started. Whether the machine at the new address is trusted is
    decided by the pinned host key.
    """
    if not box or box.kind != "ec2":
        return None
    from ops.aws.session import Aws  # here: `fab --list` stays under 1 s

    unknown = ("InvalidInstanceID.NotFound", "InvalidInstanceID.Malformed")
    try:
        found = Aws(settings).ask(
            "ec2", "describe_instances", region=box.region or "", InstanceIds=[box.id], absent=unknown
        )
    except UserError:  # the user sees the error of the box that did not answer
        return None
    instances = [each for part in (found or {}).get("Reservations", []) for each in part["Instances"]]
    host = instances[0].get("PublicIpAddress") if instances else None
    if host and host != box.host:
        boxes.save(replace(box, host=host))
    return host


def _of_settings(settings: Settings) -> Address | None:
    if not settings.runpod_host or is_unexpanded(settings.runpod_host):
        return None
    return parse(settings.runpod_host, "RUNPOD_HOST")


def _of_current() -> Address | None:
    box = boxes.current()
    return Address(box.host, box.user, box.port, box.key_file, box.id) if box else None
