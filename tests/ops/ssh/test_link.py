"""The link: a pinned key, every way in which connecting can fail, and a link that has died silently."""

import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from types import SimpleNamespace

import fabric
import paramiko
import pytest
from paramiko.ssh_exception import SSHException

from ops import boxes, host_keys
from ops.boxes import Known
from ops.ssh import link as links
from ops.ssh.link import LinkLost, NoAnswer, OtherKey
from tests.fakes.proxy import proxying
from tests.ops.ssh.connect import connected, opened
from worker.errors import BadInput, UserError


@pytest.fixture
def link(box):
    """A way to the box that can be made bad."""
    with proxying(box.port) as link:
        yield link


# --- the host key


def test_first_key_is_pinned_and_said_once(box, tmp_path):
    reported = []
    for _ in range(2):
        with connected(box, tmp_path, report=reported.append) as conn:
            assert conn.run("true").code == 0
    assert len(reported) == 1 and "SHA256:" in reported[0]


def test_changed_key_is_refused_with_both_and_the_file_to_delete(box, tmp_path):
    with connected(box, tmp_path) as conn:
        conn.run("true")
    box.rekey()
    with pytest.raises(UserError, match="has CHANGED") as caught:
        opened(box, tmp_path).run("true")
    pin = tmp_path / "pins" / "known_hosts"
    assert str(caught.value).count("SHA256:") == 2 and str(pin) in str(caught.value)
    pin.unlink()
    with connected(box, tmp_path) as conn:
        assert conn.run("true").code == 0


def test_another_key_is_refused_under_another_address_of_the_same_box(box, tmp_path, link):
    with connected(box, tmp_path) as conn:
        conn.run("true")
    box.rekey()
    with pytest.raises(UserError, match="has CHANGED"):
        opened(box, tmp_path, link.port).run("true")


def test_same_key_is_fine_under_another_address(box, tmp_path, link):
    with connected(box, tmp_path) as conn:
        conn.run("true")
    with connected(box, tmp_path, link.port) as conn:
        assert conn.run("true").code == 0


# --- the host keys of a pod, which each start makes anew


@pytest.fixture
def pod(box, tmp_path, monkeypatch):
    """A pod that was connected to, and a call that gives it as we know it, at its address of now."""
    monkeypatch.chdir(tmp_path)

    def known():
        return Known("pod1", "runpod", box.host, box.port)

    def connect(reported=None, port=None, look_up=lambda: None):
        report = (lambda text: None) if reported is None else reported.append
        conn = opened(box, tmp_path, port, report, look_up=look_up)
        conn.pin_file = boxes.folder_of("pod1") / "known_hosts"
        return conn

    with closing(connect()) as conn:
        conn.run("true")
    return SimpleNamespace(known=known, connect=connect)


def test_new_key_on_another_port_after_our_start_works_without_a_question(box, pod):
    before = box.port
    box.move()
    reported = []
    host_keys.started(pod.known(), box.log)
    with closing(pod.connect(reported, before, lambda: (box.host, box.port))) as conn:
        assert conn.run("echo here").out == "here\n"
    assert reported[0] == f"the box has moved from {box.host}:{before} to {box.host}:{box.port}"
    assert "which its own log names: SHA256:" in reported[1]
    with closing(pod.connect()) as conn:  # now it is pinned
        assert conn.run("echo again").out == "again\n"


def test_foreign_key_at_the_address_of_a_box_that_we_started_is_refused(box, pod):
    box.move()
    host_keys.started(pod.known(), box.log)
    box.rekey()
    with pytest.raises(OtherKey, match="is none of those that the box's own log names") as caught:
        pod.connect().run("true")
    (waiting,) = (boxes.folder_of("pod1")).glob("*.expected")
    assert str(waiting) in str(caught.value)


def test_start_whose_log_names_no_key_trusts_the_first_one_and_no_second(box, pod):
    box.move()
    host_keys.started(pod.known(), "Pod Started\n")
    reported = []
    with closing(pod.connect(reported)) as conn:
        conn.run("true")
    assert len(reported) == 1 and reported[0].startswith("first contact with")
    box.rekey()
    with pytest.raises(OtherKey, match="has CHANGED"):
        pod.connect().run("true")


def test_new_key_after_a_start_that_we_did_not_cause_is_refused(box, pod):
    before = box.port
    box.move()
    with pytest.raises(OtherKey, match="has CHANGED"):
        pod.connect(port=before, look_up=lambda: (box.host, box.port)).run("true")


# --- what can go wrong while connecting


def test_link_that_dies_while_the_key_is_shown_is_no_refusal(box, tmp_path):
    class Dies(paramiko.ServerInterface):
        def get_allowed_auths(self, username):
            return "publickey"

        def check_auth_publickey(self, username, key):
            server.close()
            return paramiko.AUTH_FAILED

    with socket.create_server(("127.0.0.1", 0)) as listener:
        conn = opened(box, tmp_path, listener.getsockname()[1])
        with ThreadPoolExecutor(1) as threads:
            ran = threads.submit(conn.run, "true")
            server = paramiko.Transport(listener.accept()[0])
            server.add_server_key(paramiko.ECDSAKey.generate())
            server.start_server(event=threading.Event(), server=Dies())  # waits for nothing
            with pytest.raises(NoAnswer, match="closed the connection; run it again"):
                ran.result(30)
        server.close()


def test_nobody_listening_is_one_line(box, tmp_path):
    box.stop()
    with pytest.raises(NoAnswer, match="nothing listens at"):
        opened(box, tmp_path).run("true")


def test_key_that_the_box_does_not_know_is_one_line(box, tmp_path):
    (box.folder / "authorized_keys").write_text("")
    with pytest.raises(BadInput, match="refused your SSH key"):
        opened(box, tmp_path).run("true")


def test_key_file_that_is_not_there_is_named(box, tmp_path):
    box.key_file.unlink()
    with pytest.raises(BadInput, match=r"there is no SSH key .*client_key"):
        opened(box, tmp_path).run("true")


def test_key_of_another_program_is_named_as_such(box, tmp_path):
    box.key_file.write_text("PuTTY-User-Key-File-3: ssh-ed25519\nEncryption: none\n")
    with pytest.raises(BadInput, match=r"the SSH key .*client_key cannot be read; .*OpenSSH's format"):
        opened(box, tmp_path).run("true")


def test_server_that_does_not_speak_ssh_is_one_line(box, tmp_path, s3_url):
    port = int(s3_url.rpartition(":")[2])
    with pytest.raises(NoAnswer, match="does not answer as an SSH server"):
        opened(box, tmp_path, port).run("true")


def test_server_that_hangs_up_is_one_line(box, tmp_path):
    with socket.create_server(("127.0.0.1", 0)) as listener, ThreadPoolExecutor(1) as threads:
        ran = threads.submit(opened(box, tmp_path, listener.getsockname()[1]).run, "true")
        with listener.accept()[0] as server:
            server.sendall(b"SSH-2.0-gone\r\n")
            server.shutdown(socket.SHUT_WR)
            with pytest.raises(NoAnswer, match=r"closed the connection; run it again$"):
                ran.result(60)


@pytest.mark.parametrize("command", ["false", "no-such-program-here host", "sh -c 'echo no; exit 1'"])
def test_proxy_command_that_fails_is_named(box, tmp_path, command):
    conn = opened(box, tmp_path)
    conn.link.gateway = command
    with pytest.raises(NoAnswer, match=r"the ProxyCommand of ~/\.ssh/config does not lead to") as caught:
        conn.run("true")
    assert str(caught.value).endswith(f"try it in a shell: {command}")


def test_label_of_an_ipv6_address_has_brackets():
    assert links.label(fabric.Connection("::1", "root", 2302)) == "root@[::1]:2302"


# --- through a jump host


@pytest.fixture
def jumping(box, tmp_path):
    """A box behind a jump host, which is the same server."""
    with connected(box, tmp_path) as conn:
        conn.link.gateway = opened(box, tmp_path).link
        yield conn


def test_jump_host_is_pinned_and_closed_with_the_connection(box, tmp_path, jumping):
    assert jumping.run("echo there").out == "there\n"
    assert sorted(path.name for path in (tmp_path / "pins").iterdir()) == [
        "known_hosts",
        f"known_hosts_{box.host}_{box.port}",
    ]
    over = jumping.transport.sock._over
    assert over.is_active()
    jumping.close()
    over.join(60)
    assert not over.is_active()


def test_jump_host_that_refuses_the_key_is_the_one_that_is_named(box, jumping):
    other = box.folder / "host_key"  # of the server, which does not know it as a user's
    jumping.link.gateway.connect_kwargs["key_filename"] = [str(other)]
    jumping.link.gateway.host = "localhost"
    with pytest.raises(BadInput, match=r"@localhost:\d+ refused your SSH key"):
        jumping.run("true")


def test_jump_host_that_cannot_reach_the_box_is_one_line(jumping):
    jumping.link.port = 1
    with pytest.raises(NoAnswer, match=r"the jump host .* cannot reach .*:1; is the box running"):
        jumping.run("true")


# --- a link that dies


@pytest.mark.parametrize("waiting", ["command", "sftp"])
def test_silently_dead_link_is_noticed(box, tmp_path, link, monkeypatch, waiting):
    monkeypatch.setattr(links, "KEEPALIVE_S", 0.2)
    monkeypatch.setattr(links, "DEAD_AFTER_S", 1.0)
    with connected(box, tmp_path, link.port) as conn:
        sftp = conn.sftp()
        conn.run("true")
        link.stall()
        began = time.monotonic()
        with pytest.raises((LinkLost, OSError, EOFError, SSHException)):
            conn.run("sleep 60") if waiting == "command" else sftp.stat("/")
        assert time.monotonic() - began < 30


def test_limits_notice_a_dead_link_within_twenty_seconds():
    assert links.KEEPALIVE_S + links.DEAD_AFTER_S < 20


def test_quiet_but_live_link_is_left_alone(box, tmp_path, link, monkeypatch):
    monkeypatch.setattr(links, "KEEPALIVE_S", 0.2)
    monkeypatch.setattr(links, "DEAD_AFTER_S", 2.0)
    with connected(box, tmp_path, link.port) as conn:
        assert conn.run("sleep 3; echo done").out == "done\n"
        assert link.n_connections == 1
