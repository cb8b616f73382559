"""The tasks as a user meets them: quick to list, documented, data on stdout, one-line errors."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import invoke
import pytest

import tasks

ROOT = Path(__file__).parents[1]
TASKS = invoke.Collection.from_module(tasks).tasks
# Once: a task hands out its help texts only the first time.
ARGUMENTS = {name: task.get_arguments() for name, task in TASKS.items()}


@pytest.fixture
def inv(tmp_path):
    """The real `inv` with our tasks, in a folder of the user's without settings, without a terminal."""
    ours = re.compile("AWS_|MUSICGEN_|HOURLY_COST_USD|RUN_ID")
    env = {name: value for name, value in os.environ.items() if not ours.match(name)}

    def run(*arguments):
        command = [sys.executable, "-m", "invoke", "--search-root", str(ROOT), *arguments]
        return subprocess.run(
            command, cwd=tmp_path, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL
        )

    return run


# --- the listing


def test_listing_loads_neither_torch_nor_anything_else_that_is_slow():
    script = (
        "import sys; from invoke.main import program; program.run('inv --list', exit=False);"
        "slow = {'torch', 'transformers', 'numpy', 'boto3', 'rich.table'} & set(sys.modules);"
        "sys.exit(f'loaded {slow}' if slow else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")


def test_readme_shows_the_commands_that_exist(inv):
    done = inv("--list")
    assert done.returncode == 0
    assert done.stdout.strip() in (ROOT / "README.md").read_text("utf-8"), "paste `inv --list` anew"


@pytest.mark.parametrize("name", TASKS)
def test_first_docstring_line_fits_the_listing(name):
    first = TASKS[name].__doc__.splitlines()[0]
    assert 0 < len(first) <= 60 and first.endswith(".")


@pytest.mark.parametrize("name", TASKS)
def test_task_has_an_example_that_names_it_and_its_own_flags(name):
    (example,) = re.findall(rf"^ +Example: inv {name}\b(.*)$", TASKS[name].__doc__, re.M)
    flags = {f"--{argument.name.replace('_', '-')}" for argument in ARGUMENTS[name]}
    before_strings = example.partition('"')[0]
    assert set(re.findall(r"--[a-z-]+", before_strings)) <= flags


@pytest.mark.parametrize("name", TASKS)
def test_every_flag_has_help(name):
    assert [argument.name for argument in ARGUMENTS[name] if not argument.help] == []


# --- inv check


def test_check_json_is_json_on_stdout_and_nothing_else(inv, tmp_path):
    (tmp_path / "prompts.txt").write_text("тихо; calm ; 30 ; calm\n", "utf-8")
    done = inv("check", "--json")
    (row,) = json.loads(done.stdout)
    assert (row["prompt"], row["duration_s"], row["state"]) == ("тихо; calm", 30.0, "to make")
    assert done.returncode == 0
    assert done.stderr == "1 of 1 songs to make, 30 s of audio, into out/songs; 0 done already\n"


def test_check_of_a_wrong_list_is_2_with_every_line_and_its_number(inv, tmp_path):
    (tmp_path / "prompts.txt").write_text("calm ; 30 ; calm\nnothing else\n\nlong ; 1e9 ; long\n")
    done = inv("check")
    assert (done.returncode, done.stdout) == (2, "")
    first, second = done.stderr.splitlines()
    assert first.startswith("error: prompts.txt:2: ") and second.startswith("error: prompts.txt:4: ")


def test_check_without_a_list_says_what_to_do(inv):
    done = inv("check")
    assert done.returncode == 2
    assert done.stderr == "error: no prompts file at prompts.txt; check the path\n"


def test_check_shows_the_repository_s_own_list(inv):
    done = inv("check", "--prompts", str(ROOT / "prompts.txt"))
    assert done.returncode == 0
    assert "dance_test_79fae998.wav" in done.stdout


# --- inv fetch


def test_fetch_from_an_empty_place_is_2(inv, tmp_path):
    done = inv("fetch", "--source", "nowhere", "--to", "here")
    assert done.returncode == 2
    assert done.stderr.startswith("error: nothing in nowhere; ")
    assert list(tmp_path.iterdir()) == []
