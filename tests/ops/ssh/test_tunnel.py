"""The tunnel leads to the box's loopback, and goes on after whatever happened to the connection."""

import socket
import socketserver
import threading

import pytest

from ops.ssh.tunnel import Tunnel
from tests.fakes.proxy import proxying
from tests.ops.ssh.connect import connected
from worker.errors import BadInput

MEGABYTE = bytes(range(256)) * 4096


class Shout(socketserver.StreamRequestHandler):
    """Reads to the end, then answers in capitals: what was sent must have ended before the answer does."""

    def handle(self):
        self.wfile.write(self.rfile.read().upper())


@pytest.fixture
def service():
    """A port of the box's loopback, which is this machine's."""
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Shout) as server:
        threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield server.server_address[1]
        server.shutdown()


@pytest.fixture
def link(box):
    with proxying(box.port) as link:
        yield link


@pytest.fixture
def tunnel(box, tmp_path, link, service):
    with connected(box, tmp_path, link.port) as conn, Tunnel(conn, 0, service) as tunnel:
        yield tunnel


def answer(port, sent):
    """What comes back for these bytes; empty if the connection is closed instead."""
    with socket.create_connection(("127.0.0.1", port), 20) as near:
        try:
            near.sendall(sent)
            near.shutdown(socket.SHUT_WR)
            return b"".join(iter(lambda: near.recv(65536), b""))
        except ConnectionError:
            return b""


def test_bytes_come_back_whole_also_from_many_connections_at_once(tunnel):
    found = {}

    def ask(n):
        found[n] = answer(tunnel.port, b"%d" % n + MEGABYTE)

    threads = [threading.Thread(target=ask, args=(n,)) for n in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == {n: b"%d" % n + MEGABYTE.upper() for n in range(5)}


def test_it_goes_on_over_a_new_connection_after_a_cut(tunnel, link):
    assert answer(tunnel.port, b"before") == b"BEFORE"
    link.reset()
    # What comes before the loss is noticed is closed.
    assert any(answer(tunnel.port, b"after") == b"AFTER" for _ in range(20))
    assert link.n_connections == 2


def test_closed_port_of_the_box_closes_that_connection_alone(tunnel, service):
    with socket.create_server(("127.0.0.1", 0)) as closed:
        tunnel.target = closed.getsockname()[1]
    assert answer(tunnel.port, b"early") == b""
    tunnel.target = None
    assert answer(tunnel.port, b"early") == b""
    tunnel.target = service
    assert answer(tunnel.port, b"late") == b"LATE"


def test_only_this_machine_reaches_it(tunnel):
    assert tunnel._server.socket.getsockname() == ("127.0.0.1", tunnel.port)


def test_taken_port_is_one_line_and_is_free_again_afterwards(box, tmp_path, service):
    with connected(box, tmp_path) as conn:
        with Tunnel(conn, 0, service) as tunnel:
            assert answer(tunnel.port, b"x") == b"X"
            with pytest.raises(BadInput, match=rf"^port {tunnel.port} of this machine cannot be used"):
                Tunnel(conn, tunnel.port, service)
        with Tunnel(conn, tunnel.port, service) as again:
            assert answer(again.port, b"y") == b"Y"
