"""What `inv --list`, `fab --list` and `--help` tell: quick to have, documented, and true."""

import re
import subprocess
import sys
from pathlib import Path

import invoke
import pytest

import fabfile
import tasks

ROOT = Path(__file__).parents[1]
MODULES = {"inv": "invoke", "fab": "fabric"}
TASKS = {
    (program, name): task
    for program, found in (("inv", invoke.Collection.from_module(tasks)), ("fab", fabfile.ns))
    for name, task in found.tasks.items()
}
# Once: a task hands out its help texts only the first time.
ARGUMENTS = {key: task.get_arguments() for key, task in TASKS.items()}
every_task = pytest.mark.parametrize(("program", "name"), TASKS)


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


def test_page_names_the_commands_of_fab_that_exist_and_all_of_them():
    page = (ROOT / "docs" / "ssh.md").read_text("utf-8")
    named = re.findall(r"`fab (?:-H \S+ )?([a-z-]+)", page)
    assert set(named) == set(fabfile.ns.tasks)


@every_task
def test_first_docstring_line_fits_the_listing(program, name):
    first = TASKS[program, name].__doc__.splitlines()[0]
    assert 0 < len(first) <= 60 and first.endswith(".")


@every_task
def test_task_has_an_example_that_names_it_and_its_own_flags(program, name):
    text = TASKS[program, name].__doc__
    (example,) = re.findall(rf"^ +Example: {program} (?:-H \S+ )?{name}\b(.*)$", text, re.M)
    flags = {f"--{argument.name.replace('_', '-')}" for argument in ARGUMENTS[program, name]}
    before_strings = example.partition('"')[0]
    assert set(re.findall(r"--[a-z-]+", before_strings)) <= flags


@every_task
def test_every_flag_has_help_and_none_is_fabric_s_own(program, name):
    arguments = ARGUMENTS[program, name]
    assert [argument.name for argument in arguments if not argument.help] == []
    short = {each for argument in arguments for each in argument.names}
    assert program == "inv" or not {"H", "i", "S", "t"} & short
