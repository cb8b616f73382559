"""User data as text: quoted, short, without secrets. tests/remote/test_bootstrap.py runs it."""

import shlex
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ops.aws import user_data
from ops.release import Release
from worker.errors import BadInput

REMOTE = Path(__file__).parents[3] / "remote"
TEXTS = [(REMOTE / name).read_text("utf-8") for name in ("bootstrap.sh", "s3_object.py")]


def boot(**changes):
    given = {
        "run_id": "20261122T195059Z-ab12",
        "expires_at": datetime(2026, 11, 23, tzinfo=UTC),
        "lifetime_s": 28800,
        "region": "us-east-1",
        "bucket": "b" * 63,
        "prefix": "p" * 200,
        "release": Release("0" * 16, b"x", "0" * 64),
        "worker_env": {"MUSICGEN_MODEL": "facebook/musicgen-medium"},
    }
    return user_data.Boot(**given | changes)


def test_it_fits_ec2_with_room_to_spare():
    assert len(user_data.render(boot(), *TEXTS).encode()) < 14 * 1024


def test_too_long_is_refused_here_and_not_by_ec2():
    with pytest.raises(BadInput, match=r"the user data has .* bytes, EC2 accepts 16384"):
        user_data.render(boot(worker_options=["--", *["--only=song"] * 500]), *TEXTS)


def test_it_begins_with_a_shebang_and_every_value_is_quoted():
    nasty = "a'b; shutdown now #$(id)"
    script = user_data.render(boot(prefix=nasty), *TEXTS)
    assert script.startswith("#!/usr/bin/env bash\n")
    words = shlex.split(script.partition("\n# First boot")[0].partition("\n")[2])
    assert f"LOG_KEY={nasty}/launches/20261122T195059Z-ab12/bootstrap.log" in words


@pytest.mark.parametrize("name", ["AWS_SECRET_ACCESS_KEY", "HF_TOKEN", "RUNPOD_API_KEY"])
def test_a_secret_cannot_get_into_it(name):
    with pytest.raises(ValueError, match=name):
        user_data.render(boot(worker_env={name: "x"}), *TEXTS)


@pytest.mark.parametrize("value", ["it's", "two\nlines"])
def test_a_value_that_bash_and_systemd_read_differently_is_refused(value):
    with pytest.raises(BadInput, match="MUSICGEN_MODEL holds"):
        user_data.env_file({"MUSICGEN_MODEL": value})


def test_the_code_is_pinned_by_the_archive_or_by_the_commit():
    from_git = user_data.render(boot(release=Release("1", git_url="https://x/y", commit="1" * 40)), *TEXTS)
    assert f"CODE_COMMIT={'1' * 40}\n" in from_git and "CODE_KEY=''\n" in from_git
    assert f"CODE_SHA256={'0' * 64}\n" in user_data.render(boot(), *TEXTS)
