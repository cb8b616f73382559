"""remote/install.sh: the worker's environment on a box, from real wheels in a folder of their own."""

import base64
import hashlib
import json
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.parts import need


def wheel(folder, name, version, source=""):
    """A real wheel with one module."""
    module, info = f"{name}.py", f"{name}-{version}.dist-info"
    files = {
        module: source or f"__version__ = {version!r}\n",
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n",
        f"{info}/WHEEL": "Wheel-Version: 1.0\nGenerator: test\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
    }

    def digest(text):
        return base64.urlsafe_b64encode(hashlib.sha256(text.encode()).digest()).rstrip(b"=").decode()

    record = "".join(f"{path},sha256={digest(text)},{len(text)}\n" for path, text in files.items())
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-{version}-py3-none-any.whl", "w") as archive:
        for path, text in {**files, f"{info}/RECORD": record + f"{info}/RECORD,,\n"}.items():
            archive.writestr(path, text)


def stripped(box, folder):
    """The box without its environment, and with wheels for what it has to install."""
    uv = shutil.which("uv")
    need("uv", uv is not None)
    shutil.rmtree(box.home / "venv")
    (box.home / "venv.stamp").unlink()
    programs = folder / "bin"
    programs.mkdir()
    (programs / "uv").write_text(f'#!/bin/sh\nexec "{uv}" "$@"\n')
    (programs / "uv").chmod(0o755)
    (programs / "python3").symlink_to(sys.executable)
    box.env["PATH"] = f"{programs}:{box.env['PATH']}"
    wheels = folder / "wheels"
    for version in ("1.0", "2.0"):
        wheel(wheels, "songbird", version)
    wheel(wheels, "torch", "2.13.0")
    pin(box, "songbird==1.0")
    box.settings(PIP_FIND_LINKS=str(wheels), UV_OFFLINE="1")
    return box


@pytest.fixture
def bare(box, tmp_path):
    """A box of the test's own, which was never installed on."""
    return stripped(box, tmp_path)


@pytest.fixture(scope="module")
def used(shared_box, tmp_path_factory):
    return stripped(shared_box, tmp_path_factory.mktemp("programs"))


@pytest.fixture
def installed(used):
    """A box on which songbird 1.0 is installed; what other tests installed there has gone."""
    pin(used, "songbird==1.0")
    used.json("install.sh")
    yield used
    used.sh("session.sh", "stop", "0")


def pin(box, *lines):
    (box.release / "requirements" / "worker.txt").write_text("".join(f"{line}\n" for line in lines))


def image_has_torch(box, version):
    """A torch that the box's own Python sees: in the user's site-packages."""
    script = "import site; print(site.getusersitepackages())"
    base = Path(sys.executable).resolve()
    done = subprocess.run([str(base), "-c", script], env=box.env, capture_output=True, text=True, check=True)
    place = Path(done.stdout.strip())
    (place / f"torch-{version}.dist-info").mkdir(parents=True)
    (place / f"torch-{version}.dist-info" / "METADATA").write_text(
        f"Metadata-Version: 2.1\nName: torch\nVersion: {version}\n"
    )
    (place / "torch.py").write_text(f"__version__ = {version!r}\n")
    python = Path(box.env["PATH"].split(":")[0]) / "python3"
    python.unlink()
    python.symlink_to(base)


def version_in(box, name, environment="venv"):
    python = box.home / environment / "bin" / "python"
    code = f"import {name}; print({name}.__version__)"
    done = subprocess.run([python, "-c", code], env=box.env, capture_output=True, text=True)
    return done.stdout.strip()


def test_environment_has_what_is_pinned(bare):
    answer = bare.json("install.sh")
    assert answer["changed"] and answer["ok"] and answer["torch"] == "none"
    assert answer["python"] == str(bare.home / "venv" / "bin" / "python")
    assert version_in(bare, "songbird") == "1.0"


def test_second_install_changes_nothing(installed):
    made = (installed.home / "venv" / "pyvenv.cfg").stat().st_mtime_ns
    again = installed.json("install.sh")
    assert not again["changed"]
    assert (installed.home / "venv" / "pyvenv.cfg").stat().st_mtime_ns == made


def test_install_is_work_for_the_watchdog(installed):
    assert (installed.home / "busy" / "install").read_text().strip().isdigit()


def test_new_pin_is_installed_and_a_dropped_package_goes(installed):
    pin(installed, "songbird==1.0", "torch==2.13.0")
    installed.json("install.sh")
    pin(installed, "songbird==2.0")
    assert installed.json("install.sh")["changed"]
    assert version_in(installed, "songbird") == "2.0" and version_in(installed, "torch") == ""


def test_environment_that_was_damaged_is_made_anew(installed):
    (installed.home / "venv" / "bin" / "python").unlink()
    assert installed.json("install.sh")["changed"]
    assert version_in(installed, "songbird") == "1.0"


def test_step_that_fails_says_which_and_why_and_is_done_again(installed):
    pin(installed, "nosuchsong==9.9")
    done = installed.sh("install.sh")
    assert done.returncode == 1
    assert "--- packages" in done.stdout.splitlines()
    assert "nosuchsong" in done.stderr and "error: step 'packages' failed (exit 1)" in done.stderr
    assert len(done.stderr.splitlines()) <= 21
    pin(installed, "songbird==1.0")
    assert installed.json("install.sh")["changed"]


def test_images_torch_is_used_if_it_is_the_pinned_one(bare):
    image_has_torch(bare, "2.13.0+cu130")
    pin(bare, "songbird==1.0", "torch==2.13.0", "nvidia-nothing-cu13==1.0")
    assert bare.json("install.sh")["torch"] == "image 2.13.0+cu130"
    assert (version_in(bare, "torch"), version_in(bare, "songbird")) == ("2.13.0+cu130", "1.0")


@pytest.mark.parametrize(
    ("setting", "torch", "there"),
    [("auto", "pinned 2.13.0", "2.13.0"), ("image", "image 2.8.0+cu128", "2.8.0+cu128")],
)
def test_images_other_torch_is_used_only_if_asked(bare, setting, torch, there):
    image_has_torch(bare, "2.8.0+cu128")
    pin(bare, "songbird==1.0", "torch==2.13.0")
    assert bare.json("install.sh", MUSICGEN_TORCH=setting)["torch"] == torch
    assert version_in(bare, "torch") == there


def test_pinned_torch_does_not_see_the_images_packages(bare):
    image_has_torch(bare, "2.13.0")
    pin(bare, "songbird==1.0", "torch==2.13.0")
    bare.json("install.sh", MUSICGEN_TORCH="pinned")
    assert "include-system-site-packages = false" in (bare.home / "venv" / "pyvenv.cfg").read_text()


def test_full_disk_is_said_in_one_line(bare):
    uv = Path(bare.env["PATH"].split(":")[0]) / "uv"
    uv.write_text(
        "#!/bin/sh\necho 'error: failed to write: No space left on device (os error 28)' >&2; exit 2\n"
    )
    done = bare.sh("install.sh")
    assert done.returncode == 1
    assert "; free some space or take a larger disk" in done.stderr.splitlines()[-1]


def test_environment_of_a_running_worker_is_left_alone(installed):
    installed.start()
    assert not installed.json("install.sh")["changed"]
    pin(installed, "songbird==2.0")
    done = installed.sh("install.sh")
    assert done.returncode == 4 and "the worker is running" in done.stderr
    assert version_in(installed, "songbird") == "1.0"


# A second environment, as a script beside install.sh makes one.
SECOND = """
set -euo pipefail
release=$1
. "$release/remote/env.sh"
take_deployed
. "$release/remote/state.sh"
. "$release/remote/environment.sh"
before_change() { :; }
begin_install "$MUSICGEN_BOX_HOME/second.log"
install_tools
install_environment "$MUSICGEN_BOX_HOME/second" "$2" "$python"
installed "$MUSICGEN_BOX_HOME/second"
"""


def second(box, pins):
    """What it says of an environment made from these pins."""
    command = ["bash", "-c", SECOND, "bash", str(box.release), str(pins)]
    return subprocess.run(command, env=box.env, capture_output=True, text=True)


def test_functions_make_a_second_environment_beside_the_workers_also_while_it_runs(installed, tmp_path):
    installed.start()
    pins = tmp_path / "pins.txt"
    pins.write_text("songbird==2.0\n")
    done = second(installed, pins)
    assert done.returncode == 0, done.stderr
    answer = json.loads(done.stdout.splitlines()[-1])
    assert answer["changed"] and answer["python"] == str(installed.home / "second" / "bin" / "python")
    assert version_in(installed, "songbird", "second") == "2.0" and version_in(installed, "songbird") == "1.0"
    again = second(installed, pins)
    assert not json.loads(again.stdout.splitlines()[-1])["changed"]
    pins.write_text("nosuchsong==9.9\n")
    failed = second(installed, pins)
    assert "error: step 'packages' failed (exit 1); its last lines are above" in failed.stderr
    assert str(installed.home / "second.log") in failed.stderr


def test_workers_environment_may_change_while_a_training_is_on(installed):
    installed.train()
    pin(installed, "songbird==2.0")
    assert installed.json("install.sh")["changed"] and installed.status()["running"]


def few_programs(folder, python):
    """A PATH of what the script itself needs and this Python: no tmux, no uv, no apt."""
    folder.mkdir()
    names = (
        "bash sh dirname readlink tr grep id mkdir chmod cat tee df awk stat date hostname flock "
        "sed head tail sha256sum rm mv env"
    )
    for name in names.split():
        (folder / name).symlink_to(shutil.which(name))
    (folder / "python3").symlink_to(python)
    return str(folder)


def test_missing_program_that_cannot_be_installed_is_named(bare, tmp_path):
    uv = bare.env["PATH"].split(":")[0]
    done = bare.sh("install.sh", PATH=f"{uv}:{few_programs(tmp_path / 'few', sys.executable)}")
    assert done.returncode == 2
    assert "error: tmux missing, and there is no apt-get" in done.stderr


def test_box_without_uv_gets_its_own(bare, tmp_path):
    """From the package registry, into the box's home, by the system's pip: the image's Python has none."""
    python = "/usr/bin/python3"
    need("the system's Python", Path(python).exists())
    has_pip = subprocess.run([python, "-m", "pip", "--version"], capture_output=True, cwd="/")
    need("pip of the system's Python", has_pip.returncode == 0)
    without_pip = tmp_path / "python3"
    without_pip.write_text(f'#!/bin/sh\n[ "$2" != pip ] || exit 1\nexec {python} "$@"\n')
    without_pip.chmod(0o755)
    path = few_programs(tmp_path / "few", without_pip)
    (tmp_path / "few" / "tmux").symlink_to(shutil.which("tmux"))
    bare.settings(UV_FIND_LINKS=str(tmp_path / "wheels"), UV_OFFLINE="1")
    answer = bare.json("install.sh", PATH=path)
    assert answer["changed"] and (bare.home / "uv" / "bin" / "uv").exists()
