"""What cannot work on RunPod, refused with its reason before anything is created there.

Each raises BadInput and uses no network.
"""

import base64
import binascii
import re
from pathlib import Path

from ops.runpod.types import Volume
from worker.errors import BadInput

PROXY = "ssh.runpod.io"
USUAL_KEYS = ("id_ed25519", "id_ecdsa", "id_rsa")
# A pod's end is a time of day: so wrong a clock would give it minutes, or none.
CLOCK_S = 120.0
_PUBLIC = re.compile(r"(?P<type>(?:ssh|ecdsa|sk)-[^\s]+) (?P<key>[A-Za-z0-9+/=]+)(?: .*)?")


def refuse_spot(spot: bool, bid: str) -> None:
    """RunPod rents no pods that it may take back, so there is nothing to bid for."""
    if spot or bid:
        flag = "--spot" if spot else "--bid"
        raise BadInput(
            f"{flag}: RunPod has no spot pods and takes no bids any more; "
            "give --max-price, above which nothing is rented"
        )


def refuse_volume_outside_secure(volume_id: str | None, cloud: str) -> None:
    """A network volume is mounted in the secure cloud only. `cloud`: secure, community or any."""
    if volume_id and cloud == "community":
        raise BadInput(
            f"network volume {volume_id} can be mounted in the secure cloud only; set RUNPOD_CLOUD=secure, "
            "or leave RUNPOD_NETWORK_VOLUME_ID empty"
        )


def refuse_proxied(host: str | None) -> None:
    """RunPod's proxied SSH runs no commands and takes no files."""
    if host and PROXY in host.lower():
        raise BadInput(
            f"RUNPOD_HOST names {PROXY}, which runs no commands and takes no files; "
            "leave it empty: a new pod's own address is used"
        )


def refuse_wrong_clock(ahead_s: float | None) -> None:
    """`ahead_s`: RunPod's clock less this machine's; None: not known."""
    if ahead_s is not None and abs(ahead_s) > CLOCK_S:
        behind = "behind" if ahead_s > 0 else "ahead of"
        raise BadInput(
            f"this machine's clock is {abs(ahead_s) / 60:.0f} min {behind} RunPod's, "
            "and a pod's end is a time of day; set the clock right"
        )


def refuse_small_disk(purpose: str, disk_gb: int, least_gb: int) -> None:
    """The container's disk holds weights, packages and songs."""
    if disk_gb < least_gb:
        raise BadInput(f"{disk_gb} GB of disk are too little for {purpose}; give {least_gb} or more")


def refuse_small_volume(volume: Volume | None, model: str, files_gb: float) -> None:
    """A network volume is where the model's files go."""
    if volume and volume.size_gb < files_gb:
        raise BadInput(
            f"network volume {volume.id} has {volume.size_gb} GB, and the files of {model} take "
            f"{files_gb:.1f} GB; make a larger one: inv pod.volume-create"
        )


def public_key(key_file: str | None, home: Path | None = None) -> str:
    """The line of the public key that the pod's SSH server is to accept.

    `key_file`: RUNPOD_SSH_KEY, the private key; else the first of the usual ones in ~/.ssh. Never shows what
    is in a file.
    """
    file = _public_file(key_file, home or Path.home())
    try:
        content = file.read_bytes()
    except OSError as error:
        raise BadInput(
            f"cannot read the public key {file} ({error.strerror}); check RUNPOD_SSH_KEY"
        ) from None
    again = f"write it again: {_write_public_key(file)}"
    if b"\r" in content:
        raise BadInput(f"{file} has Windows line ends (CRLF), which the pod's SSH server refuses; {again}")
    if b"PRIVATE KEY" in content:
        raise BadInput(f"{file} holds a private key, which must not leave this machine; {again}")
    found = _PUBLIC.fullmatch(content.decode("utf-8", "replace").rstrip("\n"))
    if not found or not _names_its_type(found["type"], found["key"]):
        raise BadInput(f"{file} is not one line with a public key; {again}")
    return found[0]


def private_key(key_file: str) -> Path:
    """The private key of RUNPOD_SSH_KEY, which may name the public one."""
    private = Path(key_file).expanduser()
    return private.with_suffix("") if private.suffix == ".pub" else private


def _public_file(key_file: str | None, home: Path) -> Path:
    if key_file is None:
        usual = [home / ".ssh" / f"{name}.pub" for name in USUAL_KEYS]
        if there := next((file for file in usual if file.exists()), None):
            return there
        raise BadInput(
            "there is no SSH key in ~/.ssh; make one: ssh-keygen -t ed25519, or set RUNPOD_SSH_KEY"
        )
    private = private_key(key_file)
    file = private.with_name(f"{private.name}.pub")
    if not private.exists():
        raise BadInput(f"there is no SSH key {private}; correct RUNPOD_SSH_KEY")
    if not file.exists():
        raise BadInput(f"{private} has no public key beside it; make it: {_write_public_key(file)}")
    return file


def _write_public_key(file: Path) -> str:
    """A command that makes the public key of the private one beside it, in every shell.

    `ssh-keygen -y > FILE` is not that: PowerShell 5 writes UTF-16, and cmd.exe Windows line ends.
    """
    public, private = map(_in_quotes, (file, file.with_suffix("")))
    made = f"subprocess.check_output(['ssh-keygen', '-y', '-f', '{private}']).strip()"
    return f"uv run python -c \"import subprocess; open('{public}', 'wb').write({made} + b'\\n')\""


def _in_quotes(path: Path) -> str:
    """A path for a Python text in a shell's double quotes: what a shell may take is written as a number."""
    text = path.as_posix()
    return "".join(each if each.isalnum() or each in "/:._- ~" else f"\\U{ord(each):08x}" for each in text)


def _names_its_type(kind: str, encoded: str) -> bool:
    """True if the key's bytes begin with the type that is written before them (RFC 4253, 6.6)."""
    try:
        content = base64.b64decode(encoded, validate=True)
    except binascii.Error:
        return False
    return content[4 : 4 + int.from_bytes(content[:4], "big")] == kind.encode()
