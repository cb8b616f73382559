"""ops/env_file.py: only what .env lacks is written, whole, and for its owner only."""

import os
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops import env_file
from ops.settings import Settings
from worker.errors import UserError

WANTED = {"MUSICGEN_S3_BUCKET": "songs", "AWS_DEFAULT_REGION": "eu-west-1"}


@pytest.fixture
def file(tmp_path):
    return tmp_path / ".env"


def filled(file, text, wanted=WANTED):
    file.write_bytes(text.encode())
    env_file.fill_in(file, wanted)
    return file.read_bytes().decode()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("", "MUSICGEN_S3_BUCKET=songs\n"),
        ("# a\nHF_TOKEN=t # b\n", "# a\nHF_TOKEN=t # b\nMUSICGEN_S3_BUCKET=songs\n"),
        ("HF_TOKEN=t", "HF_TOKEN=t\nMUSICGEN_S3_BUCKET=songs\n"),
        ("\ufeffHF_TOKEN=t\r\n", "\ufeffHF_TOKEN=t\r\nMUSICGEN_S3_BUCKET=songs\r\n"),
        ("MUSICGEN_S3_BUCKET=\n\n# end\n", "MUSICGEN_S3_BUCKET=songs\n\n# end\n"),
        ("\n export MUSICGEN_S3_BUCKET = ''# b\n", "\n export MUSICGEN_S3_BUCKET =songs # b\n"),
        ("MUSICGEN_S3_BUCKET= # b\r\nA=1\r\n", "MUSICGEN_S3_BUCKET=songs # b\r\nA=1\r\n"),
        ("#MUSICGEN_S3_BUCKET=\n", "#MUSICGEN_S3_BUCKET=\nMUSICGEN_S3_BUCKET=songs\n"),
        ("MUSICGEN_S3_BUCKET=mine # b\n", "MUSICGEN_S3_BUCKET=mine # b\n"),
        ("just words", "just words\nMUSICGEN_S3_BUCKET=songs\n"),
    ],
)
def test_only_what_is_absent_or_empty_is_written(file, before, after):
    assert filled(file, before, {"MUSICGEN_S3_BUCKET": "songs"}) == after


def test_a_file_that_is_not_there_is_made(file):
    env_file.fill_in(file, WANTED)
    assert env_file.read_env_file(file).values == WANTED


@given(st.text(st.characters(exclude_categories=["Cc", "Cs"]), min_size=1))
def test_every_value_comes_back(tmp_path_factory, value):
    file = tmp_path_factory.mktemp("env") / ".env"
    env_file.fill_in(file, {"MUSICGEN_KEY_NAME": value})
    assert env_file.read_env_file(file).values == {"MUSICGEN_KEY_NAME": value}


@pytest.mark.skipif(os.name == "nt", reason="Windows has no such modes")
def test_only_its_owner_may_read_it(file):
    file.touch(0o644)
    env_file.fill_in(file, WANTED)
    assert file.stat().st_mode & 0o777 == 0o600


def test_a_disk_that_fails_leaves_the_file_as_it_was(file, monkeypatch):
    file.write_text("HF_TOKEN=t\n")

    def full(self, target):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(UserError, match="disk full"):
        env_file.fill_in(file, WANTED)
    assert (file.read_text(), list(file.parent.iterdir())) == ("HF_TOKEN=t\n", [file])


@pytest.mark.skipif(os.name == "nt", reason="links need a right there")
def test_a_link_stays_one(file, tmp_path):
    (tmp_path / "real").write_text("")
    file.symlink_to(tmp_path / "real")
    env_file.fill_in(file, WANTED)
    assert file.is_symlink() and "songs" in (tmp_path / "real").read_text()


def test_another_value_is_named_with_its_line_and_not_shown(file):
    file.write_text("\nMUSICGEN_S3_BUCKET=mine\nAWS_DEFAULT_REGION=eu-west-1\n")
    (line,) = env_file.differing(file, WANTED)
    assert line.startswith(f"{file}:2: MUSICGEN_S3_BUCKET is not songs and is left as it is; ")
    assert "mine" not in line


def test_it_belongs_beside_tasks_py(tmp_path, monkeypatch):
    (tmp_path / "tasks.py").touch()
    (tmp_path / "deep").mkdir()
    monkeypatch.chdir(tmp_path / "deep")
    env_file.fill_in(env_file.env_file(), WANTED)
    assert (tmp_path / ".env").exists() and Settings.load({}).bucket == "songs"
