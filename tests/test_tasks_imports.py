"""tasks.py and fabfile.py hold no logic: they import ops, the errors, the task runner and Python's library.

import-linter keeps the other arrows (pyproject.toml); it cannot watch a module outside a package.
"""

import ast
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
ALLOWED = {"invoke", "ops", "worker.errors"}


def imported(source):
    """Every module a source imports, anywhere in it."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


def strangers(source):
    def allowed(module):
        return module.split(".")[0] in ALLOWED | sys.stdlib_module_names or module in ALLOWED

    return [module for module in imported(source) if not allowed(module)]


@pytest.mark.parametrize("name", ["tasks.py", "fabfile.py"])
def test_tasks_import_only_ops_errors_and_the_task_runner(name):
    assert strangers((ROOT / name).read_text("utf-8")) == []


def test_an_import_inside_a_task_is_seen():
    source = "from worker.errors import BadInput\nimport ops.ui\ndef task():\n    from worker import jobs\n"
    assert strangers(source) == ["worker"]
