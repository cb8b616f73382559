"""A connection to an SSH server whose host key is pinned, and which is closed when it has died silently.

`connect` turns everything that can go wrong on the way into one line. Runs no commands, retries nothing,
and does not decide which server is meant.
"""

import logging
import socket
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import fabric
import paramiko
from paramiko.sftp import SFTPError
from paramiko.ssh_exception import (
    AuthenticationException,
    BadHostKeyException,
    NoValidConnectionsError,
    SSHException,
)

from ops import host_keys
from ops.ssh import keys
from worker import amounts
from worker.errors import BadInput, UserError

CONNECT_S = 10
# A connection on which nothing came for DEAD_AFTER_S, in spite of a keepalive every KEEPALIVE_S, is dead.
KEEPALIVE_S = 4.0
DEAD_AFTER_S = 14.0
_CHECK_S = 0.5

# What paramiko raises when a connection cannot be made, or is lost.
LOST = (SSHException, EOFError, OSError)
# The same within an SFTP session.
BROKEN = (*LOST, SFTPError)

Report = Callable[[str], None]

logging.getLogger("paramiko").setLevel(logging.CRITICAL)  # its tracebacks; we raise what matters


class NoAnswer(UserError):
    """Nothing answers at the box's address."""


class OtherKey(UserError):
    """The server at the box's address is not the box, or its host key was changed."""


class LinkLost(UserError):
    """The connection was lost during a command; the command may still be running on the box."""


def connect(link: fabric.Connection, pin_file: Path, report: Report) -> paramiko.Transport:
    """Connect to where `link` points, with its keys; the first host key goes to `pin_file` and to `report`.

    Raises NoAnswer, OtherKey, or BadInput for what the user has to correct.
    """
    login = keys.login(link)
    client = paramiko.SSHClient()
    if pin_file.exists():
        client.load_host_keys(str(pin_file))
    client.set_missing_host_key_policy(PinFirstKey(pin_file, report))
    limits = {"banner_timeout": 15, "auth_timeout": 20, "channel_timeout": 15, "timeout": 15}
    try:
        line = _line(link, pin_file, report)
        client.connect(link.host, link.port, sock=line, auth_strategy=login, **limits)
    except keys.Refused as error:
        client.close()
        raise _refused(error, label(link), login) from None
    except LOST as error:
        client.close()
        raise _explained(error, link, pin_file) from None
    transport = client.get_transport()
    if transport is None:
        raise NoAnswer(f"{label(link)} closed the connection; run it again")
    close_when_dead(transport, line)
    return transport


def label(link: fabric.Connection) -> str:
    """What messages call the box."""
    host = f"[{link.host}]" if ":" in link.host else link.host
    return f"{link.user}@{host}:{link.port}"


class NotInItsLog(SSHException):  # type: ignore[misc]
    """The server's key is none of those that the box's own log names."""

    def __init__(self, fingerprint: str, named: list[str]) -> None:
        super().__init__("not in its log")
        self.fingerprint, self.named = fingerprint, named


class PinFirstKey(paramiko.MissingHostKeyPolicy):  # type: ignore[misc]
    """Record the first key of a box; refuse any other, whatever address the box has by then.

    Where the box's own log names its keys, the first one must be one of them.
    """

    def __init__(self, file: Path, report: Report) -> None:
        self.file = file
        self.report = report

    def missing_host_key(self, client: Any, hostname: str, key: Any) -> None:
        known = paramiko.HostKeys(str(self.file)) if self.file.exists() else paramiko.HostKeys()
        pinned = [known[host][kind] for host in known for kind in known[host]]
        if pinned and key not in pinned:
            raise BadHostKeyException(hostname, key, pinned[0])
        named = host_keys.expected(self.file)
        if named and key.fingerprint not in named:
            raise NotInItsLog(key.fingerprint, named)
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="ascii", newline="\n") as lines:
            lines.write(f"{hostname} {key.get_name()} {key.get_base64()}\n")
        if named:
            host_keys.expected_file(self.file).unlink()
            self.report(f"pinned the host key of {hostname}, which its own log names: {key.fingerprint}")
        elif not pinned:
            self.report(f"first contact with {hostname}: pinned its host key {key.fingerprint}")


class TimedSocket:
    """A socket that knows when it last received something. `over`: the connection to close with it."""

    def __init__(self, line: Any, over: paramiko.Transport | None = None) -> None:
        self._line, self._over = line, over
        self.received_at_s = time.monotonic()

    def recv(self, n_bytes: int) -> bytes:
        block: bytes = self._line.recv(n_bytes)
        self.received_at_s = time.monotonic()
        return block

    def close(self) -> None:
        (self._over or self._line).close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._line, name)


def close_when_dead(transport: paramiko.Transport, line: TimedSocket) -> None:
    """Close the connection when it has died silently, so that whoever waits on it gets an error."""

    def keep_alive() -> None:
        while transport.is_active():
            try:
                transport.global_request("keepalive@openssh.com", wait=True)
            except LOST:
                return
            time.sleep(KEEPALIVE_S)

    def check() -> None:
        while transport.is_active():
            if time.monotonic() - line.received_at_s > DEAD_AFTER_S:
                transport.close()
            time.sleep(_CHECK_S)

    for part in (keep_alive, check):
        threading.Thread(target=part, daemon=True).start()


def _line(link: fabric.Connection, pin_file: Path, report: Report) -> TimedSocket:
    """TCP, a ProxyCommand, or a jump host, whose first host key is pinned beside the box's."""
    jump = link.gateway
    if not jump:
        return TimedSocket(_tcp(link.host, link.port))
    if isinstance(jump, str):
        return TimedSocket(link.open_gateway())
    pins = pin_file.with_name(f"{pin_file.name}_{jump.host}_{jump.port}".replace(":", "_"))
    over = connect(jump, pins, report)
    try:
        line = over.open_channel("direct-tcpip", (link.host, link.port), ("", 0), timeout=CONNECT_S)
    except LOST:
        over.close()
        raise NoAnswer(
            f"the jump host {label(jump)} cannot reach {label(link)}; "
            "is the box running, and the address right?"
        ) from None
    return TimedSocket(line, over)


def _tcp(host: str, port: int) -> socket.socket:
    """A TCP connection that sends each small packet at once: an SSH request is two of them."""
    line = socket.create_connection((host, port), CONNECT_S)
    line.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return line


def _refused(error: keys.Refused, where: str, login: keys.Login) -> BadInput:
    n, name_it = error.n_offered, "name the right key: RUNPOD_SSH_KEY"
    if error.closed:
        of = f"{n} of your {len(login.keys)} SSH keys"
        return BadInput(f"{where} refused {of} and then closed the connection; {name_it}")
    if login.locked:
        return BadInput(f"{where} refused {amounts.count(n, 'SSH key')}; {keys.locked(Path(login.locked))}")
    what = "your SSH key" if n == 1 else f"all {n} SSH keys that you have"
    return BadInput(f"{where} refused {what}; put a public key of yours on the box, or {name_it}")


def _explained(error: Exception, link: fabric.Connection, pin_file: Path) -> UserError:
    where = label(link)
    match error:
        case BadHostKeyException():
            return OtherKey(
                f"the host key of {where} has CHANGED (now {error.key.fingerprint}, pinned "
                f"{error.expected_key.fingerprint}), so it is not trusted; if you replaced this "
                f"machine, delete {pin_file}"
            )
        case NotInItsLog():
            return OtherKey(
                f"the host key of {where} ({error.fingerprint}) is none of those that the box's own log "
                f"names ({', '.join(error.named)}), so it is not trusted; start the box again, or, if you "
                f"know that key, delete {host_keys.expected_file(pin_file)}"
            )
        case AuthenticationException() if "EOF" in str(error) or "timeout" in str(error):
            # The key was not refused: the connection was lost during the login.
            return NoAnswer(f"{where} closed the connection; run it again")
        case AuthenticationException():
            return BadInput(f"{where} refused the password; put a public key of yours there instead")
        case _ if isinstance(link.gateway, str):
            return NoAnswer(
                f"the ProxyCommand of ~/.ssh/config does not lead to {where}; "
                f"try it in a shell: {link.gateway}"
            )
        case NoValidConnectionsError() | ConnectionRefusedError():
            return NoAnswer(f"nothing listens at {where}; check that the box runs, and the port")
        case socket.gaierror():
            return NoAnswer(f"there is no host {link.host}; correct -H or RUNPOD_HOST")
        case TimeoutError():
            return NoAnswer(f"no answer from {where}; is the box running, and the address right?")
        case SSHException() if "banner" in str(error) or not str(error):
            return NoAnswer(f"{where} does not answer as an SSH server; is the port right?")
        case EOFError():
            return NoAnswer(f"{where} closed the connection; run it again")
        case _:
            reason = getattr(error, "strerror", None) or str(error) or type(error).__name__
            return NoAnswer(f"cannot connect to {where} ({reason}); run it again")
