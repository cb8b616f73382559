"""A box that was just started: wait until a login works, and see its GPU.

RunPod says that a pod runs before its SSH server does, and may start one without a GPU.
"""

import time

from ops.ssh.box import Box
from ops.ssh.link import LinkLost, NoAnswer
from worker.amounts import duration
from worker.errors import UserError

LIMIT_S = 300.0
POLL_S = 3.0


def wait(box: Box, limit_s: float = LIMIT_S) -> str:
    """Log in again and again until a command runs. -> the names of the GPUs, one a line.

    Raises UserError after the limit, or if there is none; at once for a key that is refused.
    """
    end_s = time.monotonic() + limit_s
    while True:
        try:
            ran = box.run("nvidia-smi --query-gpu=name --format=csv,noheader", limit_s=30)
            break
        except (NoAnswer, LinkLost) as error:
            if time.monotonic() + POLL_S > end_s:
                raise UserError(f"no login within {duration(limit_s)}: {error}") from None
        time.sleep(POLL_S)
    if ran.code or not ran.out.strip():
        raise UserError(f"{box.label} has no GPU that works ({ran.reason()}); run: inv pod.resume")
    return ran.out.strip()
