"""The SSH keys that are offered to a box, and the login with them.

A key that was named (RUNPOD_SSH_KEY, -i) is the only one. Else the key files of ~/.ssh/config and the usual
ones come first, then the others of the SSH agent: a server closes the connection after six tries. A key file
with a passphrase is used through the agent. Asks for no passphrase.
"""

import base64
import os
import threading
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fabric
import paramiko
from cryptography.exceptions import UnsupportedAlgorithm
from paramiko.auth_strategy import AuthStrategy
from paramiko.pkey import UnknownKeyType
from paramiko.ssh_exception import AuthenticationException, SSHException

from worker.errors import BadInput

USUAL = ("id_ed25519", "id_ecdsa", "id_rsa")
# An agent that was forwarded over a connection that is lost never answers.
_AGENT_LIMIT_S = 5.0
_OPENSSH = "-----BEGIN OPENSSH PRIVATE KEY-----"
_PUBLIC = ("ssh-", "ecdsa-", "sk-")


class Refused(AuthenticationException):  # type: ignore[misc]
    """The server refused `n_offered` keys. `closed`: it then closed the connection, before the others."""

    def __init__(self, n_offered: int, closed: bool) -> None:
        super().__init__("refused")
        self.n_offered, self.closed = n_offered, closed


@dataclass
class Login(AuthStrategy):  # type: ignore[misc]
    """What is offered, in order. `locked`: a key file with a passphrase that is not in the agent."""

    user: str
    keys: list[Any] = field(default_factory=list)
    password: str | None = None
    locked: str = ""

    def authenticate(self, transport: paramiko.Transport) -> None:
        """Log in. Raises Refused, or SSHException where the connection was lost before a key was refused."""
        n_refused = 0
        for key in self.keys:
            try:
                left = transport.auth_publickey(self.user, key)
            except SSHException as error:
                if transport.is_active() and "timeout" not in str(error):
                    n_refused += 1
                    continue
                if n_refused:
                    raise Refused(n_refused, closed=True) from None
                raise
            if "keyboard-interactive" in left and not self.password:
                transport.auth_interactive_dumb(self.user)
            if transport.is_authenticated():
                return
        if self.password is None:
            raise Refused(n_refused, closed=False)
        transport.auth_password(self.user, self.password)


def login(link: fabric.Connection) -> Login:
    """The keys for this box. Raises BadInput if a named key cannot be used, or there is no key."""
    password, passphrase = (link.connect_kwargs.get(name) for name in ("password", "passphrase"))
    found = Login(link.user, password=password)
    agent = _AgentKeys()
    only = named(link)
    for file in only:
        if not file.exists():
            raise BadInput(f"there is no SSH key {file}; correct RUNPOD_SSH_KEY or -i")
        if not (keys := _usable(file, passphrase, agent)):
            raise BadInput(locked(file))
        found.keys += keys
    if not only:
        files = [Path(file).expanduser() for file in link.ssh_config.get("identityfile", [])]
        files += [Path.home() / ".ssh" / name for name in USUAL if not restricted(link)]
        for file in dict.fromkeys(files):
            with suppress(BadInput):  # one that cannot be read, and that nobody named for this box
                keys = _usable(file, passphrase, agent) if file.is_file() else []
                found.keys += keys
                if file.is_file() and not keys:
                    found.locked = found.locked or str(file)
        offered = {key.asbytes() for key in found.keys}
        found.keys += [key for key in agent.all if not restricted(link) and key.asbytes() not in offered]
    if not found.keys and not password:
        raise BadInput(locked(Path(found.locked)) if found.locked else _no_key())
    return found


def named(link: fabric.Connection) -> list[Path]:
    """The key files of RUNPOD_SSH_KEY, -i or the box; not those of ~/.ssh/config, which Fabric adds last."""
    files = link.connect_kwargs.get("key_filename", [])
    n_configured = len(link.ssh_config.get("identityfile", []))
    return [Path(file).expanduser() for file in files[: len(files) - n_configured]]


def restricted(link: fabric.Connection) -> bool:
    """True where ~/.ssh/config allows only its own key files for this host."""
    return bool(link.ssh_config.get("identitiesonly") == "yes" and link.ssh_config.get("identityfile"))


def locked(file: Path) -> str:
    """What to do about a key with a passphrase, or the public half of one, that the agent does not have."""
    if file.suffix == ".pub":
        private = file.with_suffix("")
        return f"the private key of {file} is not in the SSH agent; load it first: ssh-add {private}"
    return f"the SSH key {file} has a passphrase and is not in the SSH agent; load it first: ssh-add {file}"


class _AgentKeys:
    """The keys of the SSH agent, asked for when first needed: without a need it is not, as it may hang."""

    def __init__(self) -> None:
        self._found: list[Any] | None = None

    @property
    def all(self) -> list[Any]:
        if self._found is None:
            self._found = found = []

            def ask() -> None:
                with suppress(SSHException, OSError):
                    agent = paramiko.Agent()
                    found.extend(agent.get_keys())
                    if not found:
                        agent.close()

            asking = threading.Thread(target=ask, daemon=True)
            asking.start()
            asking.join(_AGENT_LIMIT_S)
        return self._found


def _usable(file: Path, passphrase: str | None, agent: _AgentKeys) -> list[Any]:
    """The key in the file, or the agent's same key where that has a passphrase; empty if neither can be had.

    Raises BadInput for what is not a key.
    """
    try:
        text = file.read_text("latin-1")
        if not text.startswith(_PUBLIC):
            return [paramiko.PKey.from_path(file, passphrase)]
    except TypeError:  # it has a passphrase
        pass
    except (ValueError, UnsupportedAlgorithm, UnknownKeyType, SSHException):
        raise BadInput(
            f"the SSH key {file} cannot be read; name a private key in OpenSSH's format: RUNPOD_SSH_KEY"
        ) from None
    except OSError as error:
        reason = error.strerror
        raise BadInput(
            f"the SSH key {file} cannot be read ({reason}); correct RUNPOD_SSH_KEY or -i"
        ) from None
    blob = _public_half(file, text)
    return [key for key in agent.all if key.asbytes() == blob]


def _public_half(file: Path, text: str) -> bytes | None:
    """The public key, from the .pub beside it or from the readable part of OpenSSH's own format."""
    with suppress(OSError, ValueError, IndexError):
        beside = text if text.startswith(_PUBLIC) else Path(f"{file}.pub").read_text("latin-1")
        return base64.b64decode(beside.split()[1])
    if text.startswith(_OPENSSH):
        with suppress(ValueError, SSHException):
            packed = base64.b64decode("".join(text.strip().splitlines()[1:-1]))
            message = paramiko.Message(packed.removeprefix(b"openssh-key-v1\0"))
            for _ in range(3):  # cipher, key derivation, its options
                message.get_string()
            if message.get_int() == 1:
                return bytes(message.get_string())
    return None


def _no_key() -> str:
    runs = "the SSH agent has none" if os.environ.get("SSH_AUTH_SOCK") else "no SSH agent runs"
    return (
        f"no SSH key found: {runs}, and there is no {', '.join(USUAL)} in {Path.home() / '.ssh'}; "
        "make one with `ssh-keygen -t ed25519` and put its .pub on the box (RunPod: in your account's "
        "settings), or name one: RUNPOD_SSH_KEY"
    )
