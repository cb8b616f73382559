"""A box that was just started: can one log in to it, does it have a GPU, and does a pod's timer run?

RunPod says that a pod runs before its SSH server does, may start one without a GPU, and an image may not run
the start script of the request.
"""

from ops.ssh import keys
from ops.ssh.box import Box
from worker.errors import BadInput, UserError


def why_not(box: Box) -> str:
    """Log in once: empty if the box is ready, else why not yet. Raises BadInput for a key that is refused."""
    try:
        gpus(box)
    except BadInput:
        raise
    except UserError as error:
        return str(error)
    finally:
        box.close()
    return ""


def why_unarmed(box: Box) -> str:
    """Empty if the timer of remote/pod_start.sh runs, which ends a pod; else why that is not known."""
    try:
        ran = box.shell('kill -0 "$(cat "$1/boot/timer")"', box.info.home, limit_s=30)
    except UserError as error:
        return str(error)
    finally:
        box.close()
    return f"no timer runs there: {ran.reason()}" if ran.code else ""


def gpus(box: Box) -> str:
    """Log in once. -> the names of the GPUs, one a line. Raises UserError if there is none."""
    ran = box.run("nvidia-smi --query-gpu=name --format=csv,noheader", limit_s=30)
    if ran.code or not ran.out.strip():
        raise UserError(f"{box.label} has no GPU that works ({ran.reason()}); run: inv pod.resume")
    return ran.out.strip()


def refuse_unusable_key(box: Box) -> None:
    """Raise BadInput for an SSH key that could not log in: it is not there, or locked. Uses no network."""
    keys.login(box.link)
