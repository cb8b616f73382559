"""What a worker is given, and that botocore there reads pushed credentials without a restart."""

import json
import subprocess
import sys

import pytest

from ops.settings import Settings
from ops.ssh import configure

ENV = {"MUSICGEN_MODEL": "rehearsal", "HF_TOKEN": "hf_x", "HOURLY_COST_USD": "0.86"}


def given(home="/h", credentials=False, **env):
    return configure.worker_env(Settings.load(env=ENV | env), home, credentials=credentials)


def test_worker_gets_the_settings_that_are_its_own():
    found = given(AWS_DEFAULT_REGION="us-east-1", RUNPOD_API_KEY="rpa_x", RUNPOD_HOST="a")
    assert found["MUSICGEN_MODEL"] == "rehearsal"
    assert found["HOURLY_COST_USD"] == "0.86"
    assert not any(name.startswith("RUNPOD_") for name in found)


def test_keys_of_the_user_are_no_settings_of_the_worker():
    found = given(AWS_ACCESS_KEY_ID="AKIA", AWS_SECRET_ACCESS_KEY="s", AWS_SESSION_TOKEN="t", AWS_PROFILE="p")
    assert not {"AKIA", "s", "t", "p"} & set(found.values())


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
    assert {name: found[name] for name in found if name in configure._PLACE} == place


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
