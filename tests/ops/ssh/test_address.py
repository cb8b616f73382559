"""Which box is meant, and never this machine or the local user by accident."""

import pytest

from ops import boxes
from ops.settings import Settings
from ops.ssh import address
from ops.ssh.address import Address
from worker.errors import BadInput


def settings(**env):
    return Settings.load(env=env)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("203.0.113.7", Address("203.0.113.7")),
        ("root@203.0.113.7:22001", Address("203.0.113.7", "root", 22001)),
        ("my-pod:22", Address("my-pod", None, 22)),
        ("[2001:db8::7]:22001", Address("2001:db8::7", None, 22001)),
        ("2001:db8::7", Address("2001:db8::7")),
    ],
)
def test_address_is_taken_apart(text, meant):
    assert address.parse(text, "-H") == meant


@pytest.mark.parametrize(
    "text", ["", "ssh root@203.0.113.7 -p 22", "root@", "a:99999", "a:b", "-oProxyCommand=x", "a b"]
)
def test_what_is_no_address_is_refused_with_the_form_it_should_have(text):
    with pytest.raises(BadInput, match="write it like root@"):
        address.parse(text, "RUNPOD_HOST")


def test_no_box_is_never_this_machine():
    with pytest.raises(BadInput, match="no box is named"):
        address.find(None, settings())


@pytest.mark.parametrize("text", ["$RUNPOD_HOST", "%RUNPOD_HOST%"])
def test_a_variable_that_the_shell_did_not_expand_is_no_box(text):
    with pytest.raises(BadInput, match="no box is named"):
        address.find(None, settings(RUNPOD_HOST=text))


@pytest.mark.parametrize("host", ["ssh.runpod.io", "abc-64410@SSH.RunPod.io"])
def test_proxied_ssh_of_runpod_is_refused_with_the_remedy(host):
    with pytest.raises(BadInput, match="SSH over exposed TCP"):
        address.find(None, settings(RUNPOD_HOST=host))


def test_given_box_wins_over_settings_and_settings_over_the_current_one():
    boxes.save(boxes.Known("pod-1", "runpod", "198.51.100.1", 2201))
    current = address.find(None, settings())
    assert (current.host, current.port, current.id) == ("198.51.100.1", 2201, "pod-1")
    assert address.find(None, settings(RUNPOD_HOST="203.0.113.7")).host == "203.0.113.7"
    assert address.find(Address("192.0.2.9"), settings(RUNPOD_HOST="203.0.113.7")).host == "192.0.2.9"


def test_key_of_the_box_wins_over_the_setting():
    boxes.save(boxes.Known("i-1", "ec2", "198.51.100.1", key_file="ec2.pem"))
    assert address.find(None, settings(RUNPOD_SSH_KEY="pod_key")).key_file == "ec2.pem"
    assert address.find(Address("192.0.2.9"), settings(RUNPOD_SSH_KEY="pod_key")).key_file == "pod_key"
