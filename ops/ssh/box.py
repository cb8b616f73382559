"""A connection to one box whose host key is pinned, and which notices when it is dead.

Connects at the first command and keeps that one connection. Everything that can go wrong on the way is
a UserError of one line. Commands are whole strings for the box's shell; secrets go over stdin, never on
a command line. Does not decide which box is meant, and knows nothing of the worker.
"""

import functools
import json
import logging
import math
import shlex
import socket
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fabric
import paramiko
from paramiko.ssh_exception import (
    AuthenticationException,
    BadHostKeyException,
    NoValidConnectionsError,
    PasswordRequiredException,
    SSHException,
)

from ops.repository import ROOT
from ops.ssh.link import Ear, Pin, Tell, watch
from worker.errors import BadInput, UserError

CONNECT_S = 10
# Asking where the box is now may take seconds.
_ASK_AGAIN_S = 30.0
# How often a wait looks up: on Windows a Ctrl-C is seen only then.
_LOOK_S = 0.2
_BLOCK = 32768

_PTY_ONLY = "support PTY"
# Where the folders are root's, the subsystem of the login user cannot read them.
_SFTP_AS_ROOT = (
    "for s in /usr/lib/openssh /usr/libexec/openssh /usr/lib/ssh /usr/libexec; do "
    "[ ! -x $s/sftp-server ] || exec $s/sftp-server; done; exit 127"
)
_GONE = (SSHException, EOFError, OSError)

OnOutput = Callable[[bytes], None]

logging.getLogger("paramiko").setLevel(logging.CRITICAL)  # its tracebacks; we raise what matters


class NoAnswer(UserError):
    """Nothing answers at the box's address."""


class OtherKey(UserError):
    """Another machine than the box answers at its address, or its host key was changed."""


class LinkLost(UserError):
    """The connection died in the middle of something; the box may go on with it."""


@dataclass(frozen=True)
class Ran:
    """What a command on the box gave."""

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
        raise UserError(f"the box gave no answer ({self.reason()}); run: fab deploy, then again")

    def reason(self) -> str:
        """Its own last words, without `error:`."""
        lines = (self.err.strip() or self.out.strip()).splitlines()
        found = [line for line in lines if line.startswith("error: ")] or lines[-1:]
        return found[-1].removeprefix("error: ") if found else f"exit code {self.code}"


@dataclass(frozen=True)
class Place:
    """What kind of machine it is and where our files lie on it, as remote/env.sh says."""

    platform: str
    root: str
    home: str
    user: str
    python: str | None


class Box:
    """One box. `label` is what messages call it; `moved` may know its address if it is not where it was."""

    def __init__(
        self,
        link: fabric.Connection,
        pin_file: Path,
        tell: Tell,
        moved: Callable[[], str | None] = lambda: None,
    ) -> None:
        self.link = link
        self.pin_file = pin_file
        self.tell = tell
        self._moved, self._asked_s = moved, -math.inf
        self._transport: paramiko.Transport | None = None

    @property
    def label(self) -> str:
        return f"{self.link.user}@{self.link.host}:{self.link.port}"

    # --- the connection

    @property
    def transport(self) -> paramiko.Transport:
        """The live connection, made if need be. Raises NoAnswer, BadInput or UserError."""
        if self._transport is None or not self._transport.is_active():
            try:
                self._transport = self._connect()
            except (NoAnswer, OtherKey):
                if time.monotonic() - self._asked_s < _ASK_AGAIN_S:
                    raise
                host = self._moved()
                self._asked_s = time.monotonic()
                if not host or host == self.link.host:
                    raise
                self.tell(f"the box is no longer at {self.link.host} but at {host}")
                self.link.host = host
                self._transport = self._connect()
        return self._transport

    def close(self) -> None:
        """End the connection; the next command makes a new one."""
        if self._transport is not None:
            self._transport.close()
            self._transport = None

    def _connect(self) -> paramiko.Transport:
        link, client = self.link, paramiko.SSHClient()
        for key_file in link.connect_kwargs.get("key_filename", []):
            if not Path(key_file).expanduser().exists():
                raise BadInput(f"there is no SSH key {key_file}; correct RUNPOD_SSH_KEY or -i")
        if self.pin_file.exists():
            client.load_host_keys(str(self.pin_file))
        client.set_missing_host_key_policy(Pin(self.pin_file, self.tell))
        limits = {"banner_timeout": 15, "auth_timeout": 20, "channel_timeout": 15, "timeout": 15}
        try:
            ear = Ear(link.open_gateway() if link.gateway else _line(link.host, link.port))
            client.connect(
                link.host,
                link.port,
                link.user,
                sock=ear,
                **limits | dict(link.connect_kwargs),
            )
        except _GONE as error:
            client.close()
            raise self._explained(error) from None
        transport = client.get_transport()
        if transport is None:
            raise NoAnswer(f"{self.label} ended the connection; run it again")
        watch(transport, ear)
        return transport

    def _explained(self, error: Exception) -> UserError:
        where = self.label
        match error:
            case BadHostKeyException():
                return OtherKey(
                    f"the host key of {where} has CHANGED (now {error.key.fingerprint}, pinned "
                    f"{error.expected_key.fingerprint}), so it is not trusted; if you replaced this "
                    f"machine, delete {self.pin_file}"
                )
            case PasswordRequiredException():
                return BadInput("the SSH key has a passphrase; load it first: ssh-add KEYFILE")
            case AuthenticationException() if "EOF" in str(error) or "timeout" in str(error):
                # Nobody refused anything: the link died meanwhile.
                return NoAnswer(f"{where} ended the connection; run it again")
            case AuthenticationException():
                return BadInput(
                    f"{where} refused our SSH key; put its public half on the box, "
                    "or name the right key: RUNPOD_SSH_KEY"
                )
            case SSHException() if "private key" in str(error):
                return BadInput(
                    f"the SSH key cannot be read ({error}); "
                    "name a private key in OpenSSH's form: RUNPOD_SSH_KEY"
                )
            case NoValidConnectionsError() | ConnectionRefusedError():
                return NoAnswer(f"nothing listens at {where}; is the box running, and the port right?")
            case socket.gaierror():
                return NoAnswer(f"there is no host {self.link.host}; correct -H or RUNPOD_HOST")
            case TimeoutError():
                return NoAnswer(f"no answer from {where}; is the box running, and the address right?")
            case SSHException() if "banner" in str(error) or not str(error):
                return NoAnswer(f"{where} does not answer as an SSH server; is the port right?")
            case _:
                reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
                return NoAnswer(f"cannot connect to {where} ({reason}); run it again")

    # --- commands

    def run(
        self,
        command: str,
        *,
        stdin: bytes = b"",
        limit_s: float = 60,
        on_output: OnOutput | None = None,
    ) -> Ran:
        """Run a command line in the box's shell; stdout and stderr apart, or both to `on_output`.

        Raises LinkLost when the connection dies, UserError after `limit_s`. Ctrl-C leaves at once.
        """
        transport = self.transport
        try:
            channel = transport.open_session(timeout=15)
        except _GONE:
            raise self._lost() from None
        out, err = bytearray(), bytearray()
        try:
            channel.settimeout(_LOOK_S)
            channel.set_combine_stderr(on_output is not None)
            channel.exec_command(command)
            _converse(channel, stdin, out, err, on_output, time.monotonic() + limit_s)
        except _Overdue:
            raise UserError(f"the box did not finish within {limit_s:.0f} s; look with: fab system") from None
        except _GONE:
            raise self._lost() from None
        finally:
            channel.close()
        if channel.exit_status < 0:  # it never came
            raise self._lost()
        ran = Ran(channel.exit_status, out.decode("utf-8", "replace"), err.decode("utf-8", "replace"))
        if _PTY_ONLY in ran.out + ran.err:
            raise BadInput(
                f"{self.label} is RunPod's proxied SSH, which takes no commands; "
                'use the pod\'s "SSH over exposed TCP": RUNPOD_HOST=root@IP:PORT'
            )
        return ran

    def sftp(self) -> paramiko.SFTPClient:
        """A new SFTP session on the connection; whoever opens it closes it."""
        transport = self.transport
        try:
            channel = transport.open_session(timeout=15)
            channel.settimeout(15)
            if self._sudo:
                channel.exec_command(f"sudo -n sh -c '{_SFTP_AS_ROOT}'")
            else:
                channel.invoke_subsystem("sftp")
            return paramiko.SFTPClient(channel)
        except _GONE as error:
            if not isinstance(error, TimeoutError) and "Timeout" not in str(error):
                transport.join(1)  # a connection that died takes a moment to know it
                if transport.is_active():
                    raise UserError(
                        f"{self.label} has no SFTP; install openssh-sftp-server there (fab shell), "
                        "then run it again"
                    ) from None
            raise self._lost() from None

    def _lost(self) -> LinkLost:
        return LinkLost(f"the connection to {self.label} was lost; check the network, then run it again")

    # --- our place on the box

    @functools.cached_property
    def place(self) -> Place:
        """Platform and folders, asked once."""
        script = (ROOT / "remote" / "env.sh").read_bytes().replace(b"\r\n", b"\n")
        ran = self.run("bash -s", stdin=script)
        if ran.code:
            raise UserError(f"the box does not say where our files go ({ran.reason()}); it needs bash")
        found = ran.json()
        return Place(**{name: found[name] for name in Place.__dataclass_fields__})

    @property
    def _sudo(self) -> list[str]:
        return ["sudo", "-n"] if self.place.platform == "ec2" and self.place.user != "root" else []

    def shell(self, script: str, *arguments: str, **options: Any) -> Ran:
        """Run a bash script of ours, as root where the platform's folders are root's."""
        return self.run(shlex.join([*self._sudo, "bash", "-c", script, "bash", *arguments]), **options)

    def remote(self, script: str, *arguments: str, interpreter: str = "bash", **options: Any) -> Ran:
        """Run a script of the deployed remote/ folder. Raises BadInput if nothing is deployed."""
        path = f"{self.place.root}/current/remote/{script}"
        ran = self.shell('[ -f "$2" ] || exit 66; exec "$@"', interpreter, path, *arguments, **options)
        if ran.code == 66:
            raise BadInput(f"there is no remote/{script} on {self.label}; run: fab deploy")
        return ran


def _line(host: str, port: int) -> socket.socket:
    """A TCP connection that sends each small packet at once: an SSH request is two of them."""
    line = socket.create_connection((host, port), CONNECT_S)
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return line


class _Overdue(Exception):
    """The command took longer than it may."""


def _converse(
    channel: paramiko.Channel,
    stdin: bytes,
    out: bytearray,
    err: bytearray,
    on_output: OnOutput | None,
    until_s: float,
) -> None:
    """Feed a command its input and take its output until it has ended."""
    sent, ended = 0, False
    if not stdin:
        channel.shutdown_write()
    while not ended:
        if time.monotonic() > until_s:
            raise _Overdue
        if sent < len(stdin):
            try:
                sent += channel.send(stdin[sent : sent + _BLOCK])
            except TimeoutError:
                pass
            except OSError:
                sent = len(stdin)  # it ended without reading all; its output says why
            if sent >= len(stdin) and not channel.closed:
                channel.shutdown_write()
        while channel.recv_stderr_ready():
            err += channel.recv_stderr(_BLOCK)
        if sent < len(stdin) and not channel.recv_ready():
            continue
        try:
            block = channel.recv(_BLOCK)
        except TimeoutError:
            continue
        ended = not block
        out += block
        if on_output and block:
            on_output(block)
    while not channel.status_event.wait(_LOOK_S) or channel.recv_stderr_ready():
        if time.monotonic() > until_s:
            raise _Overdue
        while channel.recv_stderr_ready():
            err += channel.recv_stderr(_BLOCK)
