"""ops/checks.py: the checks start from a shell in which the environment is not active."""

import subprocess
import sys
from pathlib import Path

import pytest

from ops import checks


@pytest.mark.skipif(not (Path(sys.executable).parent / "shellcheck").exists(), reason="no shellcheck there")
def test_linters_are_found_without_an_active_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert checks._run("shellcheck", [checks._beside_python("shellcheck"), "--version"]) == 0


FAULTY = {
    "ruff check": {"bad.py": "import os\n"},
    "ruff format": {"bad.py": "x = ( 1 )\n"},
    "mypy": {"bad.py": "x: int = ''\n", "mypy.ini": "[mypy]\nfiles = bad.py\n"},
    "import contracts": {
        "bad/__init__.py": "",
        "bad/low.py": "import bad.high\n",
        "bad/high.py": "",
        ".importlinter": "[importlinter]\nroot_package = bad\n[importlinter:contract:1]\nname = floors\n"
        "type = layers\nlayers =\n    bad.high\n    bad.low\n",
    },
}


@pytest.mark.parametrize("name", FAULTY)
def test_check_finds_a_fault(name, tmp_path):
    for path, content in FAULTY[name].items():
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).write_text(content, "utf-8")
    ran = subprocess.run(checks.linters()[name], cwd=tmp_path, capture_output=True, timeout=300)
    assert ran.returncode == 1, ran


def test_program_that_is_not_there_is_a_failed_check_with_its_reason(capfd):
    assert checks._run("it", ["no-such-program"]) == 127
    assert "cannot start no-such-program (No such file or directory); install" in capfd.readouterr().err
