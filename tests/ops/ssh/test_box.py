"""A connection: commands, the pinned key, and every way in which a link can be bad."""

import hashlib
import os
import re
import signal
import socket
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import paramiko
import pytest
from paramiko.ssh_exception import SSHException

from ops.ssh import link as links
from ops.ssh.box import LinkLost, NoAnswer
from tests.fakes.proxy import proxying
from tests.ops.ssh.connect import connected, opened
from worker.errors import BadInput, UserError


@pytest.fixture
def conn(box, tmp_path):
    with connected(box, tmp_path) as conn:
        yield conn


@pytest.fixture
def link(box):
    """A way to the box that can be made bad."""
    with proxying(box.port) as link:
        yield link


# --- commands


def test_output_error_and_exit_code_come_back_apart(conn):
    ran = conn.run("echo out; echo err >&2; exit 3")
    assert (ran.code, ran.out, ran.err) == (3, "out\n", "err\n")


def test_large_input_and_output_pass_unchanged(conn):
    content = bytes(range(256)) * 8000
    assert len(conn.run("cat", stdin=content).out.encode("utf-8", "replace")) > len(content)
    assert conn.run("sha256sum", stdin=content).out.split()[0] == (hashlib.sha256(content).hexdigest())


def test_command_that_does_not_read_its_input_does_not_hang(conn):
    assert conn.run("exit 5", stdin=b"x" * 5_000_000).code == 5


def test_flood_of_errors_does_not_block_the_output(conn):
    ran = conn.run("head -c 3000000 /dev/zero | tr '\\0' e >&2; echo done")
    assert (ran.out, len(ran.err)) == ("done\n", 3_000_000)


def test_output_is_given_as_it_comes(conn):
    blocks = []
    ran = conn.run("echo one; sleep 0.3; echo two >&2", on_output=blocks.append)
    assert b"".join(blocks) == b"one\ntwo\n"
    assert len(blocks) == 2 and ran.code == 0


def test_command_over_its_limit_ends_with_one_line(conn):
    began = time.monotonic()
    with pytest.raises(UserError, match=r"^the box did not finish within 1 s; .*$"):
        conn.shell("\nsleep 30\n", limit_s=1)
    assert time.monotonic() - began < 5


def test_place_is_where_the_box_says(conn, box):
    assert (conn.place.root, conn.place.home) == (str(box.root), str(box.box_home))


def test_words_reach_a_script_whatever_is_in_them(conn):
    odd = ["a b", "$(id)", "'", '"', "*", "\\", "кот", ""]
    assert conn.shell("printf '%s\\n' \"$@\"", *odd).out.split("\n")[:-1] == odd


def test_script_of_a_release_that_is_not_there_says_what_to_run(conn):
    with pytest.raises(BadInput, match="run: fab deploy"):
        conn.remote("session.sh", "status")


def test_folders_of_root_are_reached_through_sudo(conn, box):
    sudo = box.bin / "sudo"
    sudo.write_text('#!/bin/bash\necho "sudo $*" >> ~/sudo.log\n[ "$1" = -n ] && shift && exec "$@"\n')
    sudo.chmod(0o755)
    conn.place = replace(conn.place, platform="ec2", user="ubuntu")
    assert conn.shell("echo $1", "a b").out == "a b\n"
    with conn.sftp() as sftp:
        assert "sudo.log" in sftp.listdir(str(box.home))
    asked = (box.home / "sudo.log").read_text()
    assert "-n bash -c echo" in asked and "-n sh -c" in asked


# --- the host key


def test_first_key_is_pinned_and_said_once(box, tmp_path):
    told = []
    for _ in range(2):
        with connected(box, tmp_path, tell=told.append) as conn:
            assert conn.run("true").code == 0
    assert len(told) == 1 and "SHA256:" in told[0]


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


# --- what can go wrong on the way


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
            server.start_server(server=Dies())
            with pytest.raises(NoAnswer, match="ended the connection; run it again"):
                ran.result(30)
        server.close()


def test_nobody_listening_is_one_line(box, tmp_path):
    box.stop()
    with pytest.raises(NoAnswer, match="nothing listens at"):
        opened(box, tmp_path).run("true")


def test_key_that_the_box_does_not_know_is_one_line(box, tmp_path):
    (box.folder / "authorized_keys").write_text("")
    with pytest.raises(BadInput, match="refused our SSH key"):
        opened(box, tmp_path).run("true")


def test_key_file_that_is_not_there_is_named(box, tmp_path):
    box.key_file.unlink()
    with pytest.raises(BadInput, match=r"there is no SSH key .*client_key"):
        opened(box, tmp_path).run("true")


def test_key_of_another_program_is_named_as_such(box, tmp_path):
    box.key_file.write_text("PuTTY-User-Key-File-3: ssh-ed25519\nEncryption: none\n")
    with pytest.raises(BadInput, match=r"the SSH key cannot be read .*OpenSSH's form"):
        opened(box, tmp_path).run("true")


def test_box_without_sftp_is_one_line_and_no_lost_connection(box, tmp_path):
    shell = box.folder / "shell"
    shell.write_text(re.sub(r"exec \S*sftp-server.*? ;;", "exit 127 ;;", shell.read_text()))
    with (
        connected(box, tmp_path) as conn,
        pytest.raises(UserError, match=r"has no SFTP; install") as caught,
    ):
        conn.sftp()
    assert not isinstance(caught.value, LinkLost)


def test_server_that_does_not_speak_ssh_is_one_line(box, tmp_path, s3_url):
    port = int(s3_url.rpartition(":")[2])
    with pytest.raises(NoAnswer, match="does not answer as an SSH server"):
        opened(box, tmp_path, port).run("true")


def test_proxied_ssh_under_another_name_is_found_by_its_answer(box, tmp_path):
    shell = box.folder / "shell"
    shell.write_text('#!/bin/bash\necho "Error: Your SSH client doesn\'t support PTY"\nexit 1\n')
    with pytest.raises(BadInput, match="SSH over exposed TCP"):
        opened(box, tmp_path).run("true")


def test_cut_link_is_one_line_and_the_next_command_connects_again(box, tmp_path, link):
    with connected(box, tmp_path, link.port) as conn:
        conn.run("true")
        threading.Timer(0.5, link.reset).start()
        with pytest.raises(LinkLost, match="was lost"):
            conn.run("sleep 30")
        assert conn.run("echo back").out == "back\n"


@pytest.mark.parametrize("waiting", ["command", "sftp"])
def test_silently_dead_link_is_noticed(box, tmp_path, link, monkeypatch, waiting):
    monkeypatch.setattr(links, "PULSE_S", 0.2)
    monkeypatch.setattr(links, "SILENCE_S", 1.0)
    with connected(box, tmp_path, link.port) as conn:
        sftp = conn.sftp()
        conn.run("true")
        link.stall()
        began = time.monotonic()
        with pytest.raises((LinkLost, OSError, EOFError, SSHException)):
            conn.run("sleep 30") if waiting == "command" else sftp.stat("/")
        assert time.monotonic() - began < 6


def test_limits_notice_a_dead_link_within_twenty_seconds():
    assert links.PULSE_S + links.SILENCE_S < 20


def test_quiet_but_live_link_is_left_alone(box, tmp_path, link, monkeypatch):
    monkeypatch.setattr(links, "PULSE_S", 0.2)
    monkeypatch.setattr(links, "SILENCE_S", 1.0)
    with connected(box, tmp_path, link.port) as conn:
        assert conn.run("sleep 2; echo done").out == "done\n"
        assert link.n_connections == 1


def test_ctrl_c_leaves_a_command_within_a_second(conn):
    conn.run("true")
    threading.Timer(0.5, os.kill, (os.getpid(), signal.SIGINT)).start()
    began = time.monotonic()
    with pytest.raises(KeyboardInterrupt):
        conn.run("sleep 30")
    assert time.monotonic() - began < 1.5
