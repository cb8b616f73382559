"""This terminal and the box: a shell there, and views that refresh until Ctrl-C.

The shell is the ssh program, which trusts only the pinned key.
"""

import shlex
import shutil
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ops import ui
from ops.interrupts import remembered
from ops.ssh import keys
from ops.ssh.box import Box
from ops.ssh.link import LinkLost, NoAnswer
from worker.errors import UserError

REFRESH_S = 2.0


def ssh_command(box: Box, program: str = "ssh") -> list[str]:
    """The ssh command line to the box, with its key and its pinned host key."""
    # ssh needs quotes around a value with spaces, such as a Windows home.
    options = [f'UserKnownHostsFile="{box.pin_file.as_posix()}"', "StrictHostKeyChecking=yes"]
    if keys.named(box.link) or keys.restricted(box.link):
        # Only these keys: an agent may offer more keys than sshd allows tries.
        options.append("IdentitiesOnly=yes")
    options.append(_way(box.link.gateway))
    command = [program, "-p", str(box.link.port)]
    for option in options:
        command += ["-o", option]
    for key_file in box.link.connect_kwargs.get("key_filename", []):
        command += ["-i", str(Path(key_file).expanduser())]
    return [*command, f"{box.link.user}@{box.link.host}"]


def _way(gateway: Any) -> str:
    """The option of ssh for the jump hosts or the command that the connection goes through.

    Always one: ssh is given an address, for which ~/.ssh/config may say something else than for the name.
    """
    if isinstance(gateway, str):
        return f"ProxyCommand={gateway}"
    hops: list[str] = []
    while gateway:
        host = gateway.original_host
        hops.insert(0, f"{gateway.user}@{f'[{host}]' if ':' in host else host}:{gateway.port}")
        gateway = gateway.gateway
    return f"ProxyJump={','.join(hops) or 'none'}"


def shell(box: Box) -> int:
    """Open a shell on the box; -> its exit code. Raises UserError where there is no ssh program."""
    program = shutil.which("ssh")
    if not program:
        raise UserError(
            "there is no ssh program on this machine; on Windows, add the optional feature OpenSSH Client"
        )
    _ = box.transport  # pins the host key, or refuses it, before ssh starts
    return subprocess.run(shell_command(box, program)).returncode


def shell_command(box: Box, program: str = "ssh") -> list[str]:
    """The ssh command line that opens a shell with the variables of remote/env.sh.

    A plain login shell on a box without a release, and where the login shell runs no commands: a person
    corrects that there.
    """
    command = ssh_command(box, program)
    try:
        script = f"{box.info.root}/current/remote/shell.sh"
        there = box.run(shlex.join(["test", "-f", script])).code == 0
    except UserError as error:
        box.report(f"warning: {error}; this is a plain shell, without the variables of remote/env.sh")
        return command
    return [*command, "-t", shlex.join(["exec", "bash", script])] if there else command


def refresh(show: Callable[[], None], watch: bool) -> None:
    """Show once; with `watch`, every REFRESH_S until Ctrl-C, also across a lost connection."""
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
                time.sleep(REFRESH_S)
    except KeyboardInterrupt:
        return


def follow(new_lines: Callable[[], list[str]]) -> None:
    """Print new lines until Ctrl-C."""
    refresh(lambda: ui.pour("".join(f"{line}\n" for line in new_lines()).encode()), watch=True)
