"""ops/runpod/refusals.py: what cannot work on RunPod is refused with its reason, before any call."""

import os
import subprocess
import sys

import pytest

from ops.runpod import refusals
from worker.errors import BadInput

KEY = "ssh-ed25519 AAAAC3NzaC1lZDI1NTE5AAAAIJfGDN00000000000000000000000000000000000000 me@here"


@pytest.fixture
def key(tmp_path):
    """A private key file with a public key beside it."""
    file = tmp_path / "worker.pem"
    file.write_text("PLANTED PRIVATE KEY\n", "utf-8")
    (tmp_path / "worker.pem.pub").write_text(f"{KEY}\n", "utf-8")
    return file


@pytest.mark.parametrize(("spot", "bid", "flag"), [(True, "", "--spot"), (False, "0.20", "--bid")])
def test_spot_and_bids_are_refused(spot, bid, flag):
    with pytest.raises(BadInput, match=f"{flag}: RunPod has no spot pods"):
        refusals.refuse_spot(spot, bid)
    refusals.refuse_spot(False, "")


def test_volume_in_the_community_cloud_is_refused():
    with pytest.raises(BadInput, match="RUNPOD_CLOUD=secure"):
        refusals.refuse_volume_outside_secure("vol1", "community")
    for volume, cloud in (("vol1", "secure"), ("vol1", "any"), (None, "community")):
        refusals.refuse_volume_outside_secure(volume, cloud)


@pytest.mark.parametrize("host", ["pod1-64411eb2@ssh.runpod.io", "SSH.RunPod.io"])
def test_proxied_ssh_is_refused(host):
    with pytest.raises(BadInput, match="takes no files"):
        refusals.refuse_proxied(host)
    for other in (None, "root@203.0.113.7:40001"):
        refusals.refuse_proxied(other)


@pytest.mark.parametrize(("ahead_s", "words"), [(3600, "60 min behind"), (-600, "10 min ahead of")])
def test_wrong_clock_is_refused(ahead_s, words):
    with pytest.raises(BadInput, match=words):
        refusals.refuse_wrong_clock(ahead_s)
    for right in (None, 0.0, -100.0):
        refusals.refuse_wrong_clock(right)


def test_small_disk_is_refused():
    with pytest.raises(BadInput, match="give 60 or more"):
        refusals.refuse_small_disk("heartmula", 59, 60)
    refusals.refuse_small_disk("heartmula", 60, 60)


# --- the key that the pod is to accept


def test_public_key_beside_the_private_one_is_taken(key):
    assert refusals.public_key(str(key)) == KEY
    assert refusals.public_key(f"{key}.pub") == KEY


def test_usual_key_is_taken_without_a_setting(tmp_path):
    (tmp_path / ".ssh").mkdir()
    with pytest.raises(BadInput, match="ssh-keygen -t ed25519"):
        refusals.public_key(None, tmp_path)
    (tmp_path / ".ssh" / "id_rsa.pub").write_text("ssh-rsa AAAAB3NzaC1yc2EAAAADAQAB\n", "utf-8")
    (tmp_path / ".ssh" / "id_ed25519.pub").write_text(f"{KEY}\n", "utf-8")
    assert refusals.public_key(None, tmp_path) == KEY


def test_key_that_ssh_keygen_made_is_taken(tmp_path):
    subprocess.run(["ssh-keygen", "-q", "-t", "ecdsa", "-N", "", "-f", tmp_path / "made"], check=True)
    made = (tmp_path / "made.pub").read_text("utf-8").strip()
    assert refusals.public_key(str(tmp_path / "made")) == made


def test_key_without_a_public_one_is_refused_with_the_command(key):
    (key.parent / "worker.pem.pub").unlink()
    with pytest.raises(BadInput, match="make it: uv run python -c") as caught:
        refusals.public_key(str(key))
    assert "PLANTED" not in str(caught.value)


@pytest.mark.parametrize("wrong", [None, b"\r\n", b"-----BEGIN OPENSSH PRIVATE KEY-----\n"])
def test_command_of_the_refusal_makes_it_right(tmp_path, wrong):
    key, public = tmp_path / "it's my $key", tmp_path / "it's my $key.pub"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)
    right = public.read_bytes().split()[:2]
    public.write_bytes(wrong) if wrong else public.unlink()
    with pytest.raises(BadInput) as caught:
        refusals.public_key(str(key))
    command = str(caught.value).rpartition("uv run python ")[2]
    assert not set("$`!>|&\r\n") & set(command)  # what some shell does something with
    subprocess.run(f'"{sys.executable}" {command}', shell=True, check=True)
    assert public.read_bytes().split()[:2] == right and refusals.public_key(str(key))


def test_key_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(BadInput, match="correct RUNPOD_SSH_KEY"):
        refusals.public_key(str(tmp_path / "none"))


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (f"{KEY}\r\n", "Windows line ends"),
        ("-----BEGIN OPENSSH PRIVATE KEY-----\nPLANTED\n", "private key, which must not leave"),
        ("", "not one line"),
        (f"{KEY}\n{KEY}\n", "not one line"),
        ("ssh-ed25519\n", "not one line"),
        ("ssh-ed25519 PLANTED!\n", "not one line"),
        ("ssh-rsa " + KEY.split()[1], "not one line"),
        ("\ufeff" + KEY, "not one line"),
    ],
)
def test_file_that_is_no_public_key_is_refused_without_what_is_in_it(key, content, words):
    (key.parent / "worker.pem.pub").write_bytes(content.encode())
    with pytest.raises(BadInput, match=words) as caught:
        refusals.public_key(str(key))
    assert "PLANTED" not in str(caught.value)


@pytest.mark.skipif(os.name == "nt" or os.geteuid() == 0, reason="root may read every file")
def test_public_key_that_cannot_be_read_is_refused(key):
    (key.parent / "worker.pem.pub").chmod(0)
    with pytest.raises(BadInput, match="cannot read"):
        refusals.public_key(str(key))
