"""remote/env.sh: where everything on a box lies."""

import json
import os
import re
import socket
import subprocess
from pathlib import Path

import pytest

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
    assert b"\r" not in content and content.startswith(b"#!/usr/bin/env bash\n# ")
    assert re.search(rb"^# .{20,}", content, re.M)


def test_platforms_file_that_cannot_be_opened_is_no_message(tmp_path):
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(str(tmp_path / "there"))  # it is readable by its mode, and no one can open it
        script = f'set -euo pipefail; . "{ENV}"'
        env = environment(tmp_path / "there")
        done = subprocess.run(["bash", "-c", script], env=env, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
