"""What keeps a link honest: the key of the other side is pinned, and a link that died silently is closed."""

import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import paramiko
from paramiko.ssh_exception import BadHostKeyException, SSHException

# A link over which nothing came for SILENCE_S although we asked every PULSE_S is dead.
PULSE_S = 4.0
SILENCE_S = 14.0

Tell = Callable[[str], None]


class Pin(paramiko.MissingHostKeyPolicy):  # type: ignore[misc]
    """Record the first key of a box; refuse any other, whatever address the box has by then."""

    def __init__(self, file: Path, tell: Tell) -> None:
        self.file = file
        self.tell = tell

    def missing_host_key(self, client: Any, hostname: str, key: Any) -> None:
        known = paramiko.HostKeys(str(self.file)) if self.file.exists() else paramiko.HostKeys()
        pinned = [known[host][kind] for host in known for kind in known[host]]
        if pinned and key not in pinned:
            raise BadHostKeyException(hostname, key, pinned[0])
        self.file.parent.mkdir(parents=True, exist_ok=True)
        with self.file.open("a", encoding="ascii", newline="\n") as lines:
            lines.write(f"{hostname} {key.get_name()} {key.get_base64()}\n")
        if not pinned:
            self.tell(f"first contact with {hostname}; its key from now on is {key.fingerprint}")


class Ear:
    """A socket that remembers when it last heard something."""

    def __init__(self, line: Any) -> None:
        self._line = line
        self.heard_at = time.monotonic()

    def recv(self, n_bytes: int) -> bytes:
        block: bytes = self._line.recv(n_bytes)
        self.heard_at = time.monotonic()
        return block

    def __getattr__(self, name: str) -> Any:
        return getattr(self._line, name)


def watch(transport: paramiko.Transport, ear: Ear) -> None:
    """Close the connection when it has died silently: whoever waits on it is then told."""

    def ask() -> None:
        while transport.is_active():
            try:
                transport.global_request("keepalive@openssh.com", wait=True)
            except (SSHException, EOFError, OSError):
                return
            time.sleep(PULSE_S)

    def listen() -> None:
        while transport.is_active():
            if time.monotonic() - ear.heard_at > SILENCE_S:
                transport.close()
            time.sleep(0.5)

    for part in (ask, listen):
        threading.Thread(target=part, daemon=True).start()
