"""What a worker is given, and that botocore there reads pushed credentials without a restart."""

import json
import subprocess
import sys
from dataclasses import replace

import pytest

from ops.repository import ROOT
from ops.settings import Settings
from ops.ssh import configure, secrets
from tests.ops.ssh.connect import connected

ENV = {"MUSICGEN_MODEL": "rehearsal", "HF_TOKEN": "hf_x", "HOURLY_COST_USD": "0.86"}


def given(home="/h", credentials=False, **env):
    return configure.worker_env(Settings.load(env=ENV | env), home, credentials=credentials)


def test_worker_gets_the_settings_that_are_its_own():
    found = given(AWS_DEFAULT_REGION="us-east-1", RUNPOD_API_KEY="rpa_x", RUNPOD_HOST="a")
    assert found["MUSICGEN_MODEL"] == "rehearsal"
    assert found["HOURLY_COST_USD"] == "0.86"
    assert not any(name.startswith("RUNPOD_") for name in found)


def test_box_gets_the_folders_for_models_that_are_set_and_forgets_them_when_they_no_longer_are():
    found = given(MUSICGEN_MODELS_DIR="/models", MUSICGEN_HEARTMULA_DIR="/heartmula")
    folders = {"MUSICGEN_MODELS_DIR": "/models", "MUSICGEN_HEARTMULA_DIR": "/heartmula"}
    assert folders.items() <= found.items()
    assert folders.keys() <= configure.managed_names("runpod") - given().keys()


def test_keys_of_the_user_are_no_settings_of_the_worker():
    found = given(AWS_ACCESS_KEY_ID="AKIA", AWS_SECRET_ACCESS_KEY="s", AWS_SESSION_TOKEN="t", AWS_PROFILE="p")
    assert not {"AKIA", "s", "t", "p"} & set(found.values())


def test_what_a_launch_set_on_the_machine_stays_and_a_pod_forgets_what_is_no_longer_set():
    before = "HOURLY_COST_USD='0.4'\nAWS_DEFAULT_REGION='us-east-1'\nHF_TOKEN='old'\n"
    kept = secrets.merged(before, {}, configure.managed_names("ec2"))
    assert kept == "HOURLY_COST_USD='0.4'\nAWS_DEFAULT_REGION='us-east-1'\n"
    assert secrets.merged(before, {}, configure.managed_names("runpod")) == ""


@pytest.mark.parametrize(
    ("env", "place"),
    [
        ({}, {}),
        ({"MUSICGEN_OUTPUT": "out/here"}, {}),
        ({"MUSICGEN_S3_BUCKET": "b"}, {"MUSICGEN_S3_BUCKET": "b"}),
        (
            {"MUSICGEN_OUTPUT": "s3://b/album/"},
            {"MUSICGEN_S3_BUCKET": "b", "MUSICGEN_S3_PREFIX": "album"},
        ),
    ],
)
def test_place_for_songs_is_a_bucket_or_the_box_s_own_folder(env, place):
    found = given(**env)
    assert {name: found[name] for name in found if name in configure._OUTPUT} == place


def test_botocore_reads_what_is_pushed_while_it_runs(tmp_path):
    home = tmp_path / "a home"
    home.mkdir()
    (home / configure.CONFIG).write_text(configure.aws_config(str(home)))

    def push(key, expiration):
        keys = {"Version": 1, "AccessKeyId": key, "SecretAccessKey": "s", "SessionToken": "t"}
        (home / configure.KEYS).write_text(json.dumps(keys | {"Expiration": expiration}))

    push("FIRST", "2099-01-01T00:00:00Z")
    script = (
        "import boto3, datetime, sys\n"
        "found = boto3.session.Session().get_credentials()\n"
        "print(found.get_frozen_credentials().access_key, flush=True)\n"
        "sys.stdin.readline()\n"
        "found._expiry_time = datetime.datetime.now(datetime.timezone.utc)\n"  # time passes
        "print(found.get_frozen_credentials().access_key, flush=True)\n"
    )
    env = {"PATH": "/usr/bin:/bin"} | given(home, credentials=True)
    command = [sys.executable, "-c", script]
    with subprocess.Popen(
        command, env=env, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout.readline() == "FIRST\n"
        push("SECOND", "2099-01-01T00:00:00Z")
        process.stdin.write("\n")
        process.stdin.flush()
        assert process.stdout.readline() == "SECOND\n"


def test_no_limit_is_a_setting_and_reaches_the_box():
    found = given(MUSICGEN_IDLE_LIMIT_S="0", MUSICGEN_NO_PROGRESS_LIMIT_S="0")
    assert (found["MUSICGEN_IDLE_LIMIT_S"], found["MUSICGEN_NO_PROGRESS_LIMIT_S"]) == ("0", "0")


@pytest.fixture
def configured(box, tmp_path):
    """Give the box these settings; -> the lines of its worker.env."""

    def configured(platform="other", **env):
        with connected(box, tmp_path) as conn:
            conn.info = replace(conn.info, platform=platform, user="root")
            configure.configure(conn, Settings.load(env={"MUSICGEN_MODEL": "rehearsal"} | env))
        return (box.box_home / "worker.env").read_text().splitlines()

    box.box_home.mkdir()
    (box.box_home / "worker.env").write_text(
        "HOURLY_COST_USD='0.4'\nMUSICGEN_STOP_HOOK='/off'\nHF_TOKEN='x'\n"
    )
    return configured


def test_stop_hook_of_the_box_stays_unless_the_user_has_another(configured):
    assert "MUSICGEN_STOP_HOOK='/off'" in configured()
    lines = configured(MUSICGEN_STOP_HOOK="remote/off")
    assert [line for line in lines if "STOP_HOOK" in line] == ["MUSICGEN_STOP_HOOK='remote/off'"]


def test_machine_of_ec2_keeps_its_own_stop_hook(configured):
    assert "MUSICGEN_STOP_HOOK='/off'" in configured("ec2", MUSICGEN_STOP_HOOK="remote/off")


def test_what_a_pod_was_given_at_its_creation_survives_an_install(box, tmp_path):
    box.box_home.mkdir()
    given = tmp_path / "platform.env"
    given.write_text(
        "HOURLY_COST_USD=0.86\0MUSICGEN_STOP_HOOK=/off\0MUSICGEN_IDLE_LIMIT_S=77\0RUNPOD_POD_ID=p\0"
    )
    box.variables["MUSICGEN_PLATFORM_ENV"] = str(given)
    box.write_shell()
    names = "$HOURLY_COST_USD $MUSICGEN_STOP_HOOK $MUSICGEN_IDLE_LIMIT_S"
    asks = f"bash -c '. {ROOT}/remote/env.sh; set -a; . $MUSICGEN_BOX_HOME/worker.env; echo {names}'"
    with connected(box, tmp_path) as conn:
        configure.configure(conn, Settings.load(env={"MUSICGEN_MODEL": "rehearsal"}))
        assert conn.run(asks).out == "0.86 /off 77\n"
        configure.configure(conn, Settings.load(env={"HOURLY_COST_USD": "0.5", "MUSICGEN_IDLE_LIMIT_S": "9"}))
        assert conn.run(asks).out == "0.5 /off 9\n"


def test_keys_that_are_no_longer_needed_are_taken_back(configured, box):
    (box.box_home / configure.KEYS).write_text('{"AccessKeyId": "AKIA"}')
    configured()
    assert not (box.box_home / configure.KEYS).exists()
