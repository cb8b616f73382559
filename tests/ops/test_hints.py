"""Commands in messages: pasted into the user's shell they run, and they exist."""

import ast
import re
import sys
from pathlib import Path

import pytest

from ops import hints
from tests.listing import ALIASES, TASKS

ROOT = Path(__file__).parents[2]
ACTIVE = {"VIRTUAL_ENV": sys.prefix}
INACTIVE = [{}, {"VIRTUAL_ENV": "/other"}, ACTIVE | {"UV_RUN_RECURSION_DEPTH": "1"}]


@pytest.mark.parametrize("env", INACTIVE)
@pytest.mark.parametrize(
    ("text", "pasted"),
    [
        ("see: inv status", "see: uv run inv status"),
        ("`fab --list` shows all", "`uv run fab --list` shows all"),
        ("start it: fab install, or fab run", "start it: uv run fab install, or uv run fab run"),
        ("its songs: fab -H pod1 status", "its songs: uv run fab -H pod1 status"),
        ("run: uv run inv check", "run: uv run inv check"),
        ("no file at /home/inv list", "no file at /home/inv list"),
        ("inv[oke] [--core-opts]", "inv[oke] [--core-opts]"),
    ],
)
def test_command_is_run_by_uv_where_the_environment_is_not_active(env, text, pasted):
    assert hints.pasteable(text, env) == pasted


def test_command_stays_as_it_is_in_an_active_environment():
    assert hints.pasteable("see: inv status", ACTIVE) == "see: inv status"


def test_every_command_that_a_text_of_the_program_names_exists():
    sources = [ROOT / "tasks.py", ROOT / "fabfile.py", *ROOT.glob("[orw]*/**/*.py")]
    texts = [
        (path.name, node.value)
        for path in sources
        for node in ast.walk(ast.parse(path.read_text("utf-8")))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    ]
    named = {
        (name, *found)
        for name, text in texts
        for found in re.findall(r"(?<![\w./-])(inv|fab) ([a-z][a-z-]*(?:\.[a-z-]+)?)", text)
    }
    assert len(named) > 20
    assert [one for one in named if one[1:] not in TASKS.keys() | ALIASES.keys()] == []
