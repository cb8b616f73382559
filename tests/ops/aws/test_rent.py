"""ops/aws/rent.py: what holds for every machine, whether `inv launch` or `inv image` rents it."""

import threading
import time
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace

import boto3
import pytest

from ops.aws import machines, rent
from ops.aws.images import registry
from ops.aws.images.plan import plan_image
from ops.aws.launch import prepare
from ops.aws.launch.prepare import LaunchOptions
from ops.aws.rent import Rental, Timeouts
from ops.aws.session import PROJECT, Aws
from ops.repository import ROOT
from ops.settings import Settings
from tests.fakes.aws import tags
from tests.ops.aws.accounts import ready_account
from worker.errors import UserError
from worker.timestamps import stamp

NOW = datetime.now(UTC)
ENDS = {"launch": NOW + timedelta(hours=8), "image": NOW + timedelta(minutes=90)}
QUICK = Timeouts(poll=0.02, fresh_profile=30, busy=0.1, visible=1, strays=0.1)


@pytest.fixture(scope="module")
def rented(tmp_path_factory):
    """Both machines: what was planned, what was sent, and what EC2 shows of it."""
    folder = tmp_path_factory.mktemp("rented")
    with pytest.MonkeyPatch.context() as patch, ready_account(folder, patch) as account:
        patch.setattr(registry, "FILE", folder / "images.json")
        patch.setenv("MUSICGEN_BASE_IMAGE", account.image())
        us = Aws(Settings.load(), task="test")
        plan = prepare.prepare(us, LaunchOptions(), NOW, print).plan
        planned = {"launch": plan.machine(plan.candidates[0]), "image": plan_image(us, ROOT, NOW).machine}
        for machine in planned.values():
            Rental(us, machine.run_id, print).rent(machine)
        sent = dict(zip(planned, account.sent("RunInstances"), strict=True))
        volumes = boto3.client("ec2").describe_volumes()["Volumes"]
        yield SimpleNamespace(planned=planned, sent=sent, volumes=volumes)


@pytest.fixture(params=["launch", "image"])
def kind(request):
    """Who rents."""
    return request.param


def test_its_disk_is_encrypted_and_deleted_with_it(rented, kind):
    assert rented.sent[kind]["BlockDeviceMapping.1.Ebs.Encrypted"] == "true"
    assert rented.sent[kind]["BlockDeviceMapping.1.Ebs.DeleteOnTermination"] == "true"


def test_ec2_encrypts_both_disks(rented):
    assert [volume["Encrypted"] for volume in rented.volumes] == [True, True]


def test_its_metadata_needs_a_token(rented, kind):
    assert rented.sent[kind]["MetadataOptions.HttpTokens"] == "required"


def test_its_metadata_stays_on_the_machine(rented, kind):
    assert rented.sent[kind]["MetadataOptions.HttpPutResponseHopLimit"] == "1"


RESOURCES = ("instance", "volume", "network-interface")


@pytest.mark.parametrize(
    ("kind", "resource"),
    [*((kind, resource) for kind in ENDS for resource in RESOURCES), ("launch", "spot-instances-request")],
)
def test_its_tags_are_in_the_request(rented, kind, resource):
    found = tags(rented.sent[kind], resource)
    assert found["Project"] == PROJECT
    assert found["Name"].startswith("musicgen-")
    assert found["LaunchedBy"].startswith("arn:aws:")
    assert found["ExpiresAt"] == stamp(ENDS[kind])
    assert found["RunId"] == rented.planned[kind].run_id
    assert float(found["HourlyUsd"]) == rented.planned[kind].hourly_usd


def test_a_shutdown_ends_either_until_the_build_box_has_its_schedule(rented):
    found = {kind: sent["InstanceInitiatedShutdownBehavior"] for kind, sent in rented.sent.items()}
    assert found == {"launch": "terminate", "image": "terminate"}


def test_the_same_request_has_the_same_token_and_another_one_another(rented, kind):
    machine = rented.planned[kind]
    assert rented.sent[kind]["ClientToken"] == machine.to_ec2()["ClientToken"]
    assert len({sent["ClientToken"] for sent in rented.sent.values()}) == 2


def test_its_profile_is_that_of_setup(rented, kind):
    assert rented.sent[kind]["IamInstanceProfile.Name"] == "musicgen-worker-role"


# --- renting and ending


@pytest.fixture
def machine(account, us, monkeypatch, tmp_path):
    """What `inv image` would rent now."""
    monkeypatch.setattr(registry, "FILE", tmp_path / "images.json")
    monkeypatch.setenv("MUSICGEN_BASE_IMAGE", account.image())
    return plan_image(Aws(Settings.load(), task="test"), ROOT, datetime.now(UTC)).machine


def test_a_busy_ec2_is_asked_again_however_long_its_answers_take(account, us, machine, told):
    slow = Timeouts(poll=0.02, busy=0)
    account.fail("RunInstances", "RequestLimitExceeded", times=2, status=503)
    assert Rental(us, machine.run_id, told, slow).rent(machine) in account.alive()
    assert len({sent["ClientToken"] for sent in account.sent("RunInstances")}) == 1


def test_what_was_rented_is_ended_once(account, us, machine, told):
    rental = Rental(us, machine.run_id, told, QUICK)
    rental.rent(machine)
    rental.end()
    rental.end()
    assert account.alive() == []
    assert len(account.sent("TerminateInstances")) == 1


def test_a_machine_of_another_run_is_not_ended(account, us, machine, told):
    other = Rental(us, machine.run_id, told, QUICK).rent(machine)
    account.lose_answers["RunInstances"] = 99
    unheard = Rental(us, "another-run", told, QUICK)
    with pytest.raises(Exception, match="Connection"):
        unheard.rent(machine)
    unheard.end()
    assert account.alive() == [other]


def test_a_machine_that_cannot_be_ended_is_named_and_an_error(account, us, machine, told):
    rental = Rental(us, machine.run_id, told, QUICK)
    rented = rental.rent(machine)
    account.undying.add(rented)
    with pytest.raises(UserError, match=f"{rented} does not end"):
        rental.end()
    assert f"WARNING: {rented} may still be running" in str(told)


def test_a_look_before_ec2_shows_a_machine_settles_nothing_however_late_its_answer(
    account, us, machine, told, monkeypatch
):
    account.lag_s = 60
    account.lose_answers["RunInstances"] = 99
    limits = Timeouts(poll=0.02, busy=0.1, visible=5, strays=0.6)
    looks = []

    def slow(*args, really=machines.in_region, **filters):
        answer = really(*args, **filters)
        if not looks:
            time.sleep(0.7)
        looks.append(answer)
        return answer

    rental = Rental(us, machine.run_id, told, limits)
    with pytest.raises(Exception, match="Connection"):
        rental.rent(machine)
    monkeypatch.setattr(rent.machines, "in_region", slow)
    threading.Timer(0.3, setattr, (account, "lag_s", 0)).start()
    rental.end()
    assert (looks[0], account.alive()) == ([], [])


def test_a_machine_is_ended_though_nobody_can_be_told(account, us, machine):
    def closed(text):
        raise BrokenPipeError

    rental = Rental(us, machine.run_id, closed, QUICK)
    rental.rent(machine)
    rental.end()
    assert account.alive() == []
