"""The host keys that a container's log names: found in any log, and trusted in place of the old ones."""

import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops import boxes, host_keys
from ops.boxes import Known

POD = Known("pod-1", "runpod", "198.51.100.1", 2201)
A, B = (f"SHA256:{letter * 43}" for letter in "AB")
LISTED = f"Key: /etc/ssh/ssh_host_ed25519_key.pub\n256 {A} root@pod (ED25519)\n"


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_keys_of_every_kind_are_found_as_ssh_keygen_prints_them(tmp_path):
    log = "Pod Started\nSetting up SSH...\nSSH host keys:\n"
    made = []
    for kind in ("ecdsa", "ed25519", "rsa"):
        key = tmp_path / f"ssh_host_{kind}_key"
        subprocess.run(["ssh-keygen", "-q", "-t", kind, "-N", "", "-f", str(key)], check=True)
        listed = subprocess.run(
            ["ssh-keygen", "-l", "-f", f"{key}.pub"], capture_output=True, text=True
        ).stdout
        log += f"Key: {key}.pub\n{listed}"
        made.append(listed.split()[1])
    assert host_keys.fingerprints(f"{log}Exporting environment variables...\n") == made


def test_whole_key_is_named_by_its_fingerprint(tmp_path):
    key = tmp_path / "key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    listed = subprocess.run(["ssh-keygen", "-l", "-f", str(key)], capture_output=True, text=True).stdout
    assert host_keys.fingerprints(f"SSH host keys:\n{(tmp_path / 'key.pub').read_text()}") == [
        listed.split()[1]
    ]


def test_last_start_of_a_log_counts():
    newest = LISTED.replace(A, B)
    assert host_keys.fingerprints(f"SSH host keys:\n{LISTED}\nPod Started\r\nSSH host keys:\n{newest}") == [B]


@pytest.mark.parametrize(
    "log",
    ["", LISTED, "SSH host keys:\n", f"SSH host keys:\nAccepted publickey for root: ED25519 {A}\n"],
    ids=["empty", "no heading", "nothing below", "a user's key"],
)
def test_log_that_lists_none_names_none(log):
    assert host_keys.fingerprints(log) == []


text = st.text(st.characters(exclude_categories=["Cs"]))


@given(before=text, between=text, after=text)
def test_key_is_found_between_whatever_else_is_printed(before, between, after):
    line = "".join(between.splitlines()[:1])
    log = f"{before}\nSSH host keys:\n{line}\n{LISTED}{after}"
    if "SSH host keys:" not in between + after:
        assert A in host_keys.fingerprints(log)


@given(text)
def test_any_log_is_read(log):
    for found in host_keys.fingerprints(f"SSH host keys:\n{log}"):
        assert len(found) == 50


def pinned():
    folder = boxes.folder_of("pod-1")
    return {path.name: path.read_text() for path in folder.glob("known_hosts*")}


@pytest.mark.parametrize(
    ("log", "left"),
    [(f"SSH host keys:\n{LISTED}", {"known_hosts.expected": f"{A}\n"}), ("Pod Started\n", {})],
)
def test_start_forgets_the_old_keys_and_keeps_the_address(log, left):
    boxes.save(POD)
    for name in ("known_hosts", "known_hosts_jump_22", "known_hosts.expected"):
        (boxes.folder_of("pod-1") / name).write_text("old\n")
    moved = Known("pod-1", "runpod", "198.51.100.1", 3301)
    host_keys.started(moved, log)
    assert pinned() == left and boxes.load("pod-1") == moved


def test_start_without_keys_in_the_log_says_that_the_first_one_is_trusted():
    assert host_keys.started(POD, "").endswith("its log names none: the first one seen is trusted")
    assert host_keys.started(POD, f"SSH host keys:\n{LISTED}").endswith("its own log names them")
