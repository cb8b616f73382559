"""The repository's own checks: what `inv lint`, `inv test` and `inv bench` run."""

import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from ops import repository, ui


def lint() -> list[str]:
    """Run every static check, also after one has failed; -> the names of those that failed."""
    return [name for name, argv in linters().items() if _run(name, argv)]


def linters() -> dict[str, list[str]]:
    """Each static check's name and command line; it ends with 0 if it has nothing to object to."""
    python = [sys.executable, "-m"]
    return {
        "ruff check": [*python, "ruff", "check", "."],
        "ruff format": [*python, "ruff", "format", "--check", "."],
        "mypy": [*python, "mypy"],
        "import contracts": [_beside_python("lint-imports")],
        "requirements": [sys.executable, "requirements/compile.py", "--check"],
        "shellcheck": [_beside_python("shellcheck"), *_shell_scripts()],
    }


def test(arguments: Sequence[str] = ()) -> int:
    """Run the tests; -> pytest's exit code."""
    return _run("pytest", [sys.executable, "-m", "pytest", *arguments])


def bench(arguments: Sequence[str] = (), *, gpu: bool = False) -> int:
    """Run the benchmark, or that of this machine's GPU; -> its exit code."""
    module = "bench.gpu" if gpu else "bench"
    return _run(module, [sys.executable, "-m", module, *arguments])


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
