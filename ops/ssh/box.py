"""One box, and the commands that run on it over one connection.

Connects at the first command and keeps that connection. Whatever goes wrong is a UserError of one line.
Commands are whole strings for the box's shell; secrets go over stdin, never on a command line. Does not
decide which box is meant, and knows nothing about the worker.
"""

import functools
import json
import math
import re
import secrets
import shlex
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fabric
import paramiko
from paramiko.sftp import SFTPError

from ops.repository import ROOT
from ops.ssh import link as links
from ops.ssh.link import LOST, LinkLost, NoAnswer, OtherKey, Report
from worker.errors import BadInput, UserError

# Looking up the box's new address may take seconds, so not for every command.
_LOOK_UP_EVERY_S = 30.0
# How often a wait is interrupted: on Windows a Ctrl-C is only noticed then.
_POLL_S = 0.2
_BLOCK = 32768
# Our command begins within this time, unless the login shell hangs.
_BEGIN_S = 30.0

_PTY_ONLY = "support PTY"
# Where root owns the folders, the login user's SFTP subsystem cannot read them.
_SFTP_SERVER = (
    "for s in /usr/lib/openssh /usr/libexec/openssh /usr/lib/ssh /usr/libexec; do "
    "[ ! -x $s/sftp-server ] || exec $s/sftp-server; done; exit 127"
)

# A line before our command's own output: what stands above it was printed by the box's ~/.bashrc, which
# cannot know the number.
_NUMBER = secrets.token_hex(8)
_MARK = f"\n=== begin {_NUMBER} ===\n".encode()
_PRINT_MARK = f"printf '\\n=== begin {_NUMBER} ===\\n'"
# A bash that is the first under sshd reads ~/.bashrc, also for a script.
_NO_BASHRC = "SHLVL=2; export SHLVL; unset BASH_ENV ENV"
_ONLY_IN_A_TERMINAL = "put this line above that: case $- in *i*) ;; *) return ;; esac"

NOT_DEPLOYED = 66
_IN_BOX_ENVIRONMENT = (
    f'[ -f "$2" ] || exit {NOT_DEPLOYED}; '
    'if [ -r "${2%/*}/env.sh" ]; then . "${2%/*}/env.sh"; make_places 2> /dev/null; fi; exec "$@"'
)

OnOutput = Callable[[bytes], None]


@dataclass(frozen=True)
class CommandResult:
    """What a command on the box returned."""

    code: int
    out: str
    err: str

    def json(self) -> Any:
        """The last line of its output that is JSON, as remote/ scripts end with. Raises UserError."""
        for line in reversed(self.out.splitlines()):
            if line.startswith(("{", "[")):
                try:
                    return json.loads(line)
                except ValueError:
                    continue
        raise UserError(f"the box gave no answer ({self.reason()}); run: fab deploy, then run it again")

    def reason(self) -> str:
        """Its last error line, without `error:`."""
        lines = (self.err.strip() or self.out.strip()).splitlines()
        found = [line for line in lines if line.startswith("error: ")] or lines[-1:]
        return found[-1].removeprefix("error: ") if found else f"exit code {self.code}"


@dataclass(frozen=True)
class BoxInfo:
    """The kind of machine, and where this project's files are on it, as remote/env.sh prints it."""

    platform: str
    root: str
    home: str
    user: str
    python: str | None


class Box:
    """One box. `label` is what messages call it.

    `look_up`: its host and port as they are now, for when it does not answer or another machine does; None
    if they are not known. Its own NoAnswer, such as for a machine that is stopped, wins.
    """

    def __init__(
        self,
        link: fabric.Connection,
        pin_file: Path,
        report: Report,
        look_up: Callable[[], tuple[str, int] | None] = lambda: None,
    ) -> None:
        self.link = link
        self.pin_file = pin_file
        self.report = report
        self._look_up, self._looked_up_s = look_up, -math.inf
        self._transport: paramiko.Transport | None = None
        self._connecting = threading.Lock()
        self._sftp_is_garbled = False

    @property
    def label(self) -> str:
        return links.label(self.link)

    # --- the connection

    @property
    def transport(self) -> paramiko.Transport:
        """The live connection, made if necessary, once for all threads.

        Raises NoAnswer, BadInput or UserError.
        """
        with self._connecting:
            return self._connected()

    def _connected(self) -> paramiko.Transport:
        if self._transport is None or not self._transport.is_active():
            try:
                self._transport = links.connect(self.link, self.pin_file, self.report)
            except (NoAnswer, OtherKey):
                if time.monotonic() - self._looked_up_s < _LOOK_UP_EVERY_S:
                    raise
                self._looked_up_s = time.monotonic()
                now = self._look_up()
                before = (self.link.host, self.link.port)
                if now is None or now == before:
                    raise
                self.report("the box has moved from {}:{} to {}:{}".format(*before, *now))
                self.link.host, self.link.port = now
                self._transport = links.connect(self.link, self.pin_file, self.report)
        return self._transport

    def close(self) -> None:
        """End the connection; the next command makes a new one."""
        if self._transport is not None:
            self._transport.close()
            self._transport = None

    # --- commands

    def run(
        self,
        command: str,
        *,
        stdin: bytes = b"",
        limit_s: float = 60,
        on_output: OnOutput | None = None,
    ) -> CommandResult:
        """Run a command line in the box's shell; stdout and stderr apart, or both to `on_output`.

        Raises LinkLost when the connection dies, UserError after `limit_s`. Ctrl-C leaves at once.
        """
        transport = self.transport
        try:
            channel = transport.open_session(timeout=15)
        except LOST:
            raise self.lost() from None
        output, began_s = _Output(on_output), time.monotonic()
        mark = f"exec 2>&1; {_PRINT_MARK}" if on_output else f"{_PRINT_MARK}; {_PRINT_MARK} >&2"
        begin = f"{_NO_BASHRC}; {mark}"
        try:
            channel.settimeout(_POLL_S)
            channel.exec_command(shlex.join(["sh", "-c", f"{begin}\n{command}"]))
            _exchange(channel, stdin, output, began_s + limit_s, began_s + _BEGIN_S)
        except _NeverBegan:
            raise UserError(
                f"the login shell of {self.label} did not run our command within {_BEGIN_S:.0f} s; "
                "something in its ~/.bashrc waits: open fab shell, press Ctrl-C, and correct it there"
            ) from None
        except _OverLimit:
            raise UserError(
                f"the command did not finish within {limit_s:.0f} s; {self.label} is overloaded, "
                "or a disk or driver there hangs: look with fab shell"
            ) from None
        except LOST:
            raise self.lost() from None
        finally:
            channel.close()
        if channel.exit_status < 0:  # none came
            raise self.lost()
        if not output.out.began:
            raise self._never_began(output, channel.exit_status)
        return CommandResult(channel.exit_status, output.out.text, output.err.text)

    def sftp(self) -> paramiko.SFTPClient:
        """A new SFTP session on the connection; whoever opens it closes it."""
        if not (self.sudo or self._sftp_is_garbled):
            try:
                return self._sftp(lambda channel: channel.invoke_subsystem("sftp"))
            except SFTPError:  # ~/.bashrc prints, and its text comes before the first packet
                self._sftp_is_garbled = True
        server = shlex.join(
            ["sh", "-c", f"{_PRINT_MARK}\nexec {shlex.join([*self.sudo, 'sh', '-c', _SFTP_SERVER])}"]
        )

        def start(channel: paramiko.Channel) -> None:
            channel.exec_command(server)
            printed = b""
            while not printed.endswith(_MARK):
                if not (byte := channel.recv(1)):
                    raise EOFError
                printed += byte

        try:
            return self._sftp(start)
        except SFTPError as error:
            raise self.sftp_problem(error) from None
        except _NoSftp:
            if not self._sftp_is_garbled:
                raise
            raise UserError(
                f"~/.bashrc on {self.label} prints something, which breaks SFTP; {_ONLY_IN_A_TERMINAL}"
            ) from None

    def _sftp(self, start: Callable[[paramiko.Channel], None]) -> paramiko.SFTPClient:
        transport = self.transport
        try:
            channel = transport.open_session(timeout=15)
            channel.settimeout(15)
            start(channel)
            return paramiko.SFTPClient(channel)
        except LOST as error:
            if not isinstance(error, TimeoutError) and "Timeout" not in str(error):
                transport.join(1)  # a lost connection is inactive only after a moment
                if transport.is_active():
                    raise _NoSftp(
                        f"{self.label} has no SFTP; install openssh-sftp-server there (fab shell), "
                        "then run it again"
                    ) from None
            raise self.lost() from None

    def write_problem(self, ran: CommandResult, what: str) -> UserError:
        """Why a script could not write `what` on the box, and what to do about it."""
        if "No space left" in ran.err or "Disk quota" in ran.err:
            return UserError(f"the disk of {self.label} is full; free space (fab shell), then run it again")
        if missing := re.search(r"(\S+): command not found", ran.err):
            return UserError(f"there is no {missing[1]} on {self.label}; install it there (fab shell)")
        denied = [line for line in ran.err.splitlines() if re.search("ermission denied|ead-only file", line)]
        if denied:
            return UserError(
                f"{self.info.user} may not write {what} on {self.label} ({denied[-1]}); "
                "make the folder writable (fab shell), or log in as another user"
            )
        return UserError(f"{self.label} could not write {what} ({ran.reason()}); run it again")

    def _never_began(self, output: "_Output", code: int) -> UserError:
        printed = output.out.noise.decode("utf-8", "replace") + output.err.noise.decode("utf-8", "replace")
        if _PTY_ONLY in printed:
            return BadInput(
                f"{self.label} is RunPod's proxied SSH, which takes no commands; "
                'use the pod\'s "SSH over exposed TCP": RUNPOD_HOST=root@IP:PORT'
            )
        last = (printed.strip().splitlines() or [f"exit code {code}"])[-1]
        return UserError(
            f"the login shell of {self.label} ended before our command ({last[:200]}); "
            f"if its ~/.bashrc runs exit or exec, {_ONLY_IN_A_TERMINAL}"
        )

    def sftp_problem(self, error: Exception) -> UserError:
        """What a failure within an SFTP session means; LinkLost where the connection was lost."""
        if isinstance(error, OSError) and not isinstance(error, (TimeoutError, ConnectionError)):
            reason = error.strerror or str(error)
            if "closed" not in reason:
                return UserError(f"{self.label} cannot read its file ({reason}); look there: fab shell")
        if isinstance(error, SFTPError):
            return UserError(f"the SFTP server of {self.label} gave no valid answer ({error}); run it again")
        return self.lost()

    def lost(self) -> LinkLost:
        """The error for a connection that ended before its command."""
        return LinkLost(f"the connection to {self.label} was lost; check the network, then run it again")

    # --- this project on the box

    @functools.cached_property
    def info(self) -> BoxInfo:
        """Platform and folders, read once."""
        script = (ROOT / "remote" / "env.sh").read_bytes().replace(b"\r\n", b"\n")
        ran = self.run("bash -s", stdin=script)
        if ran.code:
            raise UserError(f"the box did not report its folders ({ran.reason()}); it needs bash")
        found = ran.json()
        return BoxInfo(**{name: found[name] for name in BoxInfo.__dataclass_fields__})

    @property
    def sudo(self) -> list[str]:
        """What goes before a command that writes where root owns the platform's folders."""
        return ["sudo", "-n"] if self.info.platform == "ec2" and self.info.user != "root" else []

    def shell(self, script: str, *arguments: str, **options: Any) -> CommandResult:
        """Run a bash script, as root where root owns the platform's folders."""
        return self.run(self._shell_command(script, *arguments), **options)

    def remote(
        self, script: str, *arguments: str, interpreter: str = "bash", **options: Any
    ) -> CommandResult:
        """Run a script of the deployed remote/ folder, also one in Python, with the variables of env.sh.

        Raises BadInput if nothing is deployed.
        """
        ran = self.run(self._remote_command(interpreter, script, *arguments), **options)
        if ran.code == NOT_DEPLOYED:
            raise self.not_deployed(script)
        return ran

    def start_remote(self, script: str, *arguments: str) -> paramiko.Channel:
        """Start a script of the deployed remote/ folder, which goes on beside other commands.

        -> its channel: stdin, and stdout and stderr together, after whatever the login shell prints. Its exit
        code is NOT_DEPLOYED if there is no such script. Raises LinkLost.
        """
        transport = self.transport
        try:
            channel = transport.open_session(timeout=15)
            channel.set_combine_stderr(True)
            command = f"{_NO_BASHRC}; {self._remote_command('bash', script, *arguments)}"
            channel.exec_command(shlex.join(["sh", "-c", command]))
        except LOST:
            raise self.lost() from None
        return channel

    def not_deployed(self, script: str) -> BadInput:
        """The error for a release that lacks this script, or is not there."""
        return BadInput(f"there is no remote/{script} on {self.label}; run: fab deploy")

    def _remote_command(self, interpreter: str, script: str, *arguments: str) -> str:
        path = f"{self.info.root}/current/remote/{script}"
        return self._shell_command(_IN_BOX_ENVIRONMENT, interpreter, path, *arguments)

    def _shell_command(self, script: str, *arguments: str) -> str:
        return shlex.join([*self.sudo, "bash", "-c", script, "bash", *arguments])


class _OverLimit(Exception):
    """The command took longer than its limit."""


class _NeverBegan(Exception):
    """The login shell has not started the command within _BEGIN_S."""


class _NoSftp(UserError):
    """The box has no SFTP server."""


class _AfterMark:
    """What a command printed to one stream; `noise`: what stood before the mark, from the login shell."""

    def __init__(self) -> None:
        self.began = False
        self.noise = bytearray()
        self.content = bytearray()

    def add(self, block: bytes) -> bytes:
        """-> what of this block is the command's own."""
        if not self.began:
            self.noise += block
            before, mark, after = self.noise.partition(_MARK)
            self.began, self.noise, block = bool(mark), before, bytes(after)
        self.content += block
        return block

    @property
    def text(self) -> str:
        return self.content.decode("utf-8", "replace")


class _Output:
    """What a command has printed so far."""

    def __init__(self, on_output: OnOutput | None) -> None:
        self.out, self.err = _AfterMark(), _AfterMark()
        self._on_output = on_output

    def add(self, block: bytes) -> None:
        own = self.out.add(block)
        if self._on_output and own:
            self._on_output(own)


def _exchange(
    channel: paramiko.Channel, stdin: bytes, output: _Output, until_s: float, begin_until_s: float
) -> None:
    """Send a command its input and read its output until it has ended."""
    sent, ended = 0, False
    if not stdin:
        channel.shutdown_write()
    while not ended:
        now_s = time.monotonic()
        if now_s > begin_until_s and not output.out.began:
            raise _NeverBegan
        if now_s > until_s:
            raise _OverLimit
        if sent < len(stdin) and output.out.began:  # before, ~/.bashrc could read it
            try:
                sent += channel.send(stdin[sent : sent + _BLOCK])
            except TimeoutError:
                pass
            except OSError:
                sent = len(stdin)  # it ended without reading all; its output has the reason
            if sent >= len(stdin) and not channel.closed:
                channel.shutdown_write()
        while channel.recv_stderr_ready():
            output.err.add(channel.recv_stderr(_BLOCK))
        if sent < len(stdin) and output.out.began and not channel.recv_ready():
            continue
        try:
            block = channel.recv(_BLOCK)
        except TimeoutError:
            continue
        ended = not block
        output.add(block)
    while not channel.status_event.wait(_POLL_S) or channel.recv_stderr_ready():
        if time.monotonic() > until_s:
            raise _OverLimit
        while channel.recv_stderr_ready():
            output.err.add(channel.recv_stderr(_BLOCK))
