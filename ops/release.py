"""The code that a machine runs, pinned: this folder by its archive's SHA-256, or a commit of a repository.

The folder goes as `fab deploy` ships it, the user's own job list in it, so that a box has the same release
whichever way it came.
"""

import hashlib
import subprocess
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from worker.errors import BadInput

PROMPTS = "prompts.txt"


@dataclass(frozen=True)
class Release:
    """Code that is pinned: by its archive's SHA-256, or by a commit that git checks."""

    id: str
    archive: bytes = b""
    sha256: str = ""
    git_url: str = ""
    commit: str = ""

    @property
    def key(self) -> str:
        """Where the archive lies in the bucket, below the prefix."""
        return f"code/{self.sha256}.tar.gz" if self.archive else ""


def from_tree(root: Path, prompts: Path) -> Release:
    """The working tree as it is now, changes and all."""
    from ops.ssh import ship  # here: it brings Fabric along

    packed = ship.pack(prompts, root)
    return Release(packed.name, packed.archive, hashlib.sha256(packed.archive).hexdigest())


def from_git(root: Path, prompts: Path, url: str) -> Release:
    """This checkout's commit, to be had from a public repository. Raises BadInput if it is not all in it."""
    if urlsplit(url).password or (urlsplit(url).username or "git") != "git":
        raise BadInput(
            "MUSICGEN_GIT_URL holds credentials, and user data can be read; give a public address, "
            "or leave it empty to send this folder"
        )
    commit = _git(root, "rev-parse", "HEAD")
    if not commit:
        raise BadInput("this folder is no git checkout, so it has no commit; leave MUSICGEN_GIT_URL empty")
    if _git(root, "status", "--porcelain"):
        raise BadInput(
            "this checkout has changes that no commit has; commit and push them, "
            "or leave MUSICGEN_GIT_URL empty"
        )
    if prompts.resolve() != (root / PROMPTS).resolve():
        raise BadInput(f"with MUSICGEN_GIT_URL the list is the repository's {PROMPTS}; put {prompts} there")
    return Release(commit[:16], git_url=url, commit=commit)


def _git(root: Path, *arguments: str) -> str:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True)
    except OSError:
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
