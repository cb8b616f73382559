"""A port on this machine's loopback that leads to a port on the box's loopback.

Each connection to it is a channel of the box's connection, which is made anew when it was lost. What cannot
be led on is closed, and the next one tried again: a port of the box may open late, or close and open. Needs
no ssh program. Serves nobody but this machine.
"""

import os
import socket
import socketserver
import threading
from contextlib import suppress
from typing import Any

import paramiko

from ops.ssh.box import Box
from ops.ssh.link import LOST
from worker.errors import BadInput, UserError

LOOPBACK = "127.0.0.1"
_OPEN_S = 10
_BLOCK = 32768


class Tunnel:
    """`port`: here, the given one, or for 0 any free one. `target`: on the box; may change; None: not yet.

    A `with` block closes it. Raises BadInput if the port is taken.
    """

    def __init__(self, box: Box, port: int, target: int | None = None) -> None:
        self.target = target
        self._box = box
        try:
            self._server = _Server((LOOPBACK, port), self._handle)  # type: ignore[arg-type]  # any callable
        except OSError as error:
            raise BadInput(
                f"port {port} of this machine cannot be used ({error.strerror}); give another: --port 6007"
            ) from None
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.1,), daemon=True).start()

    def __enter__(self) -> "Tunnel":
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def _handle(self, near: socket.socket, address: Any, server: Any) -> None:
        if self.target is None:
            return
        try:
            far = self._box.transport.open_channel(
                "direct-tcpip", (LOOPBACK, self.target), address, timeout=_OPEN_S
            )
        except (*LOST, UserError):
            return
        with far:
            back = threading.Thread(target=_copy, args=(far, near), daemon=True)
            back.start()
            _copy(near, far)
            back.join()


class _Server(socketserver.ThreadingTCPServer):
    daemon_threads = True
    # On Windows it would let two programs have the port; elsewhere one that was just closed is free.
    allow_reuse_address = os.name != "nt"
    request_queue_size = 64  # a browser opens many at once


def _copy(source: "socket.socket | paramiko.Channel", sink: "socket.socket | paramiko.Channel") -> None:
    """Everything one way, and then the end of it."""
    with suppress(*LOST):
        while block := source.recv(_BLOCK):
            sink.sendall(block)
    with suppress(*LOST):
        sink.shutdown(socket.SHUT_WR)
