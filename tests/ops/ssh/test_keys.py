"""Which keys are offered: the named one alone, with a passphrase through the agent; and every dead end."""

import shutil
import subprocess
import threading
import time
from pathlib import Path

import pytest

from ops.ssh import keys
from tests.ops.ssh.connect import opened
from tests.parts import need
from worker.errors import BadInput


@pytest.fixture(autouse=True)
def home(tmp_path, monkeypatch):
    """A user without a key or an agent; -> their .ssh folder."""
    folder = tmp_path / "user" / ".ssh"
    folder.mkdir(parents=True)
    monkeypatch.setenv("HOME", str(folder.parent))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    return folder


@pytest.fixture
def agent(tmp_path, monkeypatch):
    """A running SSH agent without keys; -> a function that loads a key file."""
    need("an SSH agent", shutil.which("ssh-agent") is not None)
    monkeypatch.chdir(tmp_path)  # a socket's path is at most 107 long
    monkeypatch.setenv("SSH_AUTH_SOCK", "agent")
    with subprocess.Popen(["ssh-agent", "-D", "-a", "agent"], stdout=subprocess.DEVNULL) as process:
        while not Path("agent").exists():
            assert process.poll() is None
            time.sleep(0.01)
        yield lambda file: subprocess.run(["ssh-add", "-q", str(file)], check=True)
        process.terminate()


def made(file, passphrase=""):
    """A new key pair; -> the private file."""
    words = ["-t", "ed25519", "-a", "1", "-N", passphrase, "-f", str(file)]
    subprocess.run(["ssh-keygen", "-q", *words], check=True)
    return file


def lock(file):
    """Give the key file a passphrase."""
    words = ["-p", "-a", "1", "-P", "", "-N", "secret", "-f", str(file)]
    subprocess.run(["ssh-keygen", "-q", *words], check=True, stdout=subprocess.DEVNULL)


def log_in(box, folder, named=()):
    conn = opened(box, folder, named=named)
    try:
        return conn.run("echo in").out
    finally:
        conn.close()


@pytest.fixture
def locked(box, agent):
    """The box's key file, which has a passphrase by now and is in the agent behind seven others."""
    for n in range(7):
        agent(made(box.folder / f"other{n}"))
    agent(box.key_file)
    lock(box.key_file)
    return box.key_file


def test_named_key_with_a_passphrase_is_used_through_the_agent(box, tmp_path, locked):
    assert log_in(box, tmp_path, [locked]) == "in\n"


def test_named_key_with_a_passphrase_needs_no_pub_file(box, tmp_path, locked):
    Path(f"{locked}.pub").unlink()
    assert log_in(box, tmp_path, [locked]) == "in\n"


def test_pub_file_names_a_key_of_the_agent(box, tmp_path, locked):
    locked.unlink()
    assert log_in(box, tmp_path, [f"{locked}.pub"]) == "in\n"


def test_pub_file_of_a_key_that_the_agent_lacks_names_the_private_one(box, tmp_path, agent):
    with pytest.raises(BadInput, match=f"is not in the SSH agent; load it first: ssh-add {box.key_file}$"):
        log_in(box, tmp_path, [f"{box.key_file}.pub"])


def test_named_key_with_a_passphrase_that_the_agent_lacks_is_to_be_loaded(box, tmp_path, agent):
    lock(box.key_file)
    with pytest.raises(BadInput, match=f"has a passphrase and is not in .*: ssh-add {box.key_file}$"):
        log_in(box, tmp_path, [box.key_file])


def test_usual_key_file_comes_before_the_others_of_the_agent(box, tmp_path, home, locked):
    shutil.copy(locked, home / "id_ed25519")
    assert log_in(box, tmp_path) == "in\n"


def test_agent_with_too_many_keys_is_said_with_the_remedy(box, tmp_path, locked):
    with pytest.raises(BadInput, match=r"refused 5 of your 8 SSH keys and then closed .*: RUNPOD_SSH_KEY$"):
        log_in(box, tmp_path)


def test_without_any_key_the_way_to_one_is_said(box, tmp_path, home):
    with pytest.raises(BadInput) as caught:
        log_in(box, tmp_path)
    assert str(caught.value) == (
        f"no SSH key found: no SSH agent runs, and there is no id_ed25519, id_ecdsa, id_rsa in {home}; "
        "make one with `ssh-keygen -t ed25519` and put its .pub on the box (RunPod: in your account's "
        "settings), or name one: RUNPOD_SSH_KEY"
    )


def test_only_key_file_with_a_passphrase_is_to_be_loaded(box, tmp_path, home):
    made(home / "id_ed25519", "secret")
    with pytest.raises(BadInput, match=r"id_ed25519 has a passphrase and is not in the SSH agent"):
        log_in(box, tmp_path)


def test_key_file_that_could_not_be_tried_is_said_beside_the_refused_ones(box, tmp_path, home, agent):
    agent(made(box.folder / "other"))
    made(home / "id_ed25519", "secret")
    with pytest.raises(BadInput, match=r"refused 1 SSH key; the SSH key .*id_ed25519 has a passphrase"):
        log_in(box, tmp_path)


def test_agent_that_never_answers_does_not_hang_the_login(box, tmp_path, home, monkeypatch):
    over = threading.Event()

    class Hangs:
        def get_keys(self):
            over.wait(60)
            return ()

        def close(self):
            pass

    monkeypatch.setattr(keys.paramiko, "Agent", Hangs)
    monkeypatch.setattr(keys, "_AGENT_LIMIT_S", 0.01)
    shutil.copy(box.key_file, home / "id_ed25519")
    try:
        assert log_in(box, tmp_path) == "in\n"
    finally:
        over.set()
