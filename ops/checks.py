"""The repository's own checks: what `inv lint`, `inv test` and `inv bench` run."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ops import repository, ui


def lint() -> list[str]:
    """Run every static check, also after one has failed; -> the names of those that failed."""
    python = [sys.executable, "-m"]
    checks = {
        "ruff check": [*python, "ruff", "check", "."],
        "ruff format": [*python, "ruff", "format", "--check", "."],
        "mypy": [*python, "mypy"],
        "import contracts": [*python, "importlinter.cli", "lint"],
        "requirements": [sys.executable, "requirements/compile.py", "--check"],
        "shellcheck": [_beside_python("shellcheck"), *_shell_scripts()],
    }
    return [name for name, argv in checks.items() if _run(name, argv)]


def test(arguments: Sequence[str] = ()) -> int:
    """Run the tests; -> pytest's exit code."""
    return _run("pytest", [sys.executable, "-m", "pytest", *arguments])


def bench(arguments: Sequence[str] = ()) -> int:
    """Run the benchmark; -> its exit code."""
    return _run("bench", [sys.executable, "-m", "bench", *arguments])


def _run(name: str, argv: Sequence[str]) -> int:
    ui.say(f"--- {name}")
    try:
        return subprocess.run(argv, cwd=repository.ROOT).returncode
    except OSError as error:
        ui.say(f"cannot start {argv[0]} ({error.strerror}); install what `uv sync` installs")
        return 127


def _beside_python(program: str) -> str:
    """The program of this environment, also where the environment is not active."""
    return shutil.which(program, path=str(Path(sys.executable).parent)) or program


def _shell_scripts() -> list[str]:
    return repository.files("*.sh", ".ci/run") or []
