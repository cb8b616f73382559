"""A shell on the box in this terminal, by the ssh program, trusting only the key that we pinned."""

import shutil
import subprocess
import time
from collections.abc import Callable

from ops import ui
from ops.interrupts import remembered
from ops.ssh.box import Box
from ops.ssh.link import LinkLost, NoAnswer
from worker.errors import UserError

PAUSE_S = 2.0


def ssh_command(box: Box, program: str = "ssh") -> list[str]:
    """The ssh command line to the box, with our key and our pin."""
    # ssh reads a value with spaces (a Windows home) only in quotes.
    options = [f'UserKnownHostsFile="{box.pin_file.as_posix()}"', "StrictHostKeyChecking=yes"]
    command = [program, "-p", str(box.link.port)]
    for option in options:
        command += ["-o", option]
    for key_file in box.link.connect_kwargs.get("key_filename", []):
        # Only this key: sshd hangs up after six of an agent's.
        command += ["-o", "IdentitiesOnly=yes", "-i", str(key_file)]
    return [*command, f"{box.link.user}@{box.link.host}"]


def shell(box: Box) -> int:
    """Open a shell there; -> its exit code. Raises UserError where there is no ssh program."""
    program = shutil.which("ssh")
    if not program:
        raise UserError("there is no ssh program here; on Windows add the optional feature OpenSSH Client")
    _ = box.transport  # the key is pinned, or refused, before ssh is asked to trust it
    return subprocess.run(ssh_command(box, program)).returncode


def again(show: Callable[[], None], watch: bool) -> None:
    """Show once; with `watch`, every PAUSE_S until Ctrl-C."""
    if not watch:
        show()
        return
    try:
        with remembered() as check:
            while True:
                try:
                    show()
                except (LinkLost, NoAnswer) as error:
                    ui.say(f"{error}; trying again")
                check()
                time.sleep(PAUSE_S)
    except KeyboardInterrupt:
        return


def lines(new: Callable[[], list[str]]) -> None:
    """Print the lines that `new` gives, again and again, until Ctrl-C."""
    again(lambda: ui.pour("".join(f"{line}\n" for line in new()).encode()), watch=True)
