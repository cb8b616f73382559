"""This repository: its root folder, and what git knows about a checkout. Changes nothing."""

import os
import subprocess
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
_GIT_LIMIT_S = 30


def git(*arguments: str, root: Path = ROOT) -> str | None:
    """What git prints; None without git, outside a checkout, or when the command fails."""
    command = ["git", "-C", str(root), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, timeout=_GIT_LIMIT_S)
    except (OSError, subprocess.SubprocessError):
        return None
    return os.fsdecode(done.stdout) if done.returncode == 0 else None


def files(*arguments: str, root: Path = ROOT) -> list[str] | None:
    """The names that `git ls-files` prints, whatever is in them; None where git prints nothing."""
    listing = git("ls-files", "-z", *arguments, root=root)
    return None if listing is None else listing.split("\0")[:-1]


def head(root: Path = ROOT) -> str:
    """The first 12 digits of the commit that is checked out; empty without one."""
    return (git("rev-parse", "--short=12", "HEAD", root=root) or "").strip()


def commit(root: Path = ROOT) -> str:
    """`head`, with `+` if the working tree has changes; empty without a commit."""
    found = head(root)
    return found + "+" * bool(found and git("status", "--porcelain", root=root))
