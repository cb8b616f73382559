"""A box that was just started: can one log in to it, and does it have a GPU?

RunPod says that a pod runs before its SSH server does, and may start one without a GPU.
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


def gpus(box: Box) -> str:
    """Log in once. -> the names of the GPUs, one a line. Raises UserError if there is none."""
    ran = box.run("nvidia-smi --query-gpu=name --format=csv,noheader", limit_s=30)
    if ran.code or not ran.out.strip():
        raise UserError(f"{box.label} has no GPU that works ({ran.reason()}); run: inv pod.resume")
    return ran.out.strip()


def refuse_unusable_key(box: Box) -> None:
    """Raise BadInput for an SSH key that could not log in: it is not there, or locked. Uses no network."""
    keys.login(box.link)
