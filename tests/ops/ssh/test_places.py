"""Every way onto a box over a real SSH server gives the same folders, whatever its image sets."""

import json
import shutil
import subprocess
from pathlib import Path

import pytest

from ops.ssh.terminal import shell_command, ssh_command
from tests.ops.ssh.connect import connected

REPOSITORY = Path(__file__).parents[3]
PLACES = ("HF_HOME", "HF_DATASETS_CACHE", "TMPDIR", "MUSICGEN_MODELS_DIR", "MUSICGEN_HEARTMULA_DIR")
DEAD = ("TRANSFORMERS_CACHE", "HF_HUB_ENABLE_HF_TRANSFER")
PRINT = "import json, os; print(json.dumps(dict(os.environ)))"


@pytest.fixture
def pod(box):
    """A box with a volume, a release, and the variables that RunPod's images set, also in ~/.bashrc."""
    images = dict.fromkeys((*PLACES[:3], *DEAD), "/image")
    box.variables |= images
    box.write_shell()
    (box.home / ".bashrc").write_text("".join(f"export {name}={value}\n" for name, value in images.items()))
    (box.home / ".profile").write_text(". ~/.bashrc\n")
    release = box.root / "releases" / "aaaa"
    shutil.copytree(REPOSITORY / "remote", release / "remote")
    (release / "remote" / "print.py").write_text(PRINT)
    (box.root / "current").symlink_to(release)
    return box


@pytest.fixture
def conn(pod, tmp_path):
    with connected(pod, tmp_path) as conn:
        yield conn


def places(env):
    """The folders in an environment, or in the answer of env.sh."""
    assert not set(DEAD) & set(env)
    return {name: env[name] for name in PLACES}


def typed(command, pod):
    """The folders in the environment of what a person starts in this shell."""
    seen = pod.folder / "seen.json"
    seen.unlink(missing_ok=True)
    line = f"python3 {pod.root}/current/remote/print.py > {seen}\nexit\n"
    subprocess.run(command, input=line.encode(), capture_output=True, check=True, timeout=60)
    return places(json.loads(seen.read_text()))


def test_every_way_onto_a_box_has_its_folders(pod, conn):
    asked = conn.remote("env.sh").json()
    volume = str(pod.root.parent)
    assert (asked["HF_HOME"], asked["MUSICGEN_MODELS_DIR"]) == (
        f"{volume}/.cache/huggingface",
        f"{volume}/models",
    )
    script = (REPOSITORY / "remote" / "env.sh").read_bytes()
    assert places(conn.run("bash -s", stdin=script).json()) == places(asked)
    assert places(conn.remote("print.py", interpreter="python3").json()) == places(asked)
    without_terminal = shell_command(conn)
    with_terminal = ["-tt" if word == "-t" else word for word in without_terminal]
    assert with_terminal != without_terminal
    assert typed(without_terminal, pod) == typed(with_terminal, pod) == places(asked)


def test_temporary_folder_is_there_for_what_fab_starts(pod, conn):
    env = conn.remote("print.py", interpreter="python3").json()
    assert Path(env["TMPDIR"]).is_dir() and Path(env["TMPDIR"]).is_relative_to(pod.folder)


def test_shell_of_a_person_keeps_the_pods_key(pod, conn):
    (pod.home / ".profile").write_text("export RUNPOD_API_KEY=planted\n")
    done = subprocess.run(
        shell_command(conn), input="echo $RUNPOD_API_KEY\n", capture_output=True, text=True, timeout=60
    )
    assert done.stdout == "planted\n"


def test_shell_on_a_box_without_a_release_is_a_login_shell(pod, conn):
    (pod.root / "current").unlink()
    assert shell_command(conn) == ssh_command(conn)


def test_shell_where_bashrc_ends_every_command_is_a_login_shell_and_that_is_said(pod, tmp_path):
    (pod.home / ".bashrc").write_text("exit 0\n")
    said = []
    with connected(pod, tmp_path, report=said.append) as conn:
        assert shell_command(conn) == ssh_command(conn)
    assert "this is a plain shell, without the variables of remote/env.sh" in said[-1]
