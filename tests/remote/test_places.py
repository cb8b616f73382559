"""Whatever is started on a box, and however, has the folders that env.sh prints."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.remote.boxes import until

PLACES = ("HF_HOME", "HF_DATASETS_CACHE", "TMPDIR", "MUSICGEN_MODELS_DIR", "MUSICGEN_HEARTMULA_DIR")
DEAD = ("TRANSFORMERS_CACHE", "HF_HUB_ENABLE_HF_TRANSFER")
SAVE = "import json, os, sys; open(sys.argv[1], 'w').write(json.dumps(dict(os.environ)))"


def places(env):
    """The folders in an environment, or in the answer of env.sh."""
    assert not set(DEAD) & set(env)
    return {name: env[name] for name in PLACES}


@pytest.fixture
def pod(box):
    """A box with a volume, a folder that its user has set, and the variables of an image."""
    Path(box.env["MUSICGEN_WORKSPACE"]).mkdir()
    box.env |= dict.fromkeys((*PLACES[:3], *DEAD), "/image")
    box.settings(MUSICGEN_MODELS_DIR=f"{box.home.parent}/mine", MUSICGEN_HEARTMULA_DIR="")
    return box


@pytest.fixture
def expected(pod):
    answer = places(pod.json("env.sh"))
    assert answer["HF_HOME"] == f"{pod.env['MUSICGEN_WORKSPACE']}/.cache/huggingface"
    assert answer["MUSICGEN_MODELS_DIR"] == f"{pod.home.parent}/mine"
    assert answer["MUSICGEN_HEARTMULA_DIR"] == f"{pod.env['MUSICGEN_WORKSPACE']}/ckpt"
    return answer


def saved(file):
    """The folders that a process wrote down, whose temporary folder was there."""
    until(lambda: file.exists() and file.read_text().endswith("}"))
    written = json.loads(file.read_text())
    found = places(written.get("env", written))  # the stand-in worker writes more than that
    assert Path(found["TMPDIR"]).is_dir()
    return found


def saves(file):
    """A command that writes its environment down."""
    return [sys.executable, "-c", SAVE, str(file)]


def test_worker_in_tmux(pod, expected):
    pod.start("exit", "0")
    assert saved(pod.state / "seen.json") == expected


def test_worker_in_a_tmux_server_that_was_started_with_other_folders(pod):
    pod.settings()
    others = {"MUSICGEN_WORKSPACE", "MUSICGEN_MODELS_DIR", "MUSICGEN_HEARTMULA_DIR", "HF_HOME"}
    mine = pod.env | dict.fromkeys(others, "/other")
    subprocess.run(["tmux", "new-session", "-d", "-s", "mine"], env=mine, check=True)
    pod.start("exit", "0")
    assert saved(pod.state / "seen.json") == places(pod.json("env.sh"))


def test_worker_of_a_unit(pod, expected):
    """systemd gives it three variables; the test its stand-in folders."""
    names = ("PATH", "HOME", *(name for name in pod.env if name.startswith("MUSICGEN_")))
    clean = {name: pod.env[name] for name in names}
    subprocess.run(pod.command("job.sh", "--", "exit", "0"), env=clean, check=True)
    assert saved(pod.state / "seen.json") == expected


def test_step_of_the_installation(pod, expected, tmp_path):
    programs = tmp_path / "programs"
    programs.mkdir()
    (programs / "uv").write_text(f'#!/bin/sh\n{sys.executable} -c "{SAVE}" {tmp_path}/seen.json\nexit 1\n')
    (programs / "uv").chmod(0o755)
    (pod.home / "venv.stamp").unlink()
    pod.sh("install.sh", PATH=f"{programs}:{pod.env['PATH']}")
    assert saved(tmp_path / "seen.json") == expected


def test_check(pod, expected, tmp_path):
    """A check finds this module first, beside check.py."""
    fake = f"import sys; sys.argv = ['', '{tmp_path}/seen.json']\n{SAVE}\nraise ImportError('enough')\n"
    (pod.release / "remote" / "torch.py").write_text(fake)
    command = [sys.executable, str(pod.release / "remote" / "check.py")]
    done = subprocess.run(command, env=pod.env, capture_output=True, text=True)
    assert saved(tmp_path / "seen.json") == expected
    shown = {check["name"]: check["detail"] for check in json.loads(done.stdout)}
    assert [
        shown[name].partition(",")[0] for name in ("tmpdir", "hf_home", "models_dir", "heartmula_dir")
    ] == [expected[name] for name in ("TMPDIR", "HF_HOME", "MUSICGEN_MODELS_DIR", "MUSICGEN_HEARTMULA_DIR")]


def test_stop_hook(pod, expected, tmp_path):
    hook = pod.hook(body=f'{sys.executable} -c "{SAVE}" {tmp_path}/seen.json')
    pod.sh("stop_hook.sh", "a test", str(hook))
    assert saved(tmp_path / "seen.json") == expected


def test_job_that_counts_as_work(pod, expected, tmp_path):
    pod.sh("busy.sh", "copy", "60", "--", *saves(tmp_path / "seen.json"))
    assert saved(tmp_path / "seen.json") == expected


def test_download_into_any_of_the_folders_is_progress(pod, expected):
    """For the watchdog, and for whoever follows the log."""
    script = f". {pod.release}/remote/env.sh; . {pod.release}/remote/state.sh; weights_mb"

    def mb():
        return int(
            subprocess.run(["bash", "-c", script], env=pod.env, capture_output=True, check=True).stdout
        )

    assert mb() == 0
    for name in ("HF_HOME", "MUSICGEN_MODELS_DIR", "MUSICGEN_HEARTMULA_DIR"):
        before = mb()
        Path(expected[name]).mkdir(parents=True)
        (Path(expected[name]) / "weights").write_bytes(os.urandom(2_500_000))
        assert mb() - before in (2, 3)
