"""remote/env.sh: where everything on a box lies."""

import json
import os
import re
import socket
import subprocess
from pathlib import Path

import pytest

from tests.parts import need
from tests.remote.boxes import REPOSITORY

ENV = REPOSITORY / "remote" / "env.sh"


@pytest.fixture
def platform(tmp_path):
    """A file for the platform's variables."""
    file = tmp_path / "platform.env"
    file.touch()
    return file


def environment(platform, **more):
    basic = {"PATH": os.environ["PATH"], "HOME": "/users/me", "MUSICGEN_PLATFORM_ENV": str(platform)}
    return basic | more


def printed(platform, stdin=False, **more):
    """What it says when it is run, from its file or from stdin as over SSH."""
    with ENV.open() as script:
        done = subprocess.run(
            ["bash", "-s"] if stdin else ["bash", str(ENV)],
            stdin=script if stdin else subprocess.DEVNULL,
            env=environment(platform, **more),
            capture_output=True,
            text=True,
            check=True,
        )
    return json.loads(done.stdout)


def sourced(platform, then="", **more):
    """The environment after sourcing it in the strictest shell."""
    script = f'set -euo pipefail; . "{ENV}"; {then} env -0'
    done = subprocess.run(
        ["bash", "-c", script], env=environment(platform, **more), capture_output=True, text=True, check=True
    )
    return dict(entry.split("=", 1) for entry in done.stdout.split("\0") if "=" in entry)


def in_namespaces(script, env=None):
    """Run it as process 1 of a container: its own processes, and mounts that nobody else sees."""
    command = ["unshare", "--fork", "--pid", "--mount-proc", "sh", "-c", script]
    return subprocess.run(command, env=env, capture_output=True, text=True)


@pytest.mark.parametrize(
    ("kind", "root", "home"),
    [
        ("runpod", "/workspace/musicgen", "/users/me/.musicgen"),
        ("ec2", "/opt/musicgen", "/etc/musicgen"),
        ("other", "/users/me/musicgen", "/users/me/.musicgen"),
    ],
)
def test_each_platform_has_its_places(platform, kind, root, home):
    answer = printed(platform, MUSICGEN_PLATFORM=kind)
    assert (answer["platform"], answer["root"], answer["home"]) == (kind, root, home)


def test_pod_is_known_by_its_platforms_variables(platform):
    platform.write_text('export RUNPOD_POD_ID="abc"\n')
    assert printed(platform)["platform"] == "runpod"


def test_places_that_are_set_win(platform):
    answer = printed(platform, MUSICGEN_BOX_ROOT="/a", MUSICGEN_BOX_HOME="/b")
    assert (answer["root"], answer["home"]) == ("/a", "/b")


def test_box_can_be_asked_before_anything_is_on_it(platform):
    assert printed(platform, stdin=True) == printed(platform)


def test_sourcing_says_nothing_and_changes_no_file(platform, tmp_path):
    before = sorted(tmp_path.rglob("*"))
    script = f'set -euo pipefail; . "{ENV}"'
    done = subprocess.run(["bash", "-c", script], env=environment(platform), capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    "text",
    ['export MUSICGEN_TEXT="a$HOME"b$(touch HIT)"\n', 'MUSICGEN_TEXT=a$HOME"b$(touch HIT)\0OTHER=1\0'],
    ids=["rp_environment", "environ of process 1"],
)
def test_platforms_variables_are_read_as_text(platform, tmp_path, text):
    platform.write_text(text.replace("HIT", str(tmp_path / "hit")))
    env = sourced(platform)
    assert env["MUSICGEN_TEXT"].startswith('a$HOME"b$(touch ') and "OTHER" not in env
    assert not (tmp_path / "hit").exists()


def test_price_and_limits_of_the_platform_are_taken_and_its_api_key_is_not(platform):
    platform.write_text("HOURLY_COST_USD=0.86\nMUSICGEN_IDLE_LIMIT_S=77\nRUNPOD_API_KEY=planted\n")
    env = sourced(platform, RUNPOD_API_KEY="planted")
    assert (env["HOURLY_COST_USD"], env["MUSICGEN_IDLE_LIMIT_S"]) == ("0.86", "77")
    assert "planted" not in env.values()


def test_first_process_of_a_pod_wins_over_the_file_that_its_image_writes(tmp_path):
    """RunPod's start.sh writes only RUNPOD_* to that file."""
    need("namespaces", in_namespaces("true").returncode == 0)
    file = "echo 'export RUNPOD_POD_ID=\"abc\"' > /etc/rp_environment"
    ask = f"env -i PATH=$PATH HOME=/users/me bash -c '. {ENV}; env'; true"  # true: so that sh stays process 1
    begin = f"mount -t tmpfs none /etc && {file} && {ask}"
    pod = {"PATH": os.environ["PATH"], "RUNPOD_POD_ID": "abc", "MUSICGEN_LIFETIME_END": "1764288000"}
    done = in_namespaces(begin, env=pod)
    assert "MUSICGEN_LIFETIME_END=1764288000" in done.stdout.splitlines(), done.stderr


@pytest.mark.parametrize(
    ("kind", "given", "hook"),
    [
        ("runpod", {}, "remote/stop_pod.py"),
        ("runpod", {"MUSICGEN_STOP_HOOK": "/off"}, "/off"),
        ("runpod", {"MUSICGEN_STOP_HOOK": ""}, ""),
        ("ec2", {}, None),
        ("other", {}, None),
    ],
)
def test_pod_has_a_stop_hook_unless_another_or_none_is_set(platform, kind, given, hook):
    assert sourced(platform, MUSICGEN_PLATFORM=kind, **given).get("MUSICGEN_STOP_HOOK") == hook


def test_what_is_set_wins_over_the_platform(platform):
    platform.write_text('export RUNPOD_POD_ID="theirs"\nexport UV_CACHE_DIR="/workspace/slow"\n')
    env = sourced(platform, RUNPOD_POD_ID="ours")
    assert env["RUNPOD_POD_ID"] == "ours" and not env["UV_CACHE_DIR"].startswith("/workspace/slow")


def test_plain_settings_of_worker_env_win_and_its_secrets_stay_there(platform, tmp_path):
    (tmp_path / "worker.env").write_text(
        "MUSICGEN_STOP_HOOK='/deployed'\nPIP_INDEX_URL='http://i'\nAWS_SECRET_ACCESS_KEY='x'\n"
        "MUSICGEN_BOX_ROOT='/elsewhere'\n"
    )
    box = {"MUSICGEN_BOX_ROOT": "/a", "MUSICGEN_BOX_HOME": str(tmp_path)}
    env = sourced(platform, "take_deployed;", MUSICGEN_STOP_HOOK="/older", **box)
    assert env["MUSICGEN_STOP_HOOK"] == "/deployed" and env["PIP_INDEX_URL"] == "http://i"
    assert "AWS_SECRET_ACCESS_KEY" not in env and env["MUSICGEN_BOX_ROOT"] == "/a"


def test_weights_lie_under_the_root_and_everything_else_under_the_home(platform, tmp_path):
    root, home = tmp_path / "root", tmp_path / "home"
    box = {"MUSICGEN_BOX_ROOT": str(root), "MUSICGEN_BOX_HOME": str(home)}
    env = sourced(platform, "use_scratch;", **box)
    assert Path(env["HF_HOME"]).is_relative_to(root)
    for name in ("UV_CACHE_DIR", "PIP_CACHE_DIR", "XDG_CACHE_HOME", "UV_PYTHON_INSTALL_DIR"):
        assert Path(env[name]).is_relative_to(home)
    assert Path(env["TMPDIR"]).is_dir()


def test_image_setting_that_breaks_the_hub_client_is_taken_back(platform):
    assert "HF_HUB_ENABLE_HF_TRANSFER" not in sourced(platform, HF_HUB_ENABLE_HF_TRANSFER="1")


def test_service_without_home_has_one(platform):
    env = {"PATH": os.environ["PATH"], "MUSICGEN_PLATFORM_ENV": str(platform)}
    done = subprocess.run(["bash", str(ENV)], env=env, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)["root"].startswith("/")


@pytest.mark.parametrize("script", sorted((REPOSITORY / "remote").glob("*.sh")), ids=lambda path: path.name)
def test_script_says_what_it_is_for_and_has_unix_line_ends(script):
    content = script.read_bytes()
    assert b"\r" not in content and content.startswith((b"#!/usr/bin/env bash\n# ", b"#!/bin/sh\n# "))
    assert re.search(rb"^# .{20,}", content, re.M)


def test_platforms_file_that_cannot_be_opened_is_no_message(tmp_path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "there"))  # it is readable by its mode, and no one can open it
        script = f'set -euo pipefail; . "{ENV}"'
        env = environment(tmp_path / "there")
        done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
