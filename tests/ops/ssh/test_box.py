"""Commands on a box: what comes back, and one line when it cannot."""

import hashlib
import os
import re
import signal
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest

from ops.ssh import box as boxes
from ops.ssh import secrets
from ops.ssh.link import LinkLost
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


@pytest.fixture
def talkative(box):
    """The box of a user whose .bashrc prints."""
    (box.home / ".bashrc").write_text(
        "echo welcome; echo export X=1; echo careful >&2; echo '=== begin ==='; printf 'no line end'\n"
    )
    return box


def test_what_bashrc_prints_is_no_output(talkative, conn):
    ran = conn.run("echo out; echo err >&2; exit 3")
    assert (ran.code, ran.out, ran.err) == (3, "out\n", "err\n")
    blocks = []
    ran = conn.run("echo out; echo err >&2", on_output=blocks.append)
    assert b"".join(blocks) == b"out\nerr\n" and ran.out == "out\nerr\n"


def test_what_bashrc_prints_breaks_no_sftp_session(talkative, conn, tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    for _ in range(2):
        with conn.sftp() as sftp, sftp.open(str(tmp_path / "file"), "rb") as file:
            assert file.read() == b"content"


def test_what_bashrc_prints_is_explained_where_sftp_cannot_do_without_it(talkative, conn, monkeypatch):
    monkeypatch.setattr(boxes, "_SFTP_SERVER", "exit 127")
    with pytest.raises(
        UserError,
        match=r"~/\.bashrc on .* prints something, which breaks SFTP; put this line above that: case",
    ):
        conn.sftp()


def test_what_bashrc_prints_is_not_written_into_the_settings(talkative, conn):
    path = str(talkative.box_home / "worker.env")
    for _ in range(2):
        secrets.put(conn, path, secrets.merged(secrets.read(conn, path), {"KEY": "value"}, []).encode())
    assert secrets.read(conn, path) == "KEY='value'\n"


def test_bashrc_that_reads_gets_nothing_of_the_input(box, conn):
    (box.home / ".bashrc").write_text("read -t 0.2 answer; echo ${answer:-none} > ~/answer\n")
    assert conn.run("cat", stdin=b"first\nsecond\n").out == "first\nsecond\n"
    assert (box.home / "answer").read_text() == "none\n"


def test_bashrc_that_exits_is_said(box, conn):
    (box.home / ".bashrc").write_text("echo not for you; exit 1\n")
    with pytest.raises(
        UserError, match=r"the login shell of .* ended before our command \(not for you\); if its"
    ):
        conn.run("true")


def test_bashrc_that_hangs_is_said(box, conn, monkeypatch):
    monkeypatch.setattr(boxes, "_BEGIN_S", 0.5)
    (box.home / ".bashrc").write_text("sleep 600\n")
    with pytest.raises(
        UserError, match=r"did not run our command within .* s; something in its ~/\.bashrc waits"
    ):
        conn.run("true")


def test_box_that_ends_leaves_no_hanging_shell_behind(box, conn, monkeypatch):
    monkeypatch.setattr(boxes, "_BEGIN_S", 0.5)
    pid = box.home / "pid"
    (box.home / ".bashrc").write_text(f"sh -c 'echo $$ > {pid}; exec sleep 600'\n")
    with pytest.raises(UserError):
        conn.run("true")
    while not (pid.exists() and pid.read_text()):
        time.sleep(0.01)
    box.stop()
    command = Path(f"/proc/{pid.read_text().strip()}/cmdline")
    assert not command.exists() or not command.read_bytes()


def test_large_input_and_output_pass_unchanged(conn):
    content = bytes(range(256)) * 8000
    assert len(conn.run("cat", stdin=content).out.encode("utf-8", "replace")) > len(content)
    assert conn.run("sha256sum", stdin=content).out.split()[0] == (hashlib.sha256(content).hexdigest())


def test_command_that_does_not_read_its_input_does_not_hang(conn):
    assert conn.run("exit 5", stdin=b"x" * 5_000_000).code == 5


def test_flood_of_errors_does_not_block_the_output(conn):
    ran = conn.run("head -c 3000000 /dev/zero | tr '\\0' e >&2; echo done")
    assert (ran.out, len(ran.err)) == ("done\n", 3_000_000)


def test_output_is_given_as_it_comes(conn, tmp_path):
    blocks, seen = [], tmp_path / "seen"

    def take(block):
        blocks.append(block)
        seen.touch()

    ran = conn.run(f"echo one; until [ -e {seen} ]; do sleep 0.02; done; echo two >&2", on_output=take)
    assert (blocks, ran.code) == ([b"one\n", b"two\n"], 0)


def test_command_over_its_limit_ends_with_one_line(conn):
    began = time.monotonic()
    with pytest.raises(UserError, match=r"^the command did not finish within 1 s; .*$"):
        conn.shell("\nsleep 60\n", limit_s=1)
    assert time.monotonic() - began < 30


def test_place_is_where_the_box_says(conn, box):
    assert (conn.info.root, conn.info.home) == (str(box.root), str(box.box_home))


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
    conn.info = replace(conn.info, platform="ec2", user="ubuntu")
    assert conn.shell("echo $1", "a b").out == "a b\n"
    with conn.sftp() as sftp:
        assert "sudo.log" in sftp.listdir(str(box.home))
    asked = (box.home / "sudo.log").read_text()
    assert "-n bash -c echo" in asked and "-n sh -c" in asked


# --- what can go wrong


def test_box_without_sftp_is_one_line_and_no_lost_connection(box, tmp_path):
    shell = box.folder / "shell"
    shell.write_text(re.sub(r"exec \S*sftp-server.*? ;;", "exit 127 ;;", shell.read_text()))
    with (
        connected(box, tmp_path) as conn,
        pytest.raises(UserError, match=r"has no SFTP; install") as caught,
    ):
        conn.sftp()
    assert not isinstance(caught.value, LinkLost)


def test_proxied_ssh_under_another_name_is_found_by_its_answer(box, tmp_path):
    shell = box.folder / "shell"
    shell.write_text('#!/bin/bash\necho "Error: Your SSH client doesn\'t support PTY"\nexit 1\n')
    with pytest.raises(BadInput, match="SSH over exposed TCP"):
        opened(box, tmp_path).run("true")


def test_cut_link_is_one_line_and_the_next_command_connects_again(box, tmp_path, link):
    with connected(box, tmp_path, link.port) as conn:
        conn.run("true")
        with pytest.raises(LinkLost, match="was lost"):
            conn.run("echo on; sleep 60", on_output=lambda block: link.reset())
        assert conn.run("echo back").out == "back\n"


def test_ctrl_c_leaves_a_command_at_once(conn):
    pressed = []

    def press():
        pressed.append(time.monotonic())
        os.kill(os.getpid(), signal.SIGINT)

    def later(_):
        threading.Timer(0.2, press).start()

    with pytest.raises(KeyboardInterrupt):
        conn.run("echo on; sleep 60", on_output=later)
    assert time.monotonic() - pressed[0] < 10  # a second at most; this machine may be busy
