"""What `inv --list`, `fab --list` and `--help` print: quick to have, documented, and true."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

import fabfile
import tasks
from tests.listing import ARGUMENTS, TASKS, commands

ROOT = Path(__file__).parents[1]
MODULES = {"inv": "invoke", "fab": "fabric"}


@pytest.mark.parametrize("program", MODULES)
def test_listing_is_the_one_of_the_readme_and_loads_nothing_slow(program):
    script = (
        f"import sys; from {MODULES[program]}.main import program;"
        f"program.run('{program} --list', exit=False);"
        "slow = {'torch', 'transformers', 'numpy', 'boto3', 'rich.table'} & set(sys.modules);"
        "sys.exit(f'loaded {slow}' if slow else 0)"
    )
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.strip() in (ROOT / "README.md").read_text("utf-8"), f"paste `{program} --list` anew"


def test_page_names_all_commands_of_fab():
    page = (ROOT / "docs" / "ssh.md").read_text("utf-8")
    assert {name for program, name, _ in commands(page) if program == "fab"} == set(fabfile.ns.tasks)


def test_page_names_all_commands_for_pods():
    page = (ROOT / "docs" / "runpod.md").read_text("utf-8")
    named = {name for program, name, _ in commands(page) if program == "inv" and name.startswith("pod.")}
    assert named == {name for name in tasks.ns.task_names if name.startswith("pod.")}


def test_first_docstring_lines_fit_the_listing():
    first = {key: task.__doc__.splitlines()[0] for key, task in TASKS.items()}
    wrong = {key: line for key, line in first.items() if not 0 < len(line) <= 60 or line[-1] != "."}
    assert wrong == {}, wrong


def test_each_task_has_an_example_that_names_it_and_its_own_flags():
    wrong = {}
    for (program, name), task in TASKS.items():
        examples = re.findall(rf"^ +Example: {program} (?:-H \S+ )?{name}\b(.*)$", task.__doc__, re.M)
        flags = {
            f"--{each.replace('_', '-')}" for argument in ARGUMENTS[program, name] for each in argument.names
        }
        used = {flag for rest in examples for flag in re.findall(r"--[a-z-]+", rest.partition('"')[0])}
        if len(examples) != 1 or not used <= flags:
            wrong[program, name] = examples
    assert wrong == {}, wrong


def test_every_flag_has_help():
    without_help = [
        (*key, argument.name) for key, found in ARGUMENTS.items() for argument in found if not argument.help
    ]
    assert without_help == [], without_help


def test_no_task_has_short_flags():
    short = [
        (*key, name)
        for key, found in ARGUMENTS.items()
        for argument in found
        for name in argument.names
        if len(name) == 1
    ]
    assert short == [], short  # -h is help everywhere; fab's own are -H, -i, -S and -t


def test_help_of_a_flag_with_a_value_says_what_holds_without_it():
    silent = [
        (*key, argument.name)
        for key, found in ARGUMENTS.items()
        for argument in found
        if argument.takes_value
        and not ("default: " in argument.help and str(argument.default or "") in argument.help)
    ]
    assert silent == [("inv", "image", "remove")]  # without it, nothing is removed
