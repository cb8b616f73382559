"""Where policies are enforced: the worker's role is enough for the real store and for nothing else, and the
operator's policy is enough for setup, image, launch, status and kill-all.

moto takes a condition on LIST for fulfilled and every other for not: conditions are seen in test_policies.py.
"""

import functools
import json
import os
import subprocess
import sys
import uuid
from datetime import UTC, datetime
from pathlib import Path

import boto3
import pytest
from botocore.exceptions import ClientError

from ops.aws import machines
from ops.aws.account import bucket, iam, policies, setup
from ops.aws.errors import IAM_ACTIONS
from ops.aws.fleet import kill
from ops.aws.fleet.status import fleet_status
from ops.aws.images import registry
from ops.aws.images.build import ImageBuild
from ops.aws.images.plan import plan_image
from ops.aws.launch import launch, prepare
from ops.aws.launch.prepare import LaunchOptions
from ops.aws.session import Aws
from ops.settings import Settings
from tests.fakes import enforcing, imds, s3
from worker.__main__ import main
from worker.errors import UserError
from worker.songs import jobs
from worker.songs import records as records_
from worker.store.base import Missing
from worker.store.open import open_store

ROOT = Path(__file__).parents[3]
BUCKET = "musicgen-batch-output-test"
RUN = "20261122T195059Z-ab12"
PLACE = f"s3://{BUCKET}/album"
POD_ROLE_ARN = f"arn:aws:iam::123456789012:role/{iam.POD_ROLE}"
pytestmark = pytest.mark.xdist_group("engine")  # where torch is loaded anyway


@pytest.fixture(scope="module")
def identities(tmp_path_factory):
    """The environments of a machine with the worker's role and of an operator, where policies count."""
    home = tmp_path_factory.mktemp("home")
    with enforcing.serving() as account, pytest.MonkeyPatch.context() as patch:
        account.set_price("g4dn.xlarge", "us-east-1a", 0.19)
        base = {
            "AWS_ENDPOINT_URL": account.url,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_EC2_METADATA_DISABLED": "true",
            "MUSICGEN_AUDIT_LOG": str(home / "audit.jsonl"),
            "MUSICGEN_S3_BUCKET": BUCKET,
            "MUSICGEN_S3_PREFIX": "album",
        }
        keys = {"AWS_ACCESS_KEY_ID": "testing", "AWS_SECRET_ACCESS_KEY": "testing"}
        us = Aws(Settings.load(base | keys))
        bucket.ensure_bucket(us, BUCKET)
        for role in iam.wanted_roles(us, BUCKET, "album"):
            iam.ensure_role(us, role)
        client = us.client("s3")
        client.put_object(Bucket=BUCKET, Key="album/code/x.tar.gz", Body=b"code")
        client.put_object(Bucket=BUCKET, Key="other/song.wav", Body=b"not yours")
        client.create_bucket(Bucket="somewhere-else")
        arn = f"arn:aws:iam::{us.caller.account}:role/{iam.WORKER_ROLE}"
        lent = us.client("sts").assume_role(RoleArn=arn, RoleSessionName="machine")["Credentials"]
        user = operator_user(us)
        enforcing.enforce(account.url)
        patch.setenv("AWS_MAX_ATTEMPTS", "1")
        worker = {
            "AWS_ACCESS_KEY_ID": lent["AccessKeyId"],
            "AWS_SECRET_ACCESS_KEY": lent["SecretAccessKey"],
            "AWS_SESSION_TOKEN": lent["SessionToken"],
        }
        yield {"worker": base | worker, "operator": base | user}


def operator_user(us):
    """Keys of a user who may do the operator's actions, and no others."""
    actions = sorted(
        {
            action
            for statement in policies.operator()["Statement"]
            for action in (
                [statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"]
            )
        }
    )
    client = us.client("iam")
    client.create_user(UserName="operator")
    # Where AWS asks for an action of another name than the call, moto asks for the call's.
    calls = [call for call, action in IAM_ACTIONS.items() if action in actions]
    box = ["ec2:StopInstances"]  # a test that plays the build box stops it
    document = json.dumps(policies.policy(policies.allow(actions + calls + box, "*")))
    client.put_user_policy(UserName="operator", PolicyName="operator", PolicyDocument=document)
    key = client.create_access_key(UserName="operator")["AccessKey"]
    return {"AWS_ACCESS_KEY_ID": key["AccessKeyId"], "AWS_SECRET_ACCESS_KEY": key["SecretAccessKey"]}


@pytest.fixture
def worker(identities, monkeypatch):
    """This process is the worker: boto3 finds the role's keys, at the server that enforces."""
    s3.only_at(identities["worker"]["AWS_ENDPOINT_URL"], monkeypatch)
    for name, value in identities["worker"].items():
        monkeypatch.setenv(name, value)
    return boto3.session.Session()


@pytest.fixture
def operator(identities, tmp_path):
    """The account as the operator's tools see it, with a bucket that is not there yet."""
    own = {
        "MUSICGEN_S3_BUCKET": f"musicgen-batch-output-{uuid.uuid4().hex}",
        "MUSICGEN_KEY_FILE": str(tmp_path / "key.pem"),
        "MUSICGEN_SSH_FROM": "203.0.113.7",
        "MUSICGEN_BUDGET_EMAIL": "me@example.com",
        "MUSICGEN_BASE_IMAGE": "ami-12c6146b",
        "MUSICGEN_AMI_ID": "ami-12c6146b",
        "MUSICGEN_KEY_NAME": f"musicgen-{uuid.uuid4().hex}",
    }
    return Aws(Settings.load(identities["operator"] | own, tmp_path / ".env"))


@pytest.fixture
def songs(worker):
    return open_store(PLACE)


# --- all that the worker does


def test_songs_are_made_read_and_listed(songs, tmp_path):
    (tmp_path / "song.wav").write_bytes(b"music")
    assert songs.create("records/a.json", b"{}") and songs.create_file("a.wav", tmp_path / "song.wav")
    assert songs.read("a.wav") == b"music"
    songs.download("a.wav", tmp_path / "back.wav")
    assert {"records/a.json", "a.wav"} <= songs.list().keys()


def test_report_is_written_over(songs):
    songs.write("cost_report.csv", b"one")
    etag = songs.write("cost_report.csv", b"two")
    assert songs.replace("cost_report.csv", b"three", etag)


def test_missing_object_is_missing_and_not_forbidden(songs):
    with pytest.raises(Missing):
        songs.read("records/none.json")


@pytest.mark.parametrize("folder", ["claims", "checkpoints"])
def test_marks_are_made_renewed_and_deleted(songs, folder):
    etag = songs.create(f"{folder}/a", b"1")
    assert etag and songs.create(f"{folder}/a", b"2") is None
    assert songs.replace(f"{folder}/a", b"3", etag)
    songs.delete(f"{folder}/a")
    assert f"{folder}/a" not in songs.list()


def test_place_is_found_writable(songs):
    songs.check_writable()


def test_check_of_the_box_finds_all_that_the_worker_may_do(worker):
    bucket, _, prefix = PLACE.removeprefix("s3://").partition("/")
    settings = {"MUSICGEN_S3_BUCKET": bucket, "MUSICGEN_S3_PREFIX": prefix}
    command = [sys.executable, "-B", str(ROOT / "remote" / "check.py"), "--group", "bucket"]
    done = subprocess.run(command, env=os.environ | settings, capture_output=True, text=True, check=True)
    checks = [json.loads(line) for line in done.stdout.splitlines()]
    assert len(checks) == 7
    assert [check for check in checks if check[1] is not True] == []


def test_code_can_be_read(songs):
    assert songs.read("code/x.tar.gz") == b"code"


def test_worker_makes_a_whole_batch(worker, identities, tmp_path, monkeypatch, capfd):
    """As on a machine: the role's credentials from the instance metadata, the settings from worker.env.

    Two windows, of a tenth of their length, so that a checkpoint is written and removed as well.
    """
    from worker.musicgen import Engine  # here: it imports torch

    monkeypatch.setattr(Engine, "load", functools.partial(Engine.load, window_s=3))
    lent = identities["worker"]
    role = {
        "AccessKeyId": lent["AWS_ACCESS_KEY_ID"],
        "SecretAccessKey": lent["AWS_SECRET_ACCESS_KEY"],
        "Token": lent["AWS_SESSION_TOKEN"],
    }
    prompts = tmp_path / "prompts.txt"
    prompts.write_text("calm piano ; 4 ; calm\nloud drums ; 1 ; loud\n", "utf-8")
    place = {"MUSICGEN_S3_BUCKET": BUCKET, "MUSICGEN_S3_PREFIX": "album"}
    price = {"HOURLY_COST_USD": "0.4", "MUSICGEN_PRICE_PAID_USD": "0.19"}
    run = {
        "MUSICGEN_MODEL": "rehearsal",
        "RUN_ID": RUN,
        "MUSICGEN_STATE_DIR": str(tmp_path),
    }
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "false")
    with imds.serving(role) as metadata:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", metadata.url)
        code = main(["--prompts", str(prompts), "--stride", "1.8"], dict(os.environ) | place | price | run)
        assert code == 0, capfd.readouterr().err
        store = open_store(PLACE)
        there = store.list()
        summary = json.loads(store.read(f"runs/{RUN}/summary.json"))
        status = json.loads(store.read(f"runs/{RUN}/status.json"))
        report = store.read("cost_report.csv").decode().splitlines()
    songs = [job.song for job in jobs.load(prompts)]
    records = [json.loads(store.read(records_.record_key(job))) for job in jobs.load(prompts)]
    assert set(songs) <= there.keys() and f"runs/{RUN}/worker.log" in there
    assert [record["price_paid_usd"] for record in records] == [0.19, 0.19]
    assert (summary["price"]["hourly_usd"], summary["price"]["paid_usd"]) == (0.4, 0.19)
    assert (status["state"], status["exit_code"], status["songs"]["done"]) == ("done", 0, 2)
    assert [line.partition(",")[0] for line in report[1:]] == songs
    assert [key for key in there if key.startswith(("claims/", "checkpoints/"))] == []


# --- and nothing else


@pytest.mark.parametrize(
    "key", ["a.wav", "records/a.json", "cost_report.csv", "runs/1/summary.json", "code/x.tar.gz"]
)
def test_what_is_finished_cannot_be_deleted(songs, key):
    with pytest.raises(UserError, match="s3:DeleteObject"):
        songs.delete(key)


@pytest.mark.parametrize("key", ["code/x.tar.gz", "locks/launch"])
def test_code_and_locks_cannot_be_written(songs, key):
    with pytest.raises(UserError, match="s3:PutObject"):
        songs.write(key, b"mine")


@pytest.mark.parametrize("place", [f"s3://{BUCKET}/other", f"s3://{BUCKET}", "s3://somewhere-else/album"])
def test_other_places_are_closed(worker, place):
    store = open_store(place)
    with pytest.raises(UserError):
        store.write("song.wav", b"mine")
    with pytest.raises(UserError):
        store.read("song.wav")


FORBIDDEN = {
    "ec2": [
        ("run_instances", {"ImageId": "ami-1", "MinCount": 1, "MaxCount": 1}),
        ("terminate_instances", {"InstanceIds": ["i-1"]}),
        ("describe_instances", {}),
    ],
    "iam": [
        ("list_users", {}),
        ("put_role_policy", {"RoleName": iam.WORKER_ROLE, "PolicyName": "x", "PolicyDocument": "{}"}),
        ("create_access_key", {"UserName": "me"}),
    ],
    "s3": [
        ("list_buckets", {}),
        ("delete_bucket", {"Bucket": BUCKET}),
        ("put_bucket_policy", {"Bucket": BUCKET, "Policy": "{}"}),
        ("put_object_acl", {"Bucket": BUCKET, "Key": "album/a.wav", "ACL": "public-read"}),
        ("list_objects_v2", {"Bucket": "somewhere-else"}),
    ],
    "sts": [("assume_role", {"RoleArn": POD_ROLE_ARN, "RoleSessionName": "me"})],
}


@pytest.mark.parametrize(
    ("service", "operation", "request_"),
    [(service, *call) for service, calls in FORBIDDEN.items() for call in calls],
)
def test_call_is_refused(worker, service, operation, request_):
    with pytest.raises(ClientError) as caught:
        getattr(worker.client(service), operation)(**request_)
    assert caught.value.response["Error"]["Code"] in (
        "AccessDenied",
        "AccessDeniedException",
        "UnauthorizedOperation",
        "403",
    )


# --- the operator


def test_operator_s_actions_are_enough_for_setup_again_and_remove(operator):
    name = setup.bucket_name(operator)
    assert setup.carry_out(setup.plan(operator, name), lambda line: None)
    assert setup.carry_out(setup.plan(operator, name, "198.51.100.7"), lambda line: None) == 1
    setup.carry_out(setup.removal(operator), lambda line: None)
    assert setup.removal(operator) == []


def test_operator_may_not_do_what_is_not_needed(operator):
    with pytest.raises(UserError, match="iam:CreateUser"):
        operator.act("iam", "create_user", UserName="another")


def test_operator_s_actions_are_enough_to_rent_look_and_end(operator, identities, tmp_path, monkeypatch):
    s3.only_at(identities["operator"]["AWS_ENDPOINT_URL"], monkeypatch)
    for name, value in identities["operator"].items():
        monkeypatch.setenv(name, value)
    setup.carry_out(setup.plan(operator, operator.settings.bucket), lambda line: None)
    (tmp_path / "prompts.txt").write_text("calm piano ; 30 ; calm\n", "utf-8")
    told: list[str] = []
    options = LaunchOptions(prompts=str(tmp_path / "prompts.txt"))
    plan = prepare.prepare(operator, options, datetime.now(UTC), told.append).plan
    launch.dry_run(operator, plan, told.append)
    rented = launch.carry_out(operator, plan, False, told.append).started
    shown = fleet_status(operator, ["us-east-1"], datetime.now(UTC), told.append)
    assert [machine.id for machine in shown.machines] == [rented.id] and not shown.wrong
    monkeypatch.setattr(kill, "POLL_S", 0.02)
    assert kill.kill(operator, ["us-east-1"], told.append).left == []
    assert not [line for line in told if "does not allow" in line], told


def test_operator_s_actions_are_enough_for_an_image(operator, tmp_path, monkeypatch):
    monkeypatch.setattr(registry, "FILE", tmp_path / "images.json")
    setup.carry_out(setup.plan(operator, operator.settings.bucket), lambda line: None)
    plan = plan_image(operator, ROOT, datetime.now(UTC))
    answer = json.dumps({"ok": True, "step": "ready", "exit_code": 0}).encode()

    def play_the_box(seconds):
        operator.client("s3").put_object(Bucket=plan.bucket, Key=plan.result_key, Body=answer)
        operator.client("ec2").stop_instances(InstanceIds=boxes())

    def boxes():
        found = machines.in_region(operator, operator.region, Name=machines.BUILD_BOX)
        return [machine.id for machine in found]

    build = ImageBuild(operator, plan, lambda line: None, pause=play_the_box)
    build.dry_run()
    made = build.carry_out()
    for step in registry.removal(operator, [made.name]):
        step.act()
    assert boxes() == [] and registry.found(operator) == []
