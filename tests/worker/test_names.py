"""worker/names.py: a misspelt setting is noticed, with the one that was meant."""

import re
from pathlib import Path

import pytest

from ops import settings
from worker import names

ROOT = Path(__file__).parents[2]
READS = ("ops/**/*.py", "worker/**/*.py", "remote/*", "bench/*.py", "tasks.py", "fabfile.py")


def test_settings_are_those_of_env_example():
    assert {row.name for row in settings.rows()} == names.SETTINGS, "change worker/names.py, too"


def test_every_name_that_the_code_reads_is_known():
    sources = [path for part in READS for path in ROOT.glob(part) if path.is_file()]
    read = {
        name
        for path in sources
        for name in re.findall(r"\b(?:MUSICGEN|RUNPOD)_[A-Z0-9_]*[A-Z0-9]\b", path.read_text("utf-8"))
    }
    assert "MUSICGEN_STATE_DIR" in read
    unknown = {name for name in read - names.KNOWN if not name.startswith("MUSICGEN_TEST_")}
    assert unknown == set(), "add them to worker/names.py"


@pytest.mark.parametrize(
    ("name", "meant"),
    [
        ("MUSICGEN_MAX_PRCE", "MUSICGEN_MAX_PRICE"),
        ("MUSICGEN_MAXPRICE", "MUSICGEN_MAX_PRICE"),
        ("musicgen_max_price", "MUSICGEN_MAX_PRICE"),
        ("MUSICGEN_LIFETIM_H", "MUSICGEN_LIFETIME_H"),
        ("MUSICGEN_LIFETIME", "MUSICGEN_LIFETIME_H"),
        ("RUNPOD_MAX_PRICE", "MUSICGEN_MAX_PRICE"),
        ("RUNPOD_HOSTS", "RUNPOD_HOST"),
        ("MUSICGN_MAX_PRICE", "MUSICGEN_MAX_PRICE"),
        ("HOURLY_COST", "HOURLY_COST_USD"),
    ],
)
def test_misspelt_name_is_noticed_with_the_nearest(name, meant):
    assert names.mistakes([name]) == {name: f"there is no setting {name}; write {meant}, or remove it"}
    assert names.mistakes([name], own_file=True).keys() == {name}


def test_name_like_no_other_is_noticed_too():
    (said,) = names.mistakes(["MUSICGEN_XYZZY"]).values()
    assert said == ("there is no setting MUSICGEN_XYZZY; remove it (.env.example lists all settings)")


@pytest.mark.parametrize("name", ["AWS_DEFAULT_REGON", "aws_profile", "HF_TOKN", "AWS_ACCESS_KEY"])
def test_other_programs_names_are_judged_in_the_settings_file_only(name):
    assert names.mistakes([name]) == {}
    assert names.mistakes([name], own_file=True).keys() == {name}


@pytest.mark.parametrize(
    "name", ["AWS_ENDPOINT_URL_S3", "HF_TOKEN_PATH", "HF_HOME", "AWS_REGION", "PATH", "TZ"]
)
def test_names_of_other_programs_are_left_alone(name):
    assert names.mistakes([name], own_file=True) == {}


def test_what_the_program_sets_itself_is_known():
    assert names.mistakes([*names.KNOWN, "MUSICGEN_TEST_FRAMES"]) == {}


def test_runpod_s_own_names_are_known_on_a_pod():
    theirs = ["RUNPOD_POD_ID", "RUNPOD_DC_ID", "RUNPOD_TCP_PORT_22"]
    assert names.mistakes(theirs) == {}
    assert names.mistakes(theirs[1:]).keys() == set(theirs[1:])


def test_setting_of_a_box_does_nothing_in_the_user_s_file():
    said = names.mistakes(["MUSICGEN_LIFETIME_S", "MUSICGEN_WATCHDOG_ACTION"], own_file=True)
    assert said["MUSICGEN_LIFETIME_S"].endswith("does nothing here; write MUSICGEN_LIFETIME_H")
    assert said["MUSICGEN_WATCHDOG_ACTION"].endswith("does nothing here; set it there (docs/box.md)")
