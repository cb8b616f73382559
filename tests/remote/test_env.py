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


# --- where large files go

LARGE = ("HF_HOME", "HF_DATASETS_CACHE", "MUSICGEN_MODELS_DIR", "MUSICGEN_HEARTMULA_DIR")


class Disks:
    """The folders of a box, and a `df` that says what is free in each of them."""

    def __init__(self, folder):
        self.workspace, self.root, self.home = (folder / name for name in ("workspace", "root", "home"))
        self.tools = folder / "bin"
        for part in (self.root, self.home, self.tools):
            part.mkdir()

    def mount(self):
        """A volume at the workspace, with the root on it as on a pod."""
        self.workspace.mkdir()
        self.root.rmdir()
        self.root = self.workspace / "musicgen"
        self.root.mkdir()
        return self

    def free(self, home_gb, elsewhere_gb):
        df = self.tools / "df"
        df.write_text(
            "#!/bin/sh\nfor last; do :; done\n"
            f"case $last in {self.home}*) free={home_gb} ;; *) free={elsewhere_gb} ;; esac\n"
            "echo Filesystem 1024-blocks Used Available Capacity Mounted on\n"
            'echo /dev/some 99 9 "$((free * 1024 * 1024))" 9% /some\n'
        )
        df.chmod(0o755)
        return self

    @property
    def env(self):
        return {
            "PATH": f"{self.tools}:{os.environ['PATH']}",
            "MUSICGEN_WORKSPACE": str(self.workspace),
            "MUSICGEN_BOX_ROOT": str(self.root),
            "MUSICGEN_BOX_HOME": str(self.home),
        }


@pytest.fixture
def disks(tmp_path):
    (tmp_path / "disks").mkdir()
    return Disks(tmp_path / "disks")


def test_what_is_large_goes_to_a_volume(platform, disks):
    env = sourced(platform, **disks.mount().env)
    at = disks.workspace
    cache = f"{at}/.cache/huggingface"
    assert [env[name] for name in LARGE] == [cache, cache, f"{at}/models", f"{at}/ckpt"]


def test_without_a_volume_it_goes_to_the_root(platform, disks):
    env = sourced(platform, **disks.env)
    at = disks.root
    cache = f"{at}/cache/huggingface"
    assert [env[name] for name in LARGE] == [cache, cache, f"{at}/models", f"{at}/ckpt"]


def test_volume_is_at_workspace(platform):
    """Whatever this machine has there."""
    assert sourced(platform)["MUSICGEN_WORKSPACE"] == "/workspace"


def test_volume_that_cannot_be_written_is_none(platform, disks):
    disks.workspace.touch()  # root may write into any folder, and into no file as into a folder
    assert sourced(platform, **disks.env)["HF_HOME"].startswith(str(disks.root))


@pytest.mark.parametrize(
    ("home_gb", "elsewhere_gb", "place"),
    [(10, 500, "home"), (9, 500, "volume"), (9, 8, "home"), (9, 9, "home")],
)
@pytest.mark.parametrize("mounted", [True, False])
def test_temporary_files_are_on_the_boxs_own_disk_unless_only_the_other_has_room(
    platform, disks, home_gb, elsewhere_gb, place, mounted
):
    if mounted:
        disks.mount()
    env = sourced(platform, **disks.free(home_gb, elsewhere_gb).env)
    elsewhere = disks.workspace if mounted else disks.root
    assert env["TMPDIR"] == f"{disks.home if place == 'home' else elsewhere}/tmp"


def test_disk_whose_free_space_is_unknown_is_used(platform, disks):
    (disks.tools / "df").write_text("#!/bin/sh\nexit 1\n")
    (disks.tools / "df").chmod(0o755)
    assert sourced(platform, **disks.mount().env)["TMPDIR"] == f"{disks.home}/tmp"


def test_packages_stay_on_the_boxs_own_disk(platform, disks):
    env = sourced(platform, **disks.mount().env)
    for name in ("UV_CACHE_DIR", "PIP_CACHE_DIR", "XDG_CACHE_HOME", "UV_PYTHON_INSTALL_DIR"):
        assert Path(env[name]).is_relative_to(disks.home)


def test_folders_of_an_image_are_not_taken(platform, disks):
    names = ("HF_HOME", "HF_DATASETS_CACHE", "TMPDIR", "UV_CACHE_DIR", "PIP_CACHE_DIR", "XDG_CACHE_HOME")
    image = dict.fromkeys(names, "/image")
    assert "/image" not in sourced(platform, **disks.mount().env, **image).values()


@pytest.mark.parametrize(
    "name", ["HF_HUB_ENABLE_HF_TRANSFER", "TRANSFORMERS_CACHE", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"]
)
def test_variable_of_an_image_that_is_dead_or_does_harm_is_gone(platform, name):
    assert name not in sourced(platform, **{name: "1"})


@pytest.mark.parametrize("name", [*LARGE, "TMPDIR"])
def test_folder_that_was_deployed_wins(platform, disks, name):
    (disks.home / "worker.env").write_text(f"{name}='/deployed'\n")
    deployed = sourced(
        platform, **disks.mount().env, MUSICGEN_MODELS_DIR="/pods", MUSICGEN_HEARTMULA_DIR="/pods"
    )
    assert deployed[name] == "/deployed"


@pytest.mark.parametrize("name", ["MUSICGEN_MODELS_DIR", "MUSICGEN_HEARTMULA_DIR"])
def test_folder_of_models_may_be_set_for_the_pod(platform, disks, name):
    platform.write_text(f"{name}=/pods\n")
    assert sourced(platform, **disks.mount().env)[name] == "/pods"


def test_empty_line_of_worker_env_sets_no_folder(platform, disks):
    (disks.home / "worker.env").write_text("MUSICGEN_MODELS_DIR=''\n")
    env = sourced(platform, "take_deployed;", **disks.mount().env)
    assert env["MUSICGEN_MODELS_DIR"] == f"{disks.workspace}/models"


def test_sourcing_it_again_changes_nothing(platform, disks):
    once = sourced(platform, **disks.mount().env)
    assert sourced(platform, f'. "{ENV}";', **disks.env) == once


def test_it_prints_the_folders_that_it_sets(platform, disks):
    answer, env = printed(platform, **disks.mount().env), sourced(platform, **disks.env)
    assert {name: answer[name] for name in (*LARGE, "TMPDIR")} == {
        name: env[name] for name in (*LARGE, "TMPDIR")
    }


def test_asking_makes_no_folder_and_starting_something_makes_them(platform, disks):
    env = sourced(platform, **disks.mount().env)
    assert [path.name for path in disks.workspace.iterdir()] == ["musicgen"]
    sourced(platform, "make_places;", **disks.env)
    assert Path(env["TMPDIR"]).is_dir() and Path(env["HF_HOME"]).is_dir()


# --- a volume that an earlier release has used

MODEL = "models--facebook--musicgen-small"


@pytest.fixture
def old_cache(disks):
    """A model in the cache under the root, as it was."""
    model = disks.mount().root / "cache" / "huggingface" / "hub" / MODEL
    (model / "blobs").mkdir(parents=True)
    (model / "blobs" / "f00").write_bytes(b"weights")
    (model / "snapshots" / "abc").mkdir(parents=True)
    (model / "snapshots" / "abc" / "model.safetensors").symlink_to("../../blobs/f00")
    return model


def test_weights_of_an_earlier_release_are_taken_over(platform, disks, old_cache):
    inode = (old_cache / "blobs" / "f00").stat().st_ino
    hub = Path(sourced(platform, "make_places; make_places;", **disks.env)["HF_HOME"]) / "hub"
    weights = hub / MODEL / "snapshots" / "abc" / "model.safetensors"
    assert weights.read_bytes() == b"weights" and weights.stat().st_ino == inode  # not a copy
    assert hub.is_relative_to(disks.workspace / ".cache")


def test_earlier_release_still_finds_its_weights(platform, disks, old_cache):
    sourced(platform, "make_places;", **disks.env)
    assert (old_cache / "snapshots" / "abc" / "model.safetensors").read_bytes() == b"weights"


def test_weights_that_the_new_cache_has_are_left_alone(platform, disks, old_cache):
    there = disks.workspace / ".cache" / "huggingface" / "hub" / MODEL
    there.mkdir(parents=True)
    sourced(platform, "make_places;", **disks.env)
    assert list(there.iterdir()) == [] and (old_cache / "blobs" / "f00").read_bytes() == b"weights"


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
