"""This repository: its root folder, and what git knows about a checkout. Changes nothing."""

import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_GIT_LIMIT_S = 30


def git(*arguments: str, root: Path = ROOT) -> str | None:
    """What git prints, stripped; None without git, outside a checkout, or when the command fails."""
    command = ["git", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_GIT_LIMIT_S)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.decode("utf-8", "replace").strip() if done.returncode == 0 else None


def head(root: Path = ROOT) -> str:
    """The first 12 digits of the commit that is checked out; empty without one."""
    return git("rev-parse", "--short=12", "HEAD", root=root) or ""


def commit(root: Path = ROOT) -> str:
    """`head`, with `+` if the working tree has changes; empty without a commit."""
    found = head(root)
    return found + "+" * bool(found and git("status", "--porcelain", root=root))
