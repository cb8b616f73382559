"""inv image: an image only of a box that tested itself; the box is ended whatever happens."""

import json
import os
import re
import signal
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace

import boto3
import pytest
from botocore.exceptions import ClientError, ResponseStreamingError
from botocore.response import StreamingBody

from ops import repository
from ops.aws import rent
from ops.aws.fleet import kill
from ops.aws.fleet.status import fleet_status
from ops.aws.images import build, registry
from ops.aws.images.build import ImageBuild
from ops.aws.images.plan import BUILD_LIMIT_MIN, plan_image, requirements_hash
from ops.aws.images.registry import BASES, CANDIDATES
from ops.aws.machines import BUILD_BOX
from ops.aws.rent import Timeouts
from ops.aws.session import PROJECT, Aws
from ops.settings import Settings
from tests.fakes.aws import tags, user_data
from tests.ops.aws.accounts import BUCKET, ready_account
from worker.errors import BadInput, Interrupted, UserError

ROOT = Path(__file__).parents[4]
NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)
GOOD = {"schema": 1, "ok": True, "step": "ready", "exit_code": 0, "driver": "570.1", "torch": "2.13.0"}


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Short timeouts wherever a box is rented."""
    monkeypatch.setattr(
        rent, "TIMEOUTS", Timeouts(poll=0.02, fresh_profile=30, busy=0.1, visible=2, strays=1)
    )


@pytest.fixture
def images_json(tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "FILE", tmp_path / "images.json")
    return tmp_path / "images.json"


def offer_bases(account):
    """AWS offers one of the base images that we know, and another one."""
    account.parameters = {
        CANDIDATES[1]: account.image(),
        f"{BASES}/other/latest/ami-id": "ami-0ther",
        f"{BASES}/x/notes": "y",
    }


@pytest.fixture
def us(account, images_json):
    """The account of `inv setup`, in which AWS offers a base image."""
    offer_bases(account)
    return Aws(Settings.load(), task="image")


def carry_out(us, told, box):
    """Carry out a build; while it waits, `box(instance, plan)` plays the machine, once."""
    plan = plan_image(us, ROOT, NOW)
    left = [box]

    def pause(seconds):
        time.sleep(min(seconds, 0.1))
        alive = boxes()
        if left and alive:
            left.pop()(alive[0], plan)

    return ImageBuild(us, plan, told, pause=pause).carry_out()


@pytest.fixture
def run(us, told):
    return lambda box: carry_out(us, told, box)


def boxes():
    filters = [
        {"Name": "tag:Name", "Values": [BUILD_BOX]},
        {"Name": "instance-state-name", "Values": ["pending", "running", "stopped"]},
    ]
    answer = boto3.client("ec2").describe_instances(Filters=filters)
    return [box["InstanceId"] for r in answer["Reservations"] for box in r["Instances"]]


def box_that(answers, log="one\ntwo\n"):
    """A machine that leaves this answer in the bucket and stops."""

    def box(instance, plan):
        s3 = boto3.client("s3")
        if answers is not None:
            s3.put_object(Bucket=plan.bucket, Key=plan.result_key, Body=json.dumps(answers))
            s3.put_object(Bucket=plan.bucket, Key=plan.log_key, Body=log)
        boto3.client("ec2").stop_instances(InstanceIds=[instance])

    return box


# --- the plan


def test_plan_rents_nothing(us, account):
    plan = plan_image(us, ROOT, NOW)
    assert account.sent("RunInstances") == [] and boxes() == []
    text = str(plan.rows())
    assert CANDIDATES[1] in text and "$0.526 per hour" in text and "$0.789 at most" in text


def test_dry_run_asks_ec2_without_renting(us, account, told):
    ImageBuild(us, plan_image(us, ROOT, NOW), told).dry_run()
    (sent,) = account.sent("RunInstances")
    assert sent["DryRun"] == "true" and boxes() == []


def test_dry_run_names_the_missing_permission(us, account, told):
    account.fail("RunInstances", "UnauthorizedOperation", status=403)
    with pytest.raises(UserError, match="ec2:RunInstances"):
        ImageBuild(us, plan_image(us, ROOT, NOW), told).dry_run()


def test_base_image_can_be_named(us, monkeypatch):
    assert registry.resolve_base(us)[0] == CANDIDATES[1]
    us.settings.__dict__["base_image"] = "ami-0123"
    assert registry.resolve_base(us) == ("ami-0123", "ami-0123")
    us.settings.__dict__["base_image"] = f"{BASES}/other/latest/ami-id"
    assert registry.resolve_base(us)[1] == "ami-0ther"


def test_unknown_base_image_says_where_to_look(us, account):
    account.parameters = {}
    with pytest.raises(BadInput, match="inv image --bases"):
        registry.resolve_base(us)


def test_bases_lists_the_candidates(us):
    assert [row["name"] for row in registry.bases(us)] == [CANDIDATES[1], f"{BASES}/other/latest/ami-id"]


def test_user_data_fits_and_ends_the_box_first(us):
    script = plan_image(us, ROOT, NOW).machine.user_data
    assert len(script.encode()) <= 16 * 1024
    commands = [line for line in script.splitlines() if re.match("[a-z]", line) and "=" not in line]
    assert commands[0].startswith("shutdown -P ") or "shutdown -P" in script.split("set -euo")[0]


def test_user_data_holds_no_secret(us):
    text = plan_image(us, ROOT, NOW).machine.user_data
    assert us.settings.aws_secret_access_key not in re.sub("MODEL=.*|DEVICE=.*", "", text)


def test_a_tag_that_is_too_long_is_refused_before_the_question(us, account):
    us.settings.__dict__["model"] = "m/" + "m" * 255  # no part is longer than a file system takes
    with pytest.raises(BadInput, match=r"the tag Model would have 257 characters.*; shorten MUSICGEN_MODEL"):
        plan_image(us, ROOT, NOW)
    assert account.sent("RunInstances") == []


# --- a good build


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """One good build: the image, the request for its box, and what it left in the account."""
    folder = tmp_path_factory.mktemp("built")
    with pytest.MonkeyPatch.context() as patch, ready_account(folder, patch) as account:
        patch.setattr(registry, "FILE", folder / "images.json")
        offer_bases(account)
        us = Aws(Settings.load(), task="image")
        made = carry_out(us, lambda line: None, box_that(GOOD))
        (sent,) = account.sent("RunInstances")
        ec2 = boto3.client("ec2")
        described = ec2.describe_images(ImageIds=[made.ami])["Images"][0]
        (snapshot,) = ec2.describe_snapshots(SnapshotIds=registry.snapshots_of(described))["Snapshots"]
        code = boto3.client("s3").list_objects_v2(Bucket=BUCKET, Prefix="album/code/")["Contents"]
        yield SimpleNamespace(
            image=made,
            sent=sent,
            described=described,
            snapshot=snapshot,
            listed=registry.found(us),
            boxes=boxes(),
            schedules=boto3.client("scheduler").list_schedules()["Schedules"],
            code=[entry["Key"] for entry in code],
            folder=folder,
        )


def test_build_box_is_on_demand_and_has_its_name_and_deadline(built):
    sent = built.sent
    assert "InstanceMarketOptions.MarketType" not in sent
    found = tags(sent)
    assert (found["Name"], found["ExpiresAt"]) == (BUILD_BOX, "2026-11-22T13:30:00Z")
    assert found["HourlyUsd"] == "0.526000"
    assert user_data(sent).startswith("#!/usr/bin/env bash\n")


def test_image_bears_what_it_was_made_from(built):
    found = {tag["Key"]: tag["Value"] for tag in built.described["Tags"]}
    assert found["Project"] == PROJECT and found["Requirements"] == requirements_hash(ROOT)
    assert found["Commit"] == repository.commit(ROOT) != ""
    assert {"Key": "Project", "Value": PROJECT} in built.snapshot["Tags"]


def test_image_is_recorded_and_is_the_newest(built, monkeypatch):
    monkeypatch.setattr(registry, "FILE", built.folder / "images.json")
    assert registry.newest("us-east-1") == built.image.ami and registry.newest("eu-west-1") is None
    (recorded,) = registry.recorded()
    assert recorded.name == "musicgen-worker-v1"


def test_box_and_its_schedule_are_gone_after_the_image(built):
    assert (built.boxes, built.schedules) == ([], [])


def test_code_is_in_the_bucket_under_its_checksum(built):
    (key,) = built.code
    assert re.fullmatch(r"album/code/[0-9a-f]{64}\.tar\.gz", key)


def test_images_are_listed_with_what_they_cost(built):
    (row,) = built.listed
    assert (row.name, row.state, row.model) == ("musicgen-worker-v1", "available", "facebook/musicgen-small")
    assert row.month_usd == pytest.approx(row.disk_gib * 0.05)


# --- whatever happens


def no_image_and_no_box(images_json):
    assert boxes() == []
    assert boto3.client("ec2").describe_images(Owners=["self"])["Images"] == []
    assert not images_json.exists()


def test_failed_step_is_named_with_the_end_of_its_log(us, run, told, images_json):
    bad = GOOD | {"ok": False, "step": "model", "exit_code": 1}
    with pytest.raises(UserError, match="failed at `model`"):
        run(box_that(bad, log="a\nno kernel image is available\n"))
    assert "no kernel image is available" in str(told)
    no_image_and_no_box(images_json)


@pytest.mark.parametrize("answer", [None, {}, {"ok": False}], ids=["none", "empty", "short"])
def test_box_without_a_whole_result_makes_no_image(us, run, images_json, answer):
    with pytest.raises(UserError, match="without a result"):
        run(box_that(answer))
    no_image_and_no_box(images_json)


def test_a_result_that_breaks_off_is_read_again(us, run, monkeypatch):
    whole, cuts = StreamingBody.read, [ResponseStreamingError(error="cut")]

    def read(body, amt=None):
        if cuts:
            raise cuts.pop()
        return whole(body, amt)

    monkeypatch.setattr(StreamingBody, "read", read)
    assert run(box_that(GOOD)).ami
    assert not cuts


def test_box_that_somebody_ended_makes_no_image(us, run, images_json):
    def ended(instance, plan):
        boto3.client("ec2").terminate_instances(InstanceIds=[instance])

    with pytest.raises(UserError, match="terminated by somebody else"):
        run(ended)
    no_image_and_no_box(images_json)


def test_ctrl_c_ends_the_box(us, run, images_json):
    def pressed(instance, plan):
        raise KeyboardInterrupt

    with pytest.raises(Interrupted):
        run(pressed)
    no_image_and_no_box(images_json)


def test_box_that_never_ends_is_ended(us, told, images_json, monkeypatch):
    monkeypatch.setattr(build, "BOX_LIMIT_S", 0.2)
    plan = plan_image(us, ROOT, NOW)
    with pytest.raises(UserError, match="did not finish"):
        ImageBuild(us, plan, told, pause=lambda s: time.sleep(0.05)).carry_out()
    no_image_and_no_box(images_json)


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT to this process")
def test_ctrl_c_while_ec2_rents_ends_a_box_that_no_search_shows_yet(account, run, images_json):
    account.lag_s = 60
    account.before["RunInstances"] = lambda call: os.kill(os.getpid(), signal.SIGINT)
    account.fail("TerminateInstances", "InvalidInstanceID.NotFound")
    with pytest.raises(Interrupted):
        run(box_that(GOOD))
    assert account.alive() == []
    no_image_and_no_box(images_json)


def test_schedule_ends_a_box_that_nobody_waits_for(us, run):
    def looked_at(instance, plan):
        made.append(boto3.client("scheduler").get_schedule(Name=f"musicgen-{instance}"))
        raise KeyboardInterrupt

    made = []
    with pytest.raises(Interrupted):
        run(looked_at)
    at = datetime.fromisoformat(made[0]["ScheduleExpression"][3:-1]).replace(tzinfo=UTC)
    # Not while AWS may still copy its disk.
    left = at - datetime.now(UTC)
    assert timedelta(minutes=BUILD_LIMIT_MIN, seconds=build.IMAGE_LIMIT_S) < left < timedelta(hours=3)
    assert boto3.client("scheduler").list_schedules()["Schedules"] == []


def test_without_the_schedule_there_is_no_build(account, run, images_json):
    account.refuse_always("CreateSchedule", "AccessDeniedException")
    with pytest.raises(UserError, match=r"no EventBridge schedule would end the build box .* run inv setup"):
        run(box_that(GOOD))
    no_image_and_no_box(images_json)


def test_schedule_of_a_fresh_role_is_waited_for(account, run):
    account.fail("CreateSchedule", "ValidationException")
    assert run(box_that(GOOD)).name == "musicgen-worker-v1"


class Killed(BaseException):
    """What nothing catches, and after which nothing of the builder reaches AWS any more."""


def killed(us, told, event, operation):
    """Carry out a build that is killed at this call."""
    gone = []

    def die(model, **_):
        if model.name == operation and boxes():
            gone.append(operation)
            raise Killed

    def stay_dead(**_):
        if gone:
            raise Killed

    us._session.events.register(event, die)
    us._session.events.register_first("before-call", stay_dead)
    with pytest.raises((Killed, UserError)):
        carry_out(us, told, box_that(GOOD))


POINTS = [
    ("after-call", "RunInstances", False),
    ("after-call", "CreateSchedule", False),
    ("after-call", "ModifyInstanceAttribute", False),
    ("before-call", "CreateImage", False),
    ("after-call", "CreateImage", False),
    ("before-call", "TerminateInstances", False),
    # where no schedule can be armed
    ("after-call", "ModifyInstanceAttribute", True),
    ("before-call", "CreateImage", True),
    ("before-call", "TerminateInstances", True),
]


@pytest.mark.parametrize(("event", "operation", "refused"), POINTS)
def test_what_a_killed_builder_leaves_ends_by_itself_and_is_found(
    us, account, told, monkeypatch, event, operation, refused
):
    if refused:
        account.refuse_always("CreateSchedule", "AccessDeniedException")
    killed(us, told, event, operation)
    account.before.clear()
    scheduled = {made["Name"] for made in boto3.client("scheduler").list_schedules()["Schedules"]}
    asked = {"Attribute": "instanceInitiatedShutdownBehavior"}
    for box in boxes():
        shutdown = boto3.client("ec2").describe_instance_attribute(InstanceId=box, **asked)
        ends = shutdown["InstanceInitiatedShutdownBehavior"]["Value"] == "terminate"
        assert ends or f"musicgen-{box}" in scheduled
    # And everything is named by status and ended by kill-all, but for an image, which status counts.
    monkeypatch.setattr(kill, "POLL_S", 0.02)
    anew = Aws(Settings.load(), task="test")
    assert {row.id for row in fleet_status(anew, ["us-east-1"], NOW, told).machines} == set(boxes())
    done = kill.kill(anew, ["us-east-1"], told)
    images = boto3.client("ec2").describe_images(Owners=["self"])["Images"]
    assert (done.left, account.alive(), done.n_images) == ([], [], len(images))
    assert len(snapshots()) == len(images)
    assert boto3.client("scheduler").list_schedules()["Schedules"] == []


def test_box_that_cannot_be_ended_is_named(account, run, told):
    account.fail("TerminateInstances", "UnauthorizedOperation")
    with pytest.raises(UserError, match="ec2:TerminateInstances"):
        run(box_that(GOOD))
    assert f"WARNING: {boxes()[0]} may still be running" in str(told)


def test_answer_that_was_lost_on_the_way_leaves_no_box(us, account, run, images_json):
    """EC2 acts, and its answer does not arrive: the box is found by its tag."""
    account.lag_s = 0.3
    client = us.client("ec2", attempts=1)
    rent = client.run_instances

    def lost(**request):
        rent(**request)
        raise KeyboardInterrupt

    client.run_instances = lost
    with pytest.raises(Interrupted):
        run(box_that(GOOD))
    no_image_and_no_box(images_json)


def test_box_of_an_attempt_whose_answer_was_lost_is_ended_when_the_next_is_refused(
    us, account, run, images_json
):
    account.lag_s = 0.3
    client = us.client("ec2", attempts=1)
    rent = client.run_instances

    def busy(**request):
        rent(**request)
        raise ClientError({"Error": {"Code": "RequestLimitExceeded", "Message": "slower"}}, "RunInstances")

    client.run_instances = busy
    with pytest.raises(UserError, match="RequestLimitExceeded"):
        run(box_that(GOOD))
    no_image_and_no_box(images_json)


def snapshots():
    """This project's snapshots, by their tag."""
    filters = [{"Name": "tag:Project", "Values": [PROJECT]}]
    return boto3.client("ec2").describe_snapshots(OwnerIds=["self"], Filters=filters)["Snapshots"]


def interrupted_while_the_disk_is_copied(us, told):
    plan, left = plan_image(us, ROOT, NOW), [box_that(GOOD)]

    def pause(seconds):
        time.sleep(0.05)
        if left:
            left.pop()(boxes()[0], plan)

    made = ImageBuild(us, plan, told, pause=pause)
    made._await_image = lambda ami: (_ for _ in ()).throw(KeyboardInterrupt)
    return made


def test_ctrl_c_while_the_disk_is_copied_leaves_no_image_and_no_snapshot(us, told, images_json):
    with pytest.raises(Interrupted):
        interrupted_while_the_disk_is_copied(us, told).carry_out()
    no_image_and_no_box(images_json)
    assert snapshots() == []


def test_image_whose_answer_was_lost_is_taken_back(us, account, run, images_json):
    account.after["CreateImage"] = lambda call: account.refuse_always("CreateImage", "InternalFailure", 500)
    account.lose_answers["CreateImage"] = 1
    with pytest.raises(UserError):
        run(box_that(GOOD))
    no_image_and_no_box(images_json)
    assert snapshots() == []


def test_box_whose_builder_was_killed_before_the_schedule_ends_with_its_disk(us, account, told):
    asked = []
    account.before["CreateSchedule"] = lambda call: asked.extend(
        (
            account.sent("RunInstances")[0]["InstanceInitiatedShutdownBehavior"],
            account.sent("ModifyInstanceAttribute"),
        )
    )
    carry_out(us, told, box_that(GOOD))
    assert asked == ["terminate", []]
    assert account.sent("ModifyInstanceAttribute")[0]["InstanceInitiatedShutdownBehavior.Value"] == "stop"


def test_fresh_profile_is_waited_for(account, run):
    account.fail("RunInstances", "InvalidParameterValue", times=2)
    assert run(box_that(GOOD)).name == "musicgen-worker-v1"
    assert len(account.sent("RunInstances")) == 3


def test_second_build_at_once_is_refused(us, told):
    plan = plan_image(us, ROOT, NOW)
    boto3.client("ec2").run_instances(**plan.machine.to_ec2())
    with pytest.raises(UserError, match="a build box already"):
        ImageBuild(us, plan, told).carry_out()
    assert len(boxes()) == 1


# --- old images


def test_removed_image_takes_its_snapshots_and_its_record_along(us, run, images_json):
    made = run(box_that(GOOD))
    (row,) = registry.found(us)
    (step,) = registry.removal(us, [made.name])
    step.act()
    assert registry.found(us) == [] and registry.recorded() == []
    left = boto3.client("ec2").describe_snapshots(OwnerIds=["self"])["Snapshots"]
    assert set(row.snapshots.split()).isdisjoint(snapshot["SnapshotId"] for snapshot in left)


def test_versions_count_up_and_old_is_all_but_the_newest(us, run):
    first, second = (run(box_that(GOOD)).name for _ in range(2))
    assert (first, second) == ("musicgen-worker-v1", "musicgen-worker-v2")
    assert [step.thing.split()[1] for step in registry.removal(us, ["old"])] == [first]
    assert [step.thing.split()[1] for step in registry.removal(us, ["old", first])] == [first]


def test_unknown_image_is_bad_input(us):
    with pytest.raises(BadInput, match="inv image --list"):
        registry.removal(us, ["musicgen-worker-v9"])


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"images": [{}]}'])
def test_damaged_record_is_bad_input(images_json, text):
    images_json.write_text(text)
    with pytest.raises(BadInput, match="restore it from git"):
        registry.newest("us-east-1")


def test_limits_outlast_the_box_s_own():
    assert build.IMAGE_LIMIT_S >= 40 * 60 and BUILD_LIMIT_MIN >= 30


def test_price_list_without_an_answer_stops_no_plan(us, account):
    account.refuse_always("GetProducts", "AccessDeniedException")
    assert "price not known" in str(plan_image(us, ROOT, NOW).rows())


def test_dry_run_checks_the_on_demand_quota(us, account, told):
    account.quotas["ec2", "L-DB2E81BA"] = 0
    with pytest.raises(UserError, match=r"on-demand GPU machines.*L-DB2E81BA"):
        ImageBuild(us, plan_image(us, ROOT, NOW), told).dry_run()
