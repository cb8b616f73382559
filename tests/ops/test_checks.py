"""ops/checks.py: the checks start from a shell in which the environment is not active."""

import sys
from pathlib import Path

import pytest

from ops import checks


@pytest.mark.skipif(not (Path(sys.executable).parent / "shellcheck").exists(), reason="no shellcheck there")
def test_linters_are_found_without_an_active_environment(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert checks._run("shellcheck", [checks._beside_python("shellcheck"), "--version"]) == 0


def test_program_that_is_not_there_is_a_failed_check_with_its_reason(capfd):
    assert checks._run("it", ["no-such-program"]) == 127
    assert "cannot start no-such-program (No such file or directory); install" in capfd.readouterr().err
