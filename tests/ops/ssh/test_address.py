"""Which box is meant, and never this machine or the local user by accident."""

from dataclasses import replace

import boto3
import pytest

from ops import boxes, clouds
from ops.boxes import Known
from ops.settings import Settings
from ops.ssh import address
from ops.ssh.address import Address
from ops.ssh.link import NoAnswer, OtherKey
from ops.ssh.moved import current_address
from tests.ops.aws.accounts import new_account
from tests.ops.ssh.connect import connected, opened
from worker.errors import BadInput, UserError


def settings(**env):
    return Settings.load(env=env)


def found(given, settings, said=None):
    return address.find(given, settings, (said if said is not None else []).append)


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
        ("ssh root@203.0.113.7 -p 22001", Address("203.0.113.7", "root", 22001)),
        (
            "ssh -p22001 -l root 203.0.113.7 -i ~/.ssh/id",
            Address("203.0.113.7", "root", 22001, pasted_key="~/.ssh/id"),
        ),
        (
            r'ssh root@203.0.113.7 -i "C:\Users\me too\id"',
            Address("203.0.113.7", "root", pasted_key=r"C:\Users\me too\id"),
        ),
    ],
)
def test_address_is_taken_apart(text, meant):
    assert address.parse(text, "-H") == meant


@pytest.mark.parametrize(
    "text",
    [
        "",
        "root@",
        "a:99999",
        "a:b",
        "-oProxyCommand=x",
        "a b",
        "ssh root@a -p x",
        "ssh root@a ls",
        "ssh -oProxyCommand=x root@a",
        "ssh 'root@a",
    ],
)
def test_what_is_no_address_is_refused_with_the_form_it_should_have(text):
    with pytest.raises(BadInput, match="write it like root@"):
        address.parse(text, "RUNPOD_HOST")


def test_no_box_is_never_this_machine():
    with pytest.raises(BadInput, match="no box is named"):
        found(None, settings())


@pytest.mark.parametrize("text", ["$RUNPOD_HOST", "%RUNPOD_HOST%"])
def test_a_variable_that_the_shell_did_not_expand_is_no_box(text):
    with pytest.raises(BadInput, match="no box is named"):
        found(None, settings(RUNPOD_HOST=text))


@pytest.mark.parametrize("host", ["ssh.runpod.io", "abc-64410@SSH.RunPod.io"])
def test_proxied_ssh_of_runpod_is_refused_with_the_remedy(host):
    with pytest.raises(BadInput, match="SSH over exposed TCP"):
        found(None, settings(RUNPOD_HOST=host))


def test_given_box_wins_over_settings_and_settings_over_the_current_one():
    boxes.save(boxes.Known("pod-1", "runpod", "198.51.100.1", 2201))
    current = found(None, settings())
    assert (current.host, current.port, current.id) == ("198.51.100.1", 2201, "pod-1")
    assert found(None, settings(RUNPOD_HOST="203.0.113.7")).host == "203.0.113.7"
    assert found(Address("192.0.2.9"), settings(RUNPOD_HOST="203.0.113.7")).host == "192.0.2.9"


def test_setting_that_hides_the_box_that_was_rented_last_is_said():
    boxes.save(boxes.Known("pod-1", "runpod", "198.51.100.1", 2201))
    said = []
    found(None, settings(RUNPOD_HOST="root@203.0.113.7"), said)
    (line,) = said
    assert "the box is root@203.0.113.7, as RUNPOD_HOST is set, and not pod-1" in line and "-H pod-1" in line


@pytest.mark.parametrize(
    ("given", "named"), [(Address("192.0.2.9"), "203.0.113.7"), (None, "198.51.100.1:2201"), (None, "")]
)
def test_nothing_is_said_where_nothing_is_hidden(given, named):
    boxes.save(boxes.Known("pod-1", "runpod", "198.51.100.1", 2201))
    said = []
    found(given, settings(RUNPOD_HOST=named), said)
    assert said == []


def test_known_box_is_found_by_its_id_and_an_address_is_no_id():
    box = boxes.Known("pod-1", "runpod", "198.51.100.1", 2201)
    boxes.update(box)
    assert clouds.by_id("pod-1", settings()) == box
    assert clouds.by_id("203.0.113.7", settings()) is None
    assert clouds.by_id("root@203.0.113.7:22", settings()) is None


def test_key_of_the_box_wins_over_the_setting():
    boxes.save(boxes.Known("i-1", "ec2", "198.51.100.1", key_file="ec2.pem"))
    assert found(None, settings(RUNPOD_SSH_KEY="pod_key")).key_file == "ec2.pem"
    assert found(Address("192.0.2.9"), settings(RUNPOD_SSH_KEY="pod_key")).key_file == "pod_key"


def test_setting_wins_over_the_key_of_a_pasted_command_line():
    pasted = "ssh root@203.0.113.7 -p 22001 -i ~/.ssh/usual"
    assert found(None, settings(RUNPOD_HOST=pasted)).key_file == "~/.ssh/usual"
    assert found(None, settings(RUNPOD_HOST=pasted, RUNPOD_SSH_KEY="mine")).key_file == "mine"


# --- a machine of EC2 that was stopped and started

ELSEWHERE = "127.0.0.2"  # nothing listens there


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine in the account, and what we knew of it before it moved."""
    with new_account(tmp_path, monkeypatch) as account:
        ec2 = boto3.client("ec2")
        made = ec2.run_instances(ImageId=account.image(), MinCount=1, MaxCount=1)["Instances"][0]
        yield Known(made["InstanceId"], "ec2", "192.0.2.1", user="ubuntu", region="us-east-1")


def test_aws_knows_the_new_address_and_the_box_is_kept_with_it(machine):
    boxes.save(boxes.Known("pod-1", "runpod", "198.51.100.1"))
    found = boto3.client("ec2").describe_instances(InstanceIds=[machine.id])["Reservations"][0]["Instances"]
    now = found[0]["PublicIpAddress"]
    assert current_address(machine, Settings.load()) == (now, 22) != (machine.host, 22)
    assert boxes.load(machine.id).host == now and boxes.current().id == "pod-1"


@pytest.mark.parametrize(
    ("ended", "line"),
    [(False, "AWS has no machine i-0123456789abcdef0 any more"), (True, "as it is terminated")],
)
def test_machine_that_has_ended_is_said_to_have_no_address(machine, ended, line):
    gone = machine if ended else replace(machine, id="i-0123456789abcdef0")
    if ended:
        boto3.client("ec2").terminate_instances(InstanceIds=[machine.id])
    with pytest.raises(NoAnswer, match=line):
        current_address(gone, Settings.load())


def test_aws_that_does_not_answer_is_no_other_error(machine):
    broken = Settings.load(env={"AWS_ACCESS_KEY_ID": "half"})
    assert current_address(machine, broken) is None


def test_box_of_no_cloud_is_not_looked_up():
    assert current_address(boxes.Known("mine", "ssh", "192.0.2.1"), settings()) is None


def test_machine_that_was_never_seen_here_is_found_by_its_id(machine):
    box = clouds.by_id(machine.id, Settings.load())
    assert (box.kind, box.user, box.region) == ("ec2", "ubuntu", "us-east-1")
    assert boxes.load(machine.id) == box and boxes.current() is None


def test_id_that_no_cloud_has_is_said(machine):
    with pytest.raises(BadInput, match="AWS has no machine i-0123456789abcdef0; see"):
        clouds.by_id("i-0123456789abcdef0", Settings.load())


def test_machine_without_an_address_is_said_to_be_stopped(machine):
    boto3.client("ec2").stop_instances(InstanceIds=[machine.id])
    with pytest.raises(UserError, match="has no address, as it is stopp"):
        clouds.by_id(machine.id, Settings.load())


def test_box_that_has_moved_is_connected_to_where_it_is(box, tmp_path):
    reported = []
    conn = opened(box, tmp_path, host=ELSEWHERE, report=reported.append, look_up=lambda: (box.host, box.port))
    assert conn.run("echo here").out == "here\n"
    conn.close()
    assert reported[0] == f"the box has moved from {ELSEWHERE}:{box.port} to {box.host}:{box.port}"


def test_machine_at_the_new_address_needs_the_pinned_key(box, tmp_path):
    with connected(box, tmp_path) as conn:
        conn.run("true")
    pin = tmp_path / "pins" / "known_hosts"  # as pinned at an address that it has left
    pin.write_text(pin.read_text().replace(box.host, "192.0.2.1"))
    box.rekey()
    with pytest.raises(OtherKey, match="has CHANGED"):
        opened(box, tmp_path, host=ELSEWHERE, look_up=lambda: (box.host, box.port)).run("true")


@pytest.mark.parametrize("known", [True, False])
def test_box_that_did_not_move_is_asked_for_once(box, tmp_path, known):
    asked = []
    now = (ELSEWHERE, box.port) if known else None
    conn = opened(box, tmp_path, host=ELSEWHERE, look_up=lambda: asked.append(1) or now)
    for _ in range(2):
        with pytest.raises(NoAnswer, match="nothing listens at"):
            conn.run("true")
    assert asked == [1]
