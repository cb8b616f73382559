"""remote/training/environment.py: the training's environment, made once for its requirements."""

import os
import subprocess
import sys

import pytest

from remote.training import environment
from remote.training.refusal import Failure, Refusal
from tests.fakes.box import write_wheel


@pytest.fixture
def requirements(tmp_path, monkeypatch):
    """A requirement that is in a folder of wheels, and no registry."""
    wheels = tmp_path / "wheels"
    wheels.mkdir()
    write_wheel(wheels, "songbird", "1.0")
    for name in [name for name in os.environ if name.startswith(("PIP_", "UV_"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(wheels))
    file = tmp_path / "requirements.txt"
    file.write_text("songbird==1.0\n")
    return file


def test_environment_has_what_is_required_and_is_made_once(requirements, tmp_path, capfd):
    python = environment.prepare(requirements, tmp_path / "home")
    subprocess.run([python, "-c", "import songbird"], check=True)
    assert python.is_relative_to(tmp_path / "home" / "training")
    before = python.parents[1].stat().st_ctime_ns
    assert environment.prepare(requirements, tmp_path / "home") == python
    assert python.parents[1].stat().st_ctime_ns == before
    assert "environment is up to date" in capfd.readouterr().out


def test_half_made_environment_is_made_again_and_that_of_other_requirements_goes(requirements, tmp_path):
    home = tmp_path / "home"
    for name in (environment.key(requirements), "other"):
        (home / "training" / name / "bin").mkdir(parents=True)
    python = environment.prepare(requirements, home)
    subprocess.run([python, "-c", "import songbird"], check=True)
    assert [path.name for path in (home / "training").iterdir()] == [environment.key(requirements)]


def test_requirements_that_do_not_install_are_one_line(requirements, tmp_path, capfd):
    requirements.write_text("no-such-package==1\n")
    with pytest.raises(Failure, match=r"^the environment cannot be made.*; correct the requirements$"):
        environment.prepare(requirements, tmp_path / "home")
    assert "no-such-package" in capfd.readouterr().out
    assert list((tmp_path / "home").rglob("complete")) == []


def test_uv_installs_where_the_image_has_no_pip(tmp_path, monkeypatch):
    python, uv = tmp_path / "python", tmp_path / "home" / "uv" / "bin" / "uv"
    python.write_text("#!/bin/sh\nexit 1\n")
    python.chmod(0o755)
    monkeypatch.setenv("PATH", "")
    with pytest.raises(Failure, match="has no pip, and there is no uv; run the install phase first"):
        environment._installer(python, tmp_path / "home")
    uv.parent.mkdir(parents=True)
    uv.write_text("#!/bin/sh\n")
    uv.chmod(0o755)
    assert environment._installer(python, tmp_path / "home") == [
        *(str(uv), "pip", "install", "--python", str(python))
    ]


def test_full_disk_is_named():
    program = "import sys; print('OSError: [Errno 28] No space left on device'); sys.exit(1)"
    with pytest.raises(Failure, match="disk is full; rent a box with a larger one"):
        environment._run([sys.executable, "-c", program])


def test_missing_requirements_are_refused(tmp_path):
    with pytest.raises(Refusal, match="name the file with --requirements"):
        environment.prepare(tmp_path / "none.txt", tmp_path / "home")


@pytest.mark.parametrize("name", ["requirements.txt", "more.txt", "limits.txt"])
def test_key_changes_with_every_file_that_is_required(tmp_path, name):
    (tmp_path / "requirements.txt").write_text("-r more.txt\n-c limits.txt\nsongbird\n")
    (tmp_path / "more.txt").write_text("-r requirements.txt\nfinch\n")
    (tmp_path / "limits.txt").write_text("songbird<2\n")
    before = environment.key(tmp_path / "requirements.txt")
    with (tmp_path / name).open("a") as file:
        file.write("wren\n")
    assert environment.key(tmp_path / "requirements.txt") != before


def test_installer_gets_no_secrets(tmp_path, monkeypatch, capfd):
    for name in ("HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "geheim")
    monkeypatch.setenv("PIP_INDEX_URL", "https://example.com")
    program = "import os, sys; print(sorted(os.environ), os.environ['PIP_INDEX_URL']); sys.exit(1)"
    with pytest.raises(Failure):
        environment._run([sys.executable, "-c", program])
    printed = capfd.readouterr().out
    assert "https://example.com" in printed
    assert not {"HF_TOKEN", "WANDB_API_KEY", "AWS_SECRET_ACCESS_KEY"} & set(printed.replace("'", " ").split())
