"""What a pod's container runs before its image's own start: remote/pod_start.sh, with the watchdog inside.

It is part of the request for the pod, so that a pod ends itself whatever becomes of who asked for it. Reads
the scripts and is pure beyond that.
"""

import base64
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ops import release
from ops.repository import ROOT

# The image's own start, which makes host keys, takes PUBLIC_KEY and starts the SSH server.
IMAGE_START = "/start.sh"
# Begins the line by which pod_start.sh says in the container's log when the pod will end.
ARMED = "musicgen: deadline armed, ends at "
# What the watchdog needs until a release is deployed, and after it.
SCRIPTS = (
    *("env.sh", "state.sh", "deadline.sh", "watchdog.sh", "session.sh", "stop_hook.sh"),
    "stop_pod.py",
)


def start_script(remote: Path = ROOT / "remote") -> str:
    """The text for `sh -c`: pod_start.sh without its comments, and the scripts as one word."""
    files = {f"remote/{name}": release.as_shipped((remote / name).read_bytes()) for name in SCRIPTS}
    packed = base64.b64encode(release.bundle(files).archive).decode("ascii")
    text = release.as_shipped((remote / "pod_start.sh").read_bytes()).decode("utf-8")
    lines = [line for line in text.split("\n") if line.strip() and not line.lstrip().startswith("#")]
    return "\n".join([f"SCRIPTS={packed}", *lines])


def exec_form(script: str) -> Mapping[str, Any]:
    """The request's fields that run it, whatever entrypoint the image has."""
    return {"entrypoint": ["/bin/sh", "-c", script], "cmd": [IMAGE_START]}


def shell_form(script: str) -> Mapping[str, Any]:
    """The same where the API does not know those fields: RunPod splits `args` as a shell does."""
    return {"args": shlex.join(["/bin/sh", "-c", script, IMAGE_START])}
