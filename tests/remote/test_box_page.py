"""docs/box.md names every script and setting of remote/, with the default that holds."""

import re

import pytest

from tests.remote.boxes import REPOSITORY

PAGE = (REPOSITORY / "docs" / "box.md").read_text("utf-8")
SCRIPTS = """
    env.sh install.sh environment.sh session.sh job.sh stop_hook.sh deadline.sh watchdog.sh state.sh
    pod_start.sh
""".split()
SOURCE = "".join((REPOSITORY / "remote" / name).read_text("utf-8") for name in SCRIPTS)
# Given by one script to another or to the worker, not by a user.
OURS = {"MUSICGEN_STATE_DIR", "MUSICGEN_STOP_REASON", "MUSICGEN_OUTPUT", "MUSICGEN_S3_BUCKET"}


@pytest.mark.parametrize("name", sorted(set(re.findall(r"\bMUSICGEN_[A-Z0-9_]*[A-Z0-9]\b", SOURCE)) - OURS))
def test_setting_is_explained(name):
    assert f"`{name}" in PAGE


@pytest.mark.parametrize(("name", "default"), re.findall(r"\{(MUSICGEN_[A-Z_]+):-([0-9 ]+)\}", SOURCE))
def test_default_is_the_one_that_holds(name, default):
    (row,) = re.findall(rf"^\| `{name}` \| (.*?) \|", PAGE, re.M) or re.findall(
        rf"(60) s\n\(`{name}`\)", PAGE
    )
    assert row.strip("`") == default
