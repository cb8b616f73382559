"""inv launch: one machine, with a price cap and a deadline, or none; whatever happens on the way."""

import json
import os
import re
import shlex
import signal
import sys
import threading
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import boto3
import pytest

from ops.aws import cli, machines, rent
from ops.aws.images import registry
from ops.aws.images.registry import CANDIDATES
from ops.aws.launch import launch, lease, prepare
from ops.aws.launch.prepare import LaunchOptions
from ops.aws.rent import Timeouts
from ops.aws.session import PROJECT, Aws
from ops.repository import ROOT
from ops.sampling import SamplingFlags
from ops.settings import Settings
from ops.speed import Speed
from tests.fakes.aws import user_data
from tests.ops.aws.accounts import BUCKET, PRICES, ready_account
from worker.engine import Sampling
from worker.errors import BadInput, UserError
from worker.songs import jobs
from worker.songs.maker import Maker
from worker.store.open import open_store

QUICK = Timeouts(poll=0.02, fresh_profile=30, busy=0.3, visible=2, running=20, strays=0.3)


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Short timeouts wherever a launch is begun."""
    monkeypatch.setattr(rent, "TIMEOUTS", QUICK)


@pytest.fixture
def plan(us, told):
    """A plan as `inv launch` would make it now."""
    return lambda **options: prepare.prepare(us, LaunchOptions(**options), datetime.now(UTC), told).plan


@pytest.fixture
def rented(us, told, plan):
    """Plan a launch and carry it out."""
    return lambda another=False, **options: launch.carry_out(us, plan(**options), another, told)


def with_run_id(plan, run_id):
    """The same plan for another run."""
    return replace(plan, boot=replace(plan.boot, run_id=run_id))


def requests(account):
    return [params for params in account.sent("RunInstances") if params.get("DryRun") != "true"]


def audit(folder):
    return [json.loads(line) for line in (folder / "audit.jsonl").read_text().splitlines()]


# --- what is asked of EC2


@pytest.fixture(scope="module")
def launched(tmp_path_factory):
    """One launch: the machine, the request that was sent, and what else it left in the account."""
    folder = tmp_path_factory.mktemp("launched")
    with pytest.MonkeyPatch.context() as patch, ready_account(folder, patch) as account:
        patch.setenv("MUSICGEN_MODELS_DIR", "/models")
        us = Aws(Settings.load(), task="launch")
        long_ago = datetime.now(UTC) - timedelta(hours=3)
        options = LaunchOptions(lifetime=timedelta(hours=2), keep_alive=True)
        plan = prepare.prepare(us, options, long_ago, lambda line: None).plan
        machine = launch.carry_out(us, plan, False, lambda line: None, QUICK).started
        (sent,) = requests(account)
        yield SimpleNamespace(
            machine=machine,
            sent=sent,
            env=env_of(sent),
            user_data=user_data(sent),
            schedule=boto3.client("scheduler").get_schedule(Name=f"musicgen-{machine.id}"),
            code=list(open_store(f"s3://{BUCKET}").list("album/code/")),
            audit=audit(folder),
        )


def test_the_maximum_price_goes_to_ec2_and_to_the_cost_report(launched):
    assert launched.sent["InstanceMarketOptions.SpotOptions.MaxPrice"] == "0.4000"
    assert launched.env["HOURLY_COST_USD"] == "0.4"
    assert launched.env["MUSICGEN_PRICE_PAID_USD"] == "0.190000"


def test_the_machine_gets_the_folder_for_models_that_is_set_and_no_other(launched):
    assert launched.env["MUSICGEN_MODELS_DIR"] == "/models"
    assert "MUSICGEN_HEARTMULA_DIR" not in launched.env


def test_an_explicit_hourly_cost_wins_in_the_report_and_not_at_ec2(account, monkeypatch, told):
    monkeypatch.setenv("HOURLY_COST_USD", "0.33")
    us = Aws(Settings.load())
    planned = prepare.prepare(us, LaunchOptions(max_price_usd=0.3), datetime.now(UTC), told).plan
    request = planned.machine(planned.candidates[0]).to_ec2()
    assert request["InstanceMarketOptions"]["SpotOptions"]["MaxPrice"] == "0.3000"
    assert "HOURLY_COST_USD='\"'\"'0.33'" in request["UserData"]


def test_the_spot_request_is_one_time_and_ends_with_an_interruption(launched):
    options = "InstanceMarketOptions.SpotOptions."
    assert launched.sent["InstanceMarketOptions.MarketType"] == "spot"
    assert launched.sent[options + "SpotInstanceType"] == "one-time"
    assert launched.sent[options + "InstanceInterruptionBehavior"] == "terminate"


def test_the_lifetime_is_counted_from_the_launch_and_not_from_the_plan(launched):
    life = launched.machine.expires_at - launched.machine.launched_at
    assert abs(life - timedelta(hours=2)) < timedelta(minutes=1)


def test_security_group_and_key_pair_are_those_of_setup(launched):
    assert launched.sent["KeyName"] == "musicgen-worker"
    assert launched.sent["NetworkInterface.1.SecurityGroupId.1"].startswith("sg-")


def test_nothing_secret_is_sent_with_the_machine(launched):
    assert "testing" not in launched.user_data


def test_the_schedule_outside_ends_it_after_its_end_date(launched):
    schedule, ends = launched.schedule, launched.machine.expires_at
    at = datetime.fromisoformat(schedule["ScheduleExpression"][3:-1]).replace(tzinfo=UTC)
    assert ends <= at <= ends + timedelta(minutes=15)
    assert schedule["ActionAfterCompletion"] == "DELETE"
    assert json.loads(schedule["Target"]["Input"]) == {"InstanceIds": [launched.machine.id]}
    assert schedule["Target"]["RoleArn"].endswith(":role/musicgen-scheduler-role")


def test_the_code_is_in_the_bucket_under_its_checksum(launched):
    (key,) = launched.code
    assert f"CODE_KEY={key}\n" in launched.user_data
    assert f"CODE_SHA256={Path(key).name.partition('.')[0]}\n" in launched.user_data


def test_keep_alive_reaches_the_worker_inside_the_lifetime(launched):
    assert launched.env["MUSICGEN_KEEP_ALIVE"] == "1"
    assert "\nMUSICGEN_DEADLINE=" in launched.user_data


def test_every_change_is_in_the_audit_log_with_its_price(launched):
    phases = [(line["action"], line["phase"]) for line in launched.audit]
    for action in ("s3.put_object", "ec2.run_instances", "scheduler.create_schedule"):
        assert phases.count((action, "intent")) == phases.count((action, "result")) == 1
    intent, result = (line for line in launched.audit if line["action"] == "ec2.run_instances")
    assert (result["instance_id"], result["price_usd"]) == (launched.machine.id, 0.19)
    assert set(intent["request"]["UserData"]) == {"sha256", "bytes"}


def test_without_the_schedule_it_is_told_and_goes_on(account, rented, told):
    account.fail("CreateSchedule", "AccessDeniedException", times=9)
    assert rented().started
    assert "warning: no EventBridge schedule ends the machine" in str(told)


def test_on_demand_has_no_market_and_is_held_to_the_cap_too(account, rented):
    with pytest.raises(UserError, match=r"no offer .* at \$0.40 per hour or less; the cheapest is \$0.526"):
        rented(on_demand=True)
    outcome = rented(on_demand=True, max_price_usd=0.6)
    (sent,) = requests(account)
    assert "InstanceMarketOptions.MarketType" not in sent
    assert not outcome.started.spot
    assert sent["InstanceInitiatedShutdownBehavior"] == "terminate"


def env_of(sent):
    """The environment file that the user data would write."""
    values = shlex.split(user_data(sent).split("\n# First boot")[0][20:])
    assigned = dict(part.split("=", 1) for part in values)
    return dict(line.split("=", 1) for line in shlex.split(assigned["WORKER_ENV"]))


# --- zones, prices and refusals


def test_the_cheapest_zone_is_asked_first_and_then_the_next(account, rented, told):
    account.capacity["us-east-1b"] = 0
    machine = rented().started
    assert machine.zone == "us-east-1a"
    assert "  refused g4dn.xlarge in us-east-1b: no free machine there now" in str(told)


def test_a_server_error_for_no_capacity_is_not_asked_twice(account, rented):
    account.capacity.update(dict.fromkeys(("us-east-1a", "us-east-1b", "us-east-1c"), 0))
    with pytest.raises(UserError, match="none of 3 offers could be rented, nothing is running"):
        rented()
    assert len(requests(account)) == 3


def test_a_zone_without_the_type_is_passed_by(account, rented, told):
    account.unsupported.add(("g4dn.xlarge", "us-east-1b"))
    assert rented().started.zone == "us-east-1a"
    assert "this type is not offered in that zone" in str(told)


def test_a_type_that_the_region_lacks_is_left_out(plan, told):
    assert {offer.instance_type for offer in plan(types="g9.xlarge,g4dn.xlarge").candidates} == {
        "g4dn.xlarge"
    }
    assert "warning: us-east-1 has no machine g9.xlarge; correct MUSICGEN_INSTANCE_TYPES" in str(told)
    with pytest.raises(BadInput, match=r"us-east-1 has no machine g9\.xlarge"):
        plan(types="g9.xlarge")


# --- the model that will run decides on GPU, disk and time


@pytest.fixture
def singing(account, monkeypatch):
    """A list for HeartMuLa, and a g5.xlarge to be had beside the g4dn.xlarge."""
    monkeypatch.setenv("MUSICGEN_MODEL", "heartmula")
    account.set_price("g5.xlarge", "us-east-1b", 0.3)


def test_a_gpu_that_the_model_does_not_fit_on_is_left_out(singing, plan, told):
    found = plan(types="g4dn.xlarge,g5.xlarge").candidates
    assert {offer.instance_type for offer in found} == {"g5.xlarge"}
    assert (
        "g4dn.xlarge is left out, as heartmula does not fit: 15.8 GB of GPU memory to use, 16.3 needed"
        in str(told)
    )


def test_no_gpu_that_the_model_fits_on_is_refused_with_some_that_it_does(singing, account, inv):
    done = inv("launch", "--dry-run")
    assert (done.code, account.sent("RunInstances")) == (2, [])
    (line,) = done.err.splitlines()
    assert line.startswith("error: heartmula does not fit on g4dn.xlarge (15.8 GB of GPU memory to use, ")
    assert "give larger types, like MUSICGEN_INSTANCE_TYPES=g5.xlarge,g6.xlarge" in line


def test_a_large_model_gets_a_larger_disk(singing, account, us, plan, told, monkeypatch):
    large = plan(types="g5.xlarge").prerequisites.disk_gib
    monkeypatch.setenv("MUSICGEN_MODEL", "facebook/musicgen-medium")
    usual = prepare.prepare(Aws(Settings.load()), LaunchOptions(), datetime.now(UTC), told).plan
    assert large - usual.prerequisites.disk_gib == 13  # of 22.4 GB of files, 8 GiB have room anyway


def test_time_and_cost_of_a_family_are_planned_at_its_own_speed(singing, plan):
    rows = {row["what"]: row["plan"] for row in plan(types="g5.xlarge").rows()}
    assert "at 1 s of audio a second (an estimate: its authors' figure" in rows["expected"]
    assert rows["expected"].startswith("$0.0575 in 11 min 30 s")  # 90 s of songs, ten minutes of overhead


def test_a_heartmula_here_that_is_not_whole_is_refused_without_any_network(tmp_path, monkeypatch):
    monkeypatch.setenv("MUSICGEN_HEARTMULA_DIR", str(tmp_path))
    with pytest.raises(BadInput, match=r"is empty; fetch it: `inv models --get heartmula-3b`"):
        prepare.check_list(Settings(output="s3://bucket-x", model="heartmula"), LaunchOptions())


CANNOT_RUN = {
    "Unsupported": "",
    "UnsupportedOperation": "",
    "InvalidParameterCombination": "",
    "InvalidParameterValue": "The architecture 'arm64' of the specified instance type does not match the "
    "architecture 'x86_64' of the specified AMI.",
}


@pytest.fixture
def two_types(account, us, told):
    """A plan with two types, the cheaper of which EC2 refuses in the given way; and that type's offers."""

    def planned(code):
        account.set_price("g5.xlarge", "us-east-1b", 0.1)
        account.fail(
            "RunInstances",
            code,
            times=99,
            when=lambda params: params["InstanceType"] == "g5.xlarge",
            message=CANNOT_RUN[code] or None,
        )
        options = LaunchOptions(types="g5.xlarge,g4dn.xlarge")
        return prepare.prepare(us, options, datetime.now(UTC), told).plan

    return planned


@pytest.mark.parametrize("code", CANNOT_RUN)
def test_a_type_that_cannot_run_is_passed_by(us, two_types, told, code):
    machine = launch.carry_out(us, two_types(code), False, told).started
    assert machine.instance_type == "g4dn.xlarge"
    assert "refused g5.xlarge in us-east-1b: " in str(told)


def test_dry_run_tries_the_next_type_too(account, us, two_types, told):
    launch.dry_run(us, two_types("InvalidParameterCombination"), told)
    assert "refused g5.xlarge in us-east-1b: " in str(told)
    assert told[-1] == "EC2 would accept the request for g4dn.xlarge in us-east-1b"


@pytest.mark.parametrize(
    "act", [launch.dry_run, lambda us, plan, told: launch.carry_out(us, plan, False, told)]
)
def test_all_refused_is_one_line_with_every_reason(account, us, two_types, told, act):
    planned = two_types("InvalidParameterCombination")
    account.fail("RunInstances", "UnfulfillableCapacity", times=3)
    with pytest.raises(UserError) as caught:
        act(us, planned, told)
    (line,) = str(caught.value).splitlines()
    assert line.startswith("none of 4 offers could be rented, nothing is running: ")
    assert "this type does not take these settings (g5.xlarge in us-east-1b)" in line
    assert "no free machine there now (g4dn.xlarge in us-east-1b, g4dn.xlarge in us-east-1a" in line


@pytest.mark.parametrize("setting", ["MUSICGEN_S3_PREFIX", "MUSICGEN_OUTPUT"])
def test_a_tag_that_is_too_long_is_refused_before_the_question(account, inv, monkeypatch, setting):
    start = "" if setting == "MUSICGEN_S3_PREFIX" else f"s3://{BUCKET}/"
    monkeypatch.setenv(setting, start + "a" * 250)
    done = inv("launch", "--dry-run")
    assert (done.code, account.sent("RunInstances"), done.out) == (2, [], "")
    (line,) = done.err.splitlines()
    assert line.startswith("error: the tag Output would have ") and line.endswith(
        "; shorten MUSICGEN_S3_PREFIX or MUSICGEN_OUTPUT"
    )


def test_several_types_are_one_list_of_offers(account, rented):
    account.set_price("g5.xlarge", "us-east-1c", 0.15)
    assert rented(types="g4dn.xlarge,g5.xlarge").started.instance_type == "g5.xlarge"


def test_zones_over_the_cap_are_never_asked(account, rented):
    account.capacity["us-east-1b"] = 0
    with pytest.raises(UserError, match="none of 1 offer "):
        rented(max_price_usd=0.2)
    assert len(requests(account)) == 1


def test_a_price_that_jumps_over_the_cap_passes_the_zone_by(account, us, plan, told):
    planned = plan()
    account.set_price("g4dn.xlarge", "us-east-1b", 0.9, ago=timedelta(0))
    assert launch.carry_out(us, planned, False, told).started.zone == "us-east-1a"
    assert "its price went over the maximum price (SpotMaxPriceTooLow)" in str(told)


def test_all_prices_over_the_cap_is_one_line_with_the_cheapest(account, rented):
    with pytest.raises(
        UserError, match=r"no offer for g4dn.xlarge in us-east-1 at \$0.10 .* cheapest is \$0.19"
    ):
        rented(max_price_usd=0.1)
    assert requests(account) == []


def test_an_on_demand_price_that_is_not_known_is_not_called_too_high(account, plan):
    account.refuse_always("GetProducts", "AccessDeniedException", 403)
    with pytest.raises(
        UserError, match=r"the on-demand price of g4dn.xlarge in us-east-1 is not known"
    ) as caught:
        plan(on_demand=True)
    assert "raise MUSICGEN_MAX_PRICE" not in str(caught.value)


def test_offers_only_in_zones_without_a_subnet_are_not_called_too_dear(account, inv, monkeypatch):
    subnets = boto3.client("ec2").describe_subnets()["Subnets"]
    elsewhere = next(subnet for subnet in subnets if subnet["AvailabilityZone"] not in PRICES)
    monkeypatch.setenv("MUSICGEN_SUBNET_ID", elsewhere["SubnetId"])
    done = inv("launch", "--dry-run")
    assert done.code == 1 and "offered only in zones without a subnet" in done.err
    assert "MUSICGEN_MAX_PRICE" not in done.err


REFUSALS = {
    "MaxSpotInstanceCountExceeded": "limit for spot GPU machines in us-east-1 is reached or 0",
    "VcpuLimitExceeded": "L-DB2E81BA",
    "UnauthorizedOperation": "AWS does not allow ec2:RunInstances",
    "InvalidAMIID.NotFound": "AWS does not know this machine image",
    "InvalidKeyPair.NotFound": "there is no key pair",
    "AuthFailure.ServiceLinkedRoleCreationNotPermitted": "iam:CreateServiceLinkedRole",
    "OptInRequired": "not ready for ec2:RunInstances",
    "SomethingNew": "AWS refused ec2:RunInstances",
}


def test_what_another_zone_cannot_mend_stops_at_once(account, us, plan, told):
    planned = plan()
    for n, (code, sentence) in enumerate(REFUSALS.items(), 1):
        account.fail("RunInstances", code)
        with pytest.raises(UserError, match=sentence):
            launch.carry_out(us, planned, False, told)
        assert len(requests(account)) == n
    assert account.alive() == []
    assert "ending " not in str(told)  # a refusal leaves nothing to wait for


def test_a_fresh_profile_is_waited_for_in_the_same_zone(account, rented, told):
    account.fail("RunInstances", "InvalidParameterValue", times=3)
    assert rented().started.zone == "us-east-1b"
    assert len(requests(account)) == 4
    assert len({sent["ClientToken"] for sent in requests(account)}) == 1


def test_throttling_is_tried_again_with_the_same_token(account, rented):
    account.fail("RunInstances", "RequestLimitExceeded", times=2, status=503)
    assert rented().started
    assert len({sent["ClientToken"] for sent in requests(account)}) == 1


def test_a_lost_answer_does_not_rent_twice(account, rented):
    account.lose_answers["RunInstances"] = 1
    assert rented().started
    assert len(account.alive()) == 1


def test_an_answer_that_never_comes_leaves_nothing_running(account, rented):
    account.lose_answers["RunInstances"] = 99
    with pytest.raises(UserError, match="no answer from AWS"):
        rented()
    assert account.alive() == []


def test_answers_that_are_a_proxy_s_page_leave_nothing_running(account, rented):
    account.garbled.add("RunInstances")
    with pytest.raises(UserError, match="an answer of AWS in us-east-1 broke off; check the network"):
        rented()
    assert account.alive() == []


def test_a_zero_quota_is_found_before_anything_is_asked(account, rented):
    account.quotas["ec2", "L-3819A6DF"] = 0.0
    with pytest.raises(UserError, match="limit is 0 virtual CPUs of spot GPU machines"):
        rented()
    assert account.sent("RunInstances") == []


def test_types_too_large_for_the_quota_are_left_out(account, plan, told):
    account.set_price("g4dn.2xlarge", "us-east-1a", 0.1)
    account.quotas["ec2", "L-3819A6DF"] = 4.0
    assert {offer.instance_type for offer in plan(types="g4dn.2xlarge,g4dn.xlarge").candidates} == {
        "g4dn.xlarge"
    }
    assert "g4dn.2xlarge is left out: it has 8 virtual CPUs, the account's limit is 4" in str(told)


def test_a_type_that_the_gpu_quota_does_not_count_needs_none_of_it(account, plan):
    account.set_price("c5.xlarge", "us-east-1a", 0.1)
    account.quotas["ec2", "L-3819A6DF"] = 0.0
    assert plan(types="c5.xlarge").candidates[0].instance_type == "c5.xlarge"


# --- what comes back is checked


LIES = {
    "InstanceMarketOptions.MarketType": "it is on-demand, not spot",
    "MetadataOptions.HttpTokens": "its metadata needs no token",
    "IamInstanceProfile.Name": "it has no instance profile",
    "BlockDeviceMapping.1.Ebs.Encrypted": "its disk is not encrypted",
    "BlockDeviceMapping.1.Ebs.DeleteOnTermination": "its disk would stay",
    "InstanceInitiatedShutdownBehavior": "a shutdown would not end it",
}


def test_a_machine_that_is_not_what_was_asked_for_is_ended(account, us, plan, told):
    planned = plan()
    for n, (lie, sentence) in enumerate(LIES.items(), 1):
        account.ignored = {lie}
        planned = with_run_id(planned, f"another-{n}")
        with pytest.raises(
            UserError, match=rf"is not what was asked for \([^;]*{sentence}[^;]*\); it was ended"
        ):
            launch.carry_out(us, planned, False, told)
        assert (len(requests(account)), account.alive()) == (n, [])


def test_a_price_over_the_cap_right_after_the_launch_ends_it(account, rented):
    account.after["RunInstances"] = lambda call: account.set_price(
        "g4dn.xlarge", "us-east-1b", 0.5, ago=timedelta(0)
    )
    with pytest.raises(UserError, match=r"its price is 0.5000 by now, over 0.4000"):
        rented()
    assert account.alive() == []


def test_a_machine_that_ec2_takes_back_at_once_is_an_error(account, rented):
    def take_back(call):
        (instance,) = account.alive()
        boto3.client("ec2").terminate_instances(InstanceIds=[instance])

    account.after["CreateSchedule"] = take_back
    account.pending_s = 0.5
    with pytest.raises(UserError, match=r"EC2 ended i-\w+ at once"):
        rented()


def test_the_launch_waits_until_everybody_can_see_the_machine(account, rented):
    account.lag_s = 0.4
    assert rented().started


@pytest.fixture
def impatient(monkeypatch):
    """What does not show or end is soon given up."""
    monkeypatch.setattr(rent, "TIMEOUTS", replace(QUICK, visible=0.1))


def test_a_machine_that_never_shows_is_ended_by_its_id(account, rented, impatient):
    account.lag_s = 60
    with pytest.raises(UserError, match="EC2 does not show i-"):
        rented()
    assert account.alive() == []


# --- one machine only


@pytest.mark.parametrize("state", ["running", "stopped"])
def test_a_machine_of_ours_in_any_region_stands_in_the_way(account, rented, machine, state, told):
    there = machine("eu-west-1")
    if state == "stopped":
        boto3.client("ec2", region_name="eu-west-1").stop_instances(InstanceIds=[there])
    outcome = rented()
    assert outcome.started is None and [each.id for each in outcome.there] == [there]
    assert requests(account) == []


def test_a_machine_of_somebody_else_does_not(account, rented, machine):
    machine(project=False)
    assert rented().started


def test_the_build_box_of_an_image_does_not(account, rented, machine):
    building = machine(Name=machines.BUILD_BOX)
    assert rented().started.id != building


def test_another_launches_beside_it(account, rented, machine):
    there = machine()
    assert rented(another=True).started.id != there
    assert len(account.alive(PROJECT)) == 2


def test_six_launches_at_once_in_different_orders_end_in_one_machine(account, plan):
    outcomes, failures = [], []
    gate, planned = threading.Barrier(6), plan()

    def one(n):
        try:
            mine = Aws(Settings.load(), task="launch")
            turned = [*planned.candidates[n % 3 :], *planned.candidates[: n % 3]]
            gate.wait()
            one_of_six = replace(with_run_id(planned, f"{planned.boot.run_id}{n}"), candidates=turned)
            outcomes.append(launch.carry_out(mine, one_of_six, False, lambda line: None))
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=one, args=(n,)) for n in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
    assert len(account.alive(PROJECT)) == 1
    started = [outcome.started for outcome in outcomes if outcome.started]
    assert [each.id for each in started] == account.alive(PROJECT)
    assert len(requests(account)) == 1


def test_should_the_lease_fail_the_younger_machine_is_ended(account, rented, machine):
    older = []

    def rent_without_our_lease(call):
        if not account.alive():
            del account.before["RunInstances"]
            older.append(machine())
            time.sleep(1)  # EC2 tells launch times in whole seconds

    account.before["RunInstances"] = rent_without_our_lease
    outcome = rented()
    assert outcome.started is None
    assert account.alive(PROJECT) == older


def test_a_lease_left_by_a_dead_launch_is_taken_over(account, told):
    store = open_store(f"s3://{BUCKET}")
    store.create(lease.KEY, b"what a dead one wrote")
    with lease.LaunchLease(store, told, poll_s=0.02, ttl_s=0.3) as held:
        held.check()
    assert "another launch is running; waiting for it" in str(told)
    assert store.list("locks/") == {}


def test_a_lease_that_is_renewed_is_waited_for(account, told):
    store = open_store(f"s3://{BUCKET}")
    order = []

    def second():
        with lease.LaunchLease(store, told, poll_s=0.02, ttl_s=0.6):
            order.append("second")

    waiting = threading.Thread(target=second)
    with lease.LaunchLease(store, told, ttl_s=0.6):
        waiting.start()
        waiting.join(1.0)
        order.append("first")
    waiting.join()
    assert order == ["first", "second"]


def test_a_lease_that_could_not_be_renewed_in_time_is_no_permission(account, told):
    with lease.LaunchLease(open_store(f"s3://{BUCKET}"), told, ttl_s=0.3) as held:
        held.check()
        account.fail(f"PUT /{BUCKET}/{lease.KEY}", "AccessDenied", times=99, status=403)
        time.sleep(0.4)
        with pytest.raises(UserError, match="another launch may have begun"):
            held.check()


# --- without setup


def test_everything_that_setup_makes_is_named_when_it_is_missing(account, monkeypatch, told):
    monkeypatch.setenv("MUSICGEN_S3_BUCKET", "musicgen-batch-output-other")
    monkeypatch.setenv("MUSICGEN_INSTANCE_PROFILE", "nobody")
    monkeypatch.setenv("MUSICGEN_KEY_NAME", "no-key")
    monkeypatch.setenv("MUSICGEN_AMI_ID", "ami-00000000")
    with pytest.raises(BadInput) as caught:
        prepare.prepare(Aws(Settings.load()), LaunchOptions(), datetime.now(UTC), told)
    missing = str(caught.value).splitlines()
    for what in ("bucket musicgen-batch-output-other", "instance profile nobody", "key pair no-key"):
        assert any(f"there is no {what}" in line and "inv setup" in line for line in missing)
    assert any("image ami-00000000" in line for line in missing)


def test_a_missing_firewall_is_made_for_our_address_alone(account, us, told, monkeypatch):
    ec2 = boto3.client("ec2")
    named = [{"Name": "group-name", "Values": ["musicgen-worker"]}]
    old = ec2.describe_security_groups(Filters=named)["SecurityGroups"][0]["GroupId"]
    ec2.delete_security_group(GroupId=old)
    monkeypatch.setenv("MUSICGEN_SSH_FROM", "203.0.113.7")
    mine = Aws(Settings.load(), task="launch")
    planned = prepare.prepare(mine, LaunchOptions(), datetime.now(UTC), told).plan
    launch.dry_run(mine, planned, told)
    assert ec2.describe_security_groups(Filters=named)["SecurityGroups"] == []
    assert launch.carry_out(mine, planned, False, told).started
    (made,) = ec2.describe_security_groups(Filters=named)["SecurityGroups"]
    assert requests(account)[0]["NetworkInterface.1.SecurityGroupId.1"] == made["GroupId"]
    assert [r["CidrIp"] for rule in made["IpPermissions"] for r in rule["IpRanges"]] == ["203.0.113.7/32"]


def test_without_an_image_of_ours_aws_s_own_will_do(account, us, told, monkeypatch, tmp_path):
    monkeypatch.delenv("MUSICGEN_AMI_ID")
    monkeypatch.setattr(registry, "FILE", tmp_path / "images.json")
    mine = Aws(Settings.load(), task="launch")
    with pytest.raises(BadInput, match=r"there is no machine image for us-east-1: .*inv image --bases"):
        prepare.prepare(mine, LaunchOptions(), datetime.now(UTC), told)
    account.parameters = {CANDIDATES[0]: account.image()}
    planned = prepare.prepare(mine, LaunchOptions(), datetime.now(UTC), told).plan
    assert planned.prerequisites.image == account.image()
    assert "the first boot installs everything" in str(planned.rows())
    assert "in 41 min 0 s" in str(planned.rows())  # of them 30 for that


def test_a_hub_token_is_said_not_to_go_along(account, told, monkeypatch):
    monkeypatch.setenv("HF_TOKEN", "hf_0123456789")
    mine = Aws(Settings.load(), task="launch")
    planned = prepare.prepare(mine, LaunchOptions(), datetime.now(UTC), told).plan
    assert "HF_TOKEN is not sent along" in str(told)
    assert "hf_0123456789" not in planned.user_data(planned.candidates[0])


def start_launch():
    options = LaunchOptions()
    cli.launch_machine(Settings.load(), options, dry_run=False, yes=True, json=False)


def test_without_a_bucket_it_says_so_before_any_network(monkeypatch, account):
    monkeypatch.delenv("MUSICGEN_S3_BUCKET")
    with pytest.raises(BadInput, match="MUSICGEN_S3_BUCKET is not set"):
        start_launch()
    assert account.calls == []


def test_a_wrong_list_is_refused_before_any_network(account, tmp_path):
    (tmp_path / "prompts.txt").write_text("nothing else\n")
    with pytest.raises(BadInput, match=r"prompts.txt:1: "):
        start_launch()
    assert account.calls == []


# --- as the user sees it


def test_launch_shows_zones_plan_and_worst_case_and_then_the_machine(account, inv, tmp_path):
    done = inv("launch", "--yes")
    assert done.code == 0, done.err
    (instance,) = account.alive(PROJECT)
    for part in (
        "us-east-1c",
        "$0.40 per hour",
        "$3.20 (whole lifetime at the maximum price)",
        "2 songs, 1 min 30 s",
    ):
        assert part in done.out
    assert instance in done.out
    assert "end it now  inv kill-all" in done.err
    box = json.loads((tmp_path / ".boxes" / instance / "box.json").read_text())
    assert (box["kind"], box["user"], box["region"]) == ("ec2", "ubuntu", "us-east-1")
    assert (tmp_path / ".boxes" / "current").read_text().strip() == instance


def test_a_second_launch_shows_the_first_and_is_no_error(account, inv):
    assert inv("launch", "--yes").code == 0
    again = inv("launch", "--yes")
    assert again.code == 0
    assert "there is a machine already, nothing was launched: i-" in again.err
    assert len(account.alive(PROJECT)) == 1


def test_dry_run_asks_ec2_and_creates_nothing(account, inv):
    done = inv("launch", "--dry-run")
    assert done.code == 0, done.err
    assert "EC2 would accept the request for g4dn.xlarge in us-east-1b" in done.err
    assert [sent["DryRun"] for sent in account.sent("RunInstances")] == ["true"]
    assert account.alive() == []
    writes = ("Create", "Put", "Delete", "PUT", "DELETE", "POST", "Terminate")
    assert [call.action for call in account.calls if call.action.startswith(writes)] == []


def test_specification_names_what_a_launch_reads_and_its_dry_run_does_not(account, inv):
    assert inv("launch", "--dry-run").code == 0
    tried = {call.action for call in account.calls}
    account.calls.clear()
    assert inv("launch", "--yes").code == 0
    reads = {call.action for call in account.calls if call.action.startswith(("Describe", "Get", "List"))}
    (point,) = re.findall(r"^\| S1\.1\.2 .*", (ROOT / "docs" / "specification.md").read_text("utf-8"), re.M)
    assert {f"ec2:{action}" for action in reads - tried} == set(re.findall(r"`(ec2:\w+)`", point))


def test_dry_run_without_permission_is_1(account, inv):
    account.fail("RunInstances", "UnauthorizedOperation")
    done = inv("launch", "--dry-run")
    assert done.code == 1
    assert "error: AWS does not allow ec2:RunInstances" in done.err


def test_without_a_terminal_and_without_yes_it_refuses(account, inv):
    done = inv("launch")
    assert done.code == 3
    assert account.sent("RunInstances") == []


def test_nothing_left_to_make_launches_nothing(account, us, told, tmp_path):
    store = open_store(f"s3://{BUCKET}/album")
    for job in jobs.load(tmp_path / "prompts.txt"):
        store.write(job.song, b"a song of somebody else")
    assert prepare.prepare(us, LaunchOptions(), datetime.now(UTC), told) is None


def test_the_pace_of_the_last_run_on_a_gpu_is_expected_again(account, us, told):
    store = open_store(f"s3://{BUCKET}/album")
    for run, device, factor in (("2025", "Tesla T4", 4.0), ("2026", "cpu", 0.5)):
        summary = {"run_id": run, "real_time_factor": factor, "engine": {"device": device}}
        store.write(f"runs/{run}/summary.json", json.dumps(summary).encode())
    work = prepare.prepare(us, LaunchOptions(), datetime.now(UTC), told).plan.workload
    assert (work.speed, work.audio_s) == (Speed(4.0, "as in run 2025 on Tesla T4"), 90.0)


def test_sampling_is_passed_to_the_worker(account, us, told):
    options = LaunchOptions(sampling=SamplingFlags(temperature="0.9", stride="12"))
    given = prepare.prepare(us, options, datetime.now(UTC), told).plan.boot.worker_options
    assert {"--temperature=0.9", "--stride=12"} <= set(given)


def test_other_sampling_than_the_output_s_is_refused_before_money_is_spent(account, us, told):
    there = Maker("facebook/musicgen-medium", "r", Sampling(temperature=0.9), 30.0, 18.0)
    open_store(f"s3://{BUCKET}/album").write("place.json", there.to_json())
    with pytest.raises(BadInput, match=r"is for songs made with temperature 0\.9, not 1\.0"):
        prepare.prepare(us, LaunchOptions(), datetime.now(UTC), told)
    chosen = LaunchOptions(sampling=SamplingFlags(temperature="0.9"))
    assert prepare.prepare(us, chosen, datetime.now(UTC), told)


def test_wrong_sampling_is_refused_without_any_network():
    with pytest.raises(BadInput, match="--stride must be from 1 to under 30"):
        prepare.check_list(
            Settings(output="s3://bucket-x"), LaunchOptions(sampling=SamplingFlags(stride="30"))
        )


def test_weights_that_forbid_commercial_use_are_refused_without_any_network():
    with pytest.raises(BadInput, match="forbids commercial use"):
        prepare.check_list(Settings(output="s3://bucket-x"), LaunchOptions(commercial=True))
    with pytest.raises(BadInput, match="forbids commercial use"):
        prepare.check_list(Settings(output="s3://bucket-x", commercial="1"), LaunchOptions())


# --- Ctrl-C


MOMENTS = {
    "while the prices are asked": ("before", "DescribeSpotPriceHistory"),
    "while EC2 works on the request": ("before", "RunInstances"),
    "after EC2 has acted, before its answer": ("after", "RunInstances"),
    "while the schedule is set": ("before", "CreateSchedule"),
    "while the machine is checked": ("before", "DescribeVolumes"),
}


def press(account, moment, pressed):
    """At this moment of the next launch call `pressed`, once."""
    side, action = MOMENTS[moment]
    hit = threading.Event()

    def hook(call):
        if not hit.is_set() and call.params.get("DryRun") != "true":
            hit.set()
            pressed()

    getattr(account, side)[action] = hook
    return hit


def assert_nothing_is_left(account, err):
    assert account.alive() == []
    assert "Traceback" not in err
    assert boto3.client("scheduler").list_schedules()["Schedules"] == []
    assert open_store(f"s3://{BUCKET}").list("locks/") == {}


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT to this process")
@pytest.mark.parametrize(
    ("number", "moment"),
    [
        *((signal.SIGINT, moment) for moment in MOMENTS),
        # once where a signal is held back, once where it is not
        (signal.SIGTERM, "after EC2 has acted, before its answer"),
        (signal.SIGTERM, "while the schedule is set"),
    ],
)
def test_a_launch_that_is_stopped_leaves_nothing(account, inv, moment, number):
    hit = press(account, moment, lambda: os.kill(os.getpid(), number))
    done = inv("launch", "--yes")
    assert hit.is_set()
    assert done.code == 75, done.err
    assert_nothing_is_left(account, done.err)


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT to another process")
def test_a_launch_of_its_own_process_that_is_stopped_leaves_nothing(account, commands, tmp_path):
    process = []
    hit = press(account, "while EC2 works on the request", lambda: os.kill(process[0], signal.SIGINT))
    done = commands(
        "inv",
        *("--search-root", str(ROOT), "launch", "--yes"),
        cwd=tmp_path,
        env=os.environ,
        started=process.append,
    )
    assert hit.is_set()
    assert done.returncode == 75, done.stderr
    assert_nothing_is_left(account, done.stderr.decode())


def test_a_machine_that_cannot_be_ended_is_named_loudly(account, rented, told, impatient):
    account.after["RunInstances"] = lambda call: account.undying.update(account.alive())
    account.fail("CreateSchedule", "AccessDeniedException")
    account.ignored.add("MetadataOptions.HttpTokens")
    with pytest.raises(UserError):
        rented()
    assert f"WARNING: {account.alive()[0]} may still be running" in str(told)
    assert "inv kill-all" in str(told)


# --- a machine that not all of EC2 knows yet


@pytest.mark.parametrize(
    ("action", "code"),
    [
        ("DescribeInstanceAttribute", "InvalidInstanceID.NotFound"),
        ("DescribeVolumes", "InvalidVolume.NotFound"),
    ],
)
def test_machine_that_ec2_does_not_know_everywhere_yet_is_kept(account, rented, action, code):
    account.fail(action, code)
    machine = rented().started
    assert account.alive() == [machine.id]


def test_schedule_of_a_fresh_role_is_armed_at_the_second_try(account, rented, told):
    account.fail("CreateSchedule", "ValidationException")
    machine = rented().started
    (made,) = boto3.client("scheduler").list_schedules()["Schedules"]
    assert made["Name"] == f"musicgen-{machine.id}" and "warning" not in str(told)


def test_quota_without_an_answer_is_a_warning(account, plan, told):
    account.refuse_always("GetServiceQuota", "AccessDeniedException")
    assert plan().candidates and "limit is not known" in str(told)


# --- the network


def test_public_address_is_asked_for_in_the_request(account, rented):
    ec2 = boto3.client("ec2")
    for subnet in ec2.describe_subnets()["Subnets"]:
        ec2.modify_subnet_attribute(SubnetId=subnet["SubnetId"], MapPublicIpOnLaunch={"Value": False})
    assert rented().started.address
    (sent,) = requests(account)
    assert sent["NetworkInterface.1.AssociatePublicIpAddress"] == "true"


def test_machine_without_a_public_address_is_ended(account, rented, impatient):
    account.ignored = {"NetworkInterface.1.AssociatePublicIpAddress"}
    ec2 = boto3.client("ec2")
    for subnet in ec2.describe_subnets()["Subnets"]:
        ec2.modify_subnet_attribute(SubnetId=subnet["SubnetId"], MapPublicIpOnLaunch={"Value": False})
    with pytest.raises(UserError, match="no public address, so it reaches nothing"):
        rented()
    assert account.alive() == []


def test_own_subnet_is_the_only_one_and_decides_on_the_address(account, told, monkeypatch):
    ec2 = boto3.client("ec2")
    own = ec2.describe_subnets()["Subnets"][0]
    monkeypatch.setenv("MUSICGEN_SUBNET_ID", own["SubnetId"])
    us = Aws(Settings.load(), task="test")
    plan = prepare.prepare(us, LaunchOptions(), datetime.now(UTC), told).plan
    assert {candidate.subnet for candidate in plan.candidates} == {own["SubnetId"]}
    (card,) = plan.machine(plan.candidates[0]).to_ec2()["NetworkInterfaces"]
    assert card["SubnetId"] == own["SubnetId"] and "AssociatePublicIpAddress" not in card


def test_unknown_own_subnet_is_bad_input(account, told, monkeypatch):
    monkeypatch.setenv("MUSICGEN_SUBNET_ID", "subnet-0123")
    us = Aws(Settings.load(), task="test")
    with pytest.raises(BadInput, match="no subnet subnet-0123; correct MUSICGEN_SUBNET_ID"):
        prepare.prepare(us, LaunchOptions(), datetime.now(UTC), told)


def test_on_demand_launch_checks_the_on_demand_quota(account, plan):
    account.quotas["ec2", "L-DB2E81BA"] = 0
    assert plan().candidates
    with pytest.raises(UserError, match=r"on-demand GPU machines.*L-DB2E81BA"):
        plan(on_demand=True, max_price_usd=0.6)
