"""inv status, logs and kill-all: every machine of this project, in every region, until it is gone."""

import json
from datetime import UTC, datetime, timedelta

import boto3
import pytest

from ops import fleet
from ops.aws import machines, regions, schedule
from ops.aws.fleet import kill
from ops.aws.fleet.status import fleet_status
from ops.aws.launch import launch, prepare
from ops.aws.launch.prepare import LaunchOptions
from ops.aws.session import PROJECT, Aws, tag_list
from ops.heartbeats import newest_runs
from ops.settings import Settings
from tests.fakes import heartbeats
from tests.fakes.aws import Refusal
from worker.errors import UserError
from worker.store.open import open_store
from worker.timestamps import stamp

OUTPUT = "s3://musicgen-batch-output-test/album"
RUN = "20261122T195059Z-ab12"


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Short timeouts for what does not end."""
    monkeypatch.setattr(kill, "POLL_S", 0.02)
    monkeypatch.setattr(kill, "LIMIT_S", 0.5)


def at(hours):
    return stamp(datetime.now(UTC) + timedelta(hours=hours))


@pytest.fixture
def status(us, told):
    """The fleet as of now, or of some hours from now."""

    def look(hours=0.0):
        return fleet_status(us, regions.enabled(us), datetime.now(UTC) + timedelta(hours=hours), told)

    return look


def beat(run_id=RUN, **more):
    """Write a worker's heartbeat to the bucket."""
    heartbeats.write(OUTPUT, run_id, **more)


# --- status


def test_machines_of_every_region_are_found_without_local_state(account, status, machine):
    rented = {machine("us-east-1", ExpiresAt=at(1)), machine("eu-west-1", ExpiresAt=at(1))}
    machine("us-west-2", project=False)
    assert {each.id for each in status().machines} == rented


def test_cost_so_far_is_age_times_price(account, status, machine):
    machine(ExpiresAt=at(9), HourlyUsd="0.2")
    (shown,) = status(hours=3).machines
    assert shown.cost_usd == pytest.approx(0.6, abs=0.01)
    assert shown.per_hour_usd == 0.2


def test_a_machine_past_its_deadline_is_overdue_and_wrong(account, status, machine):
    machine(ExpiresAt=at(1))
    assert not status().wrong
    late = status(hours=3)
    assert late.wrong and late.machines[0].remark.startswith("OVERDUE by 2 h")


@pytest.mark.parametrize(
    ("stopped", "remark"), [(False, "builds the machine image"), (True, "its disk becomes the image")]
)
def test_a_build_box_is_shown_as_one(account, status, machine, stopped, remark):
    box = machine(ExpiresAt=at(9), Name=machines.BUILD_BOX)
    if stopped:
        boto3.client("ec2").stop_instances(InstanceIds=[box])
    assert status(hours=1).machines[0].remark == remark


def test_a_machine_without_a_deadline_is_named(account, status, machine):
    machine()
    assert status().machines[0].remark == "no deadline; run: inv kill-all"


def test_the_batch_s_progress_is_shown(account, status, machine):
    machine(ExpiresAt=at(1), RunId=RUN, Output=OUTPUT)
    beat()
    (shown,) = status().machines
    assert (shown.run, shown.eta_s, shown.remark) == ("generating, 3 of 10 songs, 1 failed", 90.0, "")


@pytest.mark.parametrize(
    ("state", "ago_s", "remark"),
    [
        ("done", 900, "idle: its run ended 15 min"),
        ("done", 20, ""),
        ("generating", 600, "silent for 10 min"),
    ],
)
def test_idle_and_silent_machines_are_named(account, status, machine, state, ago_s, remark):
    machine(ExpiresAt=at(1), RunId=RUN, Output=OUTPUT)
    beat(state=state, ago_s=ago_s)
    shown = status().machines[0].remark
    assert shown.startswith(remark) and bool(shown) == bool(remark)


def test_a_machine_whose_run_never_began_is_idle(account, status, machine):
    machine(ExpiresAt=at(9), RunId=RUN, Output=OUTPUT)
    assert status().machines[0].remark == "booting"
    assert status(hours=1).machines[0].remark.startswith("idle: no run has begun")


def test_a_later_run_on_the_same_machine_is_its_progress(account, us, status, machine):
    machine(ExpiresAt=at(1), RunId=RUN, Output=OUTPUT)
    (found,) = machines.in_region(us, "us-east-1")
    beat(state="interrupted", ago_s=900)
    beat("20261122T205059Z-cd34", host=found.host)
    beat("20261122T215059Z-ef56", state="done", host="another")
    assert status().machines[0].run.startswith("generating")


def test_a_damaged_heartbeat_is_no_heartbeat(account, status, machine):
    machine(ExpiresAt=at(1), RunId=RUN, Output=OUTPUT)
    open_store(OUTPUT).write(f"runs/{RUN}/status.json", b'{"state": []')
    assert status().machines[0].run is None


def test_volumes_that_still_bill_and_open_requests_are_shown(account, status):
    ec2 = boto3.client("ec2")
    tags = [{"ResourceType": "volume", "Tags": tag_list()}]
    volume = ec2.create_volume(AvailabilityZone="us-east-1a", Size=60, TagSpecifications=tags)["VolumeId"]
    account.open_request("us-east-1", "sir-open", PROJECT)
    assert {(left.what, left.id) for left in status().leftovers} == {
        ("volume", volume),
        ("spot request", "sir-open"),
    }


def test_the_request_and_the_disk_of_a_machine_that_lives_are_no_leftovers(account, status, us, told):
    plan = prepare.prepare(us, LaunchOptions(), datetime.now(UTC), told).plan
    launch.carry_out(us, plan, False, told)
    found = status()
    assert (len(found.machines), found.leftovers) == (1, [])


def test_a_region_that_does_not_answer_makes_status_wrong(account, status):
    def refuse(call):
        if call.region == "eu-west-1":
            account.refuse("UnauthorizedOperation")

    account.before["DescribeInstances"] = refuse
    found = status()
    assert found.wrong and found.problems[0].startswith("could not look in eu-west-1")
    assert found.closing_line() == "no machine of this project in 2 regions"


def test_a_machine_of_unknown_price_does_not_count_as_free(status, machine):
    machine(ExpiresAt=at(1))
    assert status().closing_line() == "1 machine, price not known"
    machine(ExpiresAt=at(1), HourlyUsd="0.2")
    line = status().closing_line()
    assert line.startswith("2 machines, $0.20 per hour, ") and line.endswith(
        " so far, and 1 of unknown price"
    )


def test_status_as_json_is_one_list_and_exit_1_when_overdue(account, inv, machine):
    rented = machine(ExpiresAt=at(-1))
    done = inv("status", "--json")
    (row,) = json.loads(done.out)
    assert (done.code, row["what"], row["id"], row["overdue"]) == (1, "machine", rented, True)


def test_status_of_nothing_says_so(account, inv):
    done = inv("status")
    assert (done.code, done.out) == (0, "")
    assert "no machine of this project in 3 regions" in done.err


# --- logs


def test_the_log_is_that_of_the_newest_run(account, inv):
    store = open_store(OUTPUT)
    store.write(f"runs/{RUN}/worker.log", b"one\ntwo\nthree\n")
    store.write("runs/20251122T195059Z-ab12/worker.log", b"old\n")
    done = inv("logs", "--lines", "2")
    assert (done.code, done.out) == (0, "two\nthree\n")


def test_before_the_worker_s_log_there_is_that_of_the_first_boot(account, inv):
    open_store(OUTPUT).write(f"launches/{RUN}/bootstrap.log", b"error: bootstrap failed\n")
    assert inv("logs").out == "error: bootstrap failed\n"


def test_the_console_of_a_machine_in_another_region(account, us, inv, machine):
    rented = machine("eu-west-1", ExpiresAt=at(1))
    account.console[rented] = "musicgen: --- deadline\n"
    assert inv("logs", "--console", rented).out == "musicgen: --- deadline\n"


def test_a_new_run_that_has_sent_nothing_shows_its_console(account, inv, machine):
    open_store(OUTPUT).write("runs/20251122T195059Z-ab12/worker.log", b"old\n")
    rented = machine("eu-west-1", ExpiresAt=at(1), RunId=RUN, Output=OUTPUT)
    nothing = inv("logs")
    assert nothing.code == 1 and f"{rented} has no console output yet" in nothing.err
    account.console[rented] = "musicgen: --- install\n"
    assert inv("logs").out == "musicgen: --- install\n"


def test_no_run_yet_is_one_line(account, inv):
    done = inv("logs")
    assert done.code == 1 and done.err.startswith("error: no run in s3://")


def test_newest_runs_come_first(account):
    for run in ("20251122T195059Z-ab12", RUN):
        beat(run)
    assert newest_runs(open_store(OUTPUT)) == [RUN, "20251122T195059Z-ab12"]


# --- kill-all


@pytest.fixture
def ended(us, told):
    """End everything."""
    return lambda: kill.kill(us, regions.enabled(us), told)


def test_every_machine_of_every_region_ends_and_nobody_else_s(account, ended, machine):
    for region in account.regions:
        machine(region)
    foreign = machine(project=False)
    assert ended().left == []
    assert account.alive() == [foreign]


def test_a_persistent_request_starts_no_machine_that_stays(account, us, ended):
    ec2 = boto3.client("ec2")
    kinds = ("instance", "spot-instances-request")
    ec2.run_instances(
        ImageId=account.image(),
        InstanceType="g4dn.xlarge",
        MinCount=1,
        MaxCount=1,
        InstanceMarketOptions={"MarketType": "spot", "SpotOptions": {"SpotInstanceType": "persistent"}},
        TagSpecifications=[{"ResourceType": kind, "Tags": tag_list()} for kind in kinds],
    )
    assert ended().left == []
    assert account.alive() == []
    assert not {request.state for request in account.spot_requests.values()} & {"open", "active"}


def test_volumes_schedules_and_open_requests_go_too(account, us, ended):
    tags = [{"ResourceType": "volume", "Tags": tag_list()}]
    boto3.client("ec2").create_volume(AvailabilityZone="us-east-1a", Size=8, TagSpecifications=tags)
    schedule.arm(us, "i-0123456789abcdef0", datetime.now(UTC) + timedelta(hours=1))
    account.open_request("us-west-2", "sir-open", PROJECT)
    done = ended()
    assert done.left == [] and len(done.ended) == 3
    assert boto3.client("ec2").describe_volumes()["Volumes"] == []
    assert account.spot_requests["sir-open"].state == "cancelled"
    assert boto3.client("scheduler").list_schedules()["Schedules"] == []


def test_a_machine_that_starts_meanwhile_is_found_by_the_second_look(account, ended, machine):
    machine()
    late = []

    def another(call):
        if not late:
            late.append("asked")
            late.append(machine("us-west-2"))

    account.after["TerminateInstances"] = another
    assert ended().left == []
    assert account.alive() == []


def test_a_protected_machine_does_not_save_the_others_and_is_named(account, ended, machine, told):
    protected, other = machine(), machine()
    boto3.client("ec2").modify_instance_attribute(InstanceId=protected, DisableApiTermination={"Value": True})
    assert ended().left == [protected]
    assert other not in account.alive()
    assert f"warning: {protected}: " in str(told)


@pytest.mark.parametrize(
    "action", ["DescribeVolumes", "DescribeImages", "ListSchedules", "GetCallerIdentity"]
)
def test_an_answer_that_is_a_proxy_s_page_hides_no_machine(account, inv, machine, action):
    account.garbled.add(action)
    rented = machine(ExpiresAt=at(1))
    assert rented in inv("status").out
    inv("kill-all", "--yes")
    assert account.alive() == []


def test_machines_are_ended_before_anything_else_is_asked_of_the_region(account, ended, machine):
    machine()
    ended()
    asked = [call.action for call in account.calls if call.region == "us-east-1"]
    before = asked[: asked.index("TerminateInstances")]
    assert set(before) <= {"GetCallerIdentity", "DescribeRegions", "DescribeInstances"}


def test_what_ends_at_the_second_try_counts(account, ended, machine):
    rented = machine()
    account.fail("TerminateInstances", "OperationNotPermitted")
    assert ended().ended == [rented]


def test_a_machine_that_does_not_end_is_exit_1(account, machine):
    stays = machine()
    account.undying.add(stays)
    with pytest.raises(UserError, match=f"{stays} did not end"):
        fleet.kill_all(Settings.load(), "", dry_run=False, yes=True, json=False)


def test_a_region_that_does_not_answer_is_never_called_empty(account, inv, machine):
    def refuse(call):
        if call.region == "eu-west-1":
            account.refuse("UnauthorizedOperation")

    account.before["DescribeInstances"] = refuse
    machine()
    done = inv("kill-all", "--yes")
    assert done.code == 1
    assert "could not look in eu-west-1" in done.err and "something may be left" in done.err
    assert account.alive() == []


def test_an_audit_log_that_cannot_be_written_saves_no_machine(account, inv, machine, monkeypatch, tmp_path):
    monkeypatch.setenv("MUSICGEN_AUDIT_LOG", str(tmp_path))  # a folder
    rented = machine()
    done = inv("kill-all", "--yes")
    assert (done.code, account.alive()) == (0, [])
    assert "cannot write the audit log" in done.err and f'"InstanceIds": ["{rented}"]' in done.err


def test_dry_run_shows_and_ends_nothing(account, inv, machine):
    rented = machine()
    done = inv("kill-all", "--dry-run")
    assert done.code == 0 and rented in done.out
    assert account.alive() == [rented]


def test_without_a_terminal_and_without_yes_kill_all_refuses(account, inv, machine):
    rented = machine()
    assert inv("kill-all").code == 3
    assert account.alive() == [rented]


def test_terminate_all_is_another_name_and_nothing_to_do_is_fine(account, inv):
    done = inv("terminate-all", "--yes")
    assert done.code == 0
    assert "nothing of this project in 3 regions" in done.err


def test_only_the_regions_asked_for(account, inv, machine):
    here, there = machine("us-east-1"), machine("eu-west-1")
    assert inv("kill-all", "--yes", "--region", "eu-west-1").code == 0
    assert account.alive() == [here]
    assert there not in account.alive()


def test_every_end_is_in_the_audit_log(account, us, ended, machine, tmp_path):
    rented = machine()
    ended()
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    assert [(line["action"], line["phase"]) for line in lines] == [
        ("ec2.terminate_instances", "intent"),
        ("ec2.terminate_instances", "result"),
    ]
    assert lines[0]["request"] == {"InstanceIds": [rented]}


# --- questions without an answer

SIDE_QUESTIONS = [
    ("DescribeVolumes", "UnauthorizedOperation", "could not list the volumes in us-east-1"),
    (
        "DescribeSpotInstanceRequests",
        "UnauthorizedOperation",
        "could not list the spot requests in us-east-1",
    ),
]


@pytest.mark.parametrize(("action", "code", "line"), SIDE_QUESTIONS)
def test_kill_all_ends_machines_whatever_else_cannot_be_listed(account, inv, machine, action, code, line):
    account.refuse_always(action, code)
    machine()
    done = inv("kill-all", "--yes")
    assert (done.code, account.alive()) == (1, [])
    assert f"warning: {line}" in done.err and "something may be left" in done.err


@pytest.mark.parametrize(("action", "code", "line"), SIDE_QUESTIONS)
def test_status_shows_machines_whatever_else_cannot_be_listed(account, inv, machine, action, code, line):
    account.refuse_always(action, code)
    rented = machine(ExpiresAt=at(1))
    done = inv("status")
    assert rented in done.out and f"warning: {line}" in done.err
    assert done.code == 1


def test_kill_all_needs_no_answer_of_sts(account, inv, machine, tmp_path):
    account.refuse_always("GetCallerIdentity", "ServiceUnavailable", 503)
    rented = machine()
    done = inv("kill-all", "--yes")
    assert (done.code, account.alive()) == (0, [])
    intent = json.loads((tmp_path / "audit.jsonl").read_text().splitlines()[0])
    assert intent["request"] == {"InstanceIds": [rented]} and intent["actor"].startswith("not known")
    assert len(account.sent("GetCallerIdentity")) == 1


def test_nothing_is_called_empty_while_a_question_has_no_answer(account, inv):
    account.refuse_always("DescribeVolumes", "UnauthorizedOperation")
    done = inv("kill-all", "--yes")
    assert done.code == 1 and "nothing of this project" not in done.err


def test_a_log_in_the_bucket_needs_no_answer_of_ec2(account, inv):
    account.refuse_always("DescribeInstances", "UnauthorizedOperation")
    open_store(OUTPUT).write(f"runs/{RUN}/worker.log", b"one\n")
    assert inv("logs").out == "one\n"


# --- images and their snapshots


@pytest.fixture
def image(account, machine):
    """An image of this project with its snapshot, made from somebody else's machine's: (image, snapshot)."""
    ec2 = boto3.client("ec2")
    kinds = [{"ResourceType": kind, "Tags": tag_list()} for kind in ("image", "snapshot")]
    source = machine(project=False)
    ami = ec2.create_image(InstanceId=source, Name="musicgen-worker-v1", TagSpecifications=kinds)["ImageId"]
    ec2.terminate_instances(InstanceIds=[source])
    disks = ec2.describe_images(ImageIds=[ami])["Images"][0]["BlockDeviceMappings"]
    return ami, disks[0]["Ebs"]["SnapshotId"]


def test_an_image_stays_and_is_never_called_nothing(account, inv, image):
    ami, _ = image
    done = inv("kill-all", "--yes")
    assert done.code == 0
    assert "nothing of this project in 3 regions, but 1 image stays and is billed" in done.err
    assert boto3.client("ec2").describe_images(ImageIds=[ami])["Images"]
    assert "; 1 image stays and is billed (inv image --list)" in inv("status").err


def test_a_snapshot_of_no_image_is_a_leftover_and_goes(account, status, ended, image):
    ami, snapshot = image
    assert status().leftovers == []
    boto3.client("ec2").deregister_image(ImageId=ami)
    assert [(left.what, left.id) for left in status().leftovers] == [("snapshot", snapshot)]
    assert ended().ended == [snapshot]
    assert status().leftovers == []


# --- regions


def close(account, *closed):
    """As an organisation's policy does it."""
    denied = "User: x is not authorized to perform: ec2:DescribeInstances with an explicit deny in a service "
    denied += "control policy"

    def refuse(call):
        if call.region in closed:
            raise Refusal("UnauthorizedOperation", 403, denied)

    account.before["DescribeInstances"] = refuse


@pytest.mark.parametrize("command", [("status",), ("kill-all", "--yes")])
def test_regions_that_a_policy_closes_are_named_once_and_are_no_error(account, inv, machine, command):
    close(account, "eu-west-1", "us-west-2")
    machine(ExpiresAt=at(1))
    done = inv(*command)
    assert done.code == 0
    assert done.err.count("a policy closes") == 1
    assert "set MUSICGEN_SKIP_REGIONS=us-west-2,eu-west-1" in done.err or "eu-west-1,us-west-2" in done.err


def test_left_out_regions_are_not_asked(account, inv, monkeypatch):
    monkeypatch.setenv("MUSICGEN_SKIP_REGIONS", "eu-west-1, us-west-2")
    assert "in 1 region" in inv("status").err
    assert {call.region for call in account.calls if call.action == "DescribeInstances"} == {"us-east-1"}


@pytest.mark.parametrize("command", [("status",), ("kill-all", "--yes")])
def test_all_regions_need_no_setting_of_one(account, inv, machine, monkeypatch, command):
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    rented = machine("eu-west-1", ExpiresAt=at(1))
    done = inv(*command)
    assert (done.code, rented in done.out) == (0, True)


def test_a_named_region_needs_no_list_of_regions(account, inv, machine):
    account.refuse_always("DescribeRegions", "UnauthorizedOperation")
    machine("eu-west-1")
    assert inv("kill-all", "--yes", "--region", "eu-west-1").code == 0
    assert account.alive() == []


def test_without_a_list_of_regions_every_known_one_of_the_partition_is_asked(
    account, inv, machine, monkeypatch
):
    known = ["us-east-1", "eu-west-1", "us-gov-west-1", "cn-north-1", "eusc-de-east-1"]
    monkeypatch.setattr(Aws, "known_regions", lambda self: known)
    account.refuse_always("DescribeRegions", "UnauthorizedOperation")
    machine("eu-west-1")
    done = inv("kill-all", "--yes")
    assert account.alive() == [] and "could not list the regions" in done.err
    asked = {call.region for call in account.calls if call.action == "DescribeInstances"}
    assert asked == {"us-east-1", "eu-west-1"}


def test_all_regions_by_name_need_no_list_of_them_either(account, inv, machine, monkeypatch):
    monkeypatch.setattr(Aws, "known_regions", lambda self: ["us-east-1", "eu-west-1"])
    account.refuse_always("DescribeRegions", "UnauthorizedOperation")
    machine("eu-west-1")
    done = inv("kill-all", "--yes", "--region", "all")
    assert (done.code, account.alive()) == (0, [])


@pytest.mark.parametrize("command", [("status",), ("kill-all", "--yes")])
def test_to_leave_out_every_region_is_bad_input(account, inv, monkeypatch, command):
    monkeypatch.setenv("MUSICGEN_SKIP_REGIONS", ",".join(account.regions))
    done = inv(*command)
    assert done.code == 2 and "MUSICGEN_SKIP_REGIONS leaves out every region" in done.err


def test_a_misspelt_region_is_bad_input(account, inv):
    done = inv("kill-all", "--yes", "--region", "us-esat-1")
    assert done.code == 2 and "no region us-esat-1 in this account; it has us-east-1" in done.err


# --- a schedule that the launch could not create


def test_status_arms_a_missing_schedule_once(account, inv, machine):
    rented = machine("eu-west-1", ExpiresAt=at(1))
    assert f"armed the EventBridge schedule that ends {rented}" in inv("status").err
    assert "armed" not in inv("status").err
    (made,) = boto3.client("scheduler", region_name="eu-west-1").list_schedules()["Schedules"]
    assert made["Name"] == f"musicgen-{rented}"


def test_status_without_the_right_to_arm_warns_and_shows(account, inv, machine):
    account.refuse_always("CreateSchedule", "AccessDeniedException", 403)
    rented = machine(ExpiresAt=at(1))
    done = inv("status")
    assert (done.code, rented in done.out) == (0, True)
    assert f"warning: no EventBridge schedule ends {rented}" in done.err


def test_all_machines_of_a_region_end_in_one_call(account, ended, machine):
    rented = {machine() for _ in range(4)}
    assert set(ended().ended) == rented
    (sent,) = account.sent("TerminateInstances")
    assert {value for name, value in sent.items() if name.startswith("InstanceId.")} == rented
