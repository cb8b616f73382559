"""The host keys of a box whose every start makes new ones: those that its own log names replace the old ones.

For a start that this program asked for, whose log comes over HTTPS from whoever runs the machine. Any other
change is refused (ops/ssh/link.py). Connects to nothing.
"""

import base64
import binascii
import hashlib
import re
from pathlib import Path

from ops import boxes
from ops.boxes import Known

PINS = "known_hosts"
# Below this line RunPod's start.sh lists them, as `ssh-keygen -l` does.
_HEADING = "SSH host keys:"
_MOST_LINES = 40
_FINGERPRINT = re.compile(r"(?:^|\s)\d{3,5} (SHA256:[A-Za-z0-9+/]{43}) .*\([A-Z0-9-]+\)\s*$")
_KEY = re.compile(r"(?:^|\s)(?:ssh-[a-z0-9-]+|ecdsa-sha2-[a-z0-9-]+) (AAAA[A-Za-z0-9+/]+={0,2})(?:\s|$)")


def fingerprints(log: str) -> list[str]:
    """`SHA256:...` of each host key that a container's log names for its newest start, or none."""
    _, heading, below = log.rpartition(_HEADING)
    found = []
    for line in below.splitlines()[:_MOST_LINES] if heading else []:
        if listed := _FINGERPRINT.search(line):
            found.append(listed[1])
        elif key := _KEY.search(line):
            found += _fingerprint(key[1])
    return list(dict.fromkeys(found))


def started(box: Known, log: str) -> str:
    """Save a box that this program has just started, and trust the host keys that its log names from now on.

    Without them, the first key that is seen there. -> the line for the user that says which.
    """
    named = fingerprints(log)
    boxes.update(box)
    pins = boxes.folder_of(box.id) / PINS
    expected = expected_file(pins)
    if named:
        boxes.write(expected, "".join(f"{fingerprint}\n" for fingerprint in named))
    else:
        expected.unlink(missing_ok=True)
    # Last: until then the old pins refuse whatever is at the new address.
    for old in pins.parent.glob(f"{PINS}*"):
        if old != expected:
            old.unlink()
    if named:
        return f"{box.id} has new host keys since this start; its own log names them"
    return (
        f"{box.id} has new host keys since this start, and its log names none: the first one seen is trusted"
    )


def expected_file(pins: Path) -> Path:
    """Where the fingerprints wait until the first connection has pinned a key."""
    return pins.with_name(f"{pins.name}.expected")


def expected(pins: Path) -> list[str]:
    """The fingerprints of which the first key must have one; none: any key may be the first."""
    file = expected_file(pins)
    return file.read_text("ascii").split() if file.exists() else []


def _fingerprint(key: str) -> list[str]:
    try:
        content = base64.b64decode(key, validate=True)
    except binascii.Error:  # a line that was cut
        return []
    digest = base64.b64encode(hashlib.sha256(content).digest()).decode("ascii")
    return [f"SHA256:{digest.rstrip('=')}"]
