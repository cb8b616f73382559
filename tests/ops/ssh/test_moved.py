"""A machine of EC2 that was stopped and started is found at its new address, and trusted by its key alone."""

from dataclasses import replace

import boto3
import pytest

from ops import boxes
from ops.boxes import Known
from ops.settings import Settings
from ops.ssh.box import NoAnswer, OtherKey
from ops.ssh.moved import address_now
from tests.ops.aws.accounts import new_account
from tests.ops.ssh.connect import connected, opened

ELSEWHERE = "127.0.0.2"  # nothing listens there


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """A machine in the account, and what we knew of it before it moved."""
    with new_account(tmp_path, monkeypatch) as account:
        ec2 = boto3.client("ec2")
        made = ec2.run_instances(ImageId=account.image(), MinCount=1, MaxCount=1)["Instances"][0]
        yield Known(made["InstanceId"], "ec2", "192.0.2.1", user="ubuntu", region="us-east-1")


def test_aws_knows_the_new_address_and_the_box_is_kept_with_it(machine):
    found = boto3.client("ec2").describe_instances(InstanceIds=[machine.id])["Reservations"][0]["Instances"]
    assert address_now(machine, Settings.load()) == found[0]["PublicIpAddress"] != machine.host
    assert boxes.current().host == found[0]["PublicIpAddress"]


def test_machine_that_aws_does_not_know_has_no_address(machine):
    gone = replace(machine, id="i-0123456789abcdef0")
    assert address_now(gone, Settings.load()) is None


def test_aws_that_does_not_answer_is_no_other_error(machine):
    broken = Settings.load(env={"AWS_ACCESS_KEY_ID": "half"})
    assert address_now(machine, broken) is None


def test_box_that_has_moved_is_connected_to_where_it_is(box, tmp_path):
    told = []
    conn = opened(box, tmp_path, host=ELSEWHERE, tell=told.append, moved=lambda: box.host)
    assert conn.run("echo here").out == "here\n"
    conn.close()
    assert told[0] == f"the box is no longer at {ELSEWHERE} but at {box.host}"


def test_machine_at_the_new_address_needs_the_pinned_key(box, tmp_path):
    with connected(box, tmp_path) as conn:
        conn.run("true")
    pin = tmp_path / "pins" / "known_hosts"  # as pinned at an address that it has left
    pin.write_text(pin.read_text().replace(box.host, "192.0.2.1"))
    box.rekey()
    with pytest.raises(OtherKey, match="has CHANGED"):
        opened(box, tmp_path, host=ELSEWHERE, moved=lambda: box.host).run("true")


@pytest.mark.parametrize("now", [None, ELSEWHERE])
def test_box_that_did_not_move_is_asked_for_once(box, tmp_path, now):
    asked = []
    conn = opened(box, tmp_path, host=ELSEWHERE, moved=lambda: asked.append(1) or now)
    for _ in range(2):
        with pytest.raises(NoAnswer, match="nothing listens at"):
            conn.run("true")
    assert asked == [1]
