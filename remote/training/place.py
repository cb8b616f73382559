"""The training's repository on this box: a clone at a pinned commit, or a tree that was shipped.

It is always in the same folder of the volume, as checkpoints record absolute paths. Checkpoints, logs and
data are in it, too: neither way deletes or replaces a file that it did not bring.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from urllib.parse import urlsplit

from .refusal import Failure, Refusal

_RESERVED = ("musicgen", "models", "ckpt", "data", "logs", "tmp")
_SHIPPED = ".shipped.json"  # which files the last shipped tree brought
_IN_PROGRESS = "musicgen-checkout"  # in .git: a checkout that was not finished


def volume() -> Path:
    """Where everything that must outlive the box lies, as env.sh decides it."""
    workspace = Path(os.environ.get("MUSICGEN_WORKSPACE") or "/workspace")
    if workspace.is_dir() and os.access(workspace, os.W_OK):
        return workspace
    return Path(os.environ["MUSICGEN_BOX_ROOT"])


def folder(name: str, url: str = "") -> Path:
    """The repository's folder. `name`: its own, else the last part of the URL's path. Raises Refusal."""
    name = name or urlsplit(url).path.rstrip("/").rpartition("/")[2].removesuffix(".git") or "training"
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,99}", name) or name in _RESERVED:
        raise Refusal(f"{name!r} cannot be the name of the training's folder; choose another with --name")
    return volume() / name


def clone(url: str, commit: str, folder: Path) -> None:
    """Have this commit of the repository there. Raises Refusal, or Failure if it cannot be fetched."""
    if urlsplit(url).password or (urlsplit(url).username or "git") != "git":
        raise Refusal("the URL of the training's repository has a login in it; ship the tree instead")
    if not re.fullmatch(r"[0-9a-f]{40}", commit):
        raise Refusal(
            f"{commit!r} is not a commit; give its whole 40 digits, as git rev-parse HEAD prints them"
        )
    if (folder / _SHIPPED).exists():
        raise Refusal(f"{folder} has a shipped tree; choose another folder for the clone with --name")
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ".git" / "index.lock").unlink(missing_ok=True)  # of a checkout that was killed
    _git(folder, "init", "--quiet")
    origin = _git(folder, "config", "--get", "remote.origin.url", check=False)
    if not origin:
        _git(folder, "remote", "add", "origin", url)
    elif origin != url:
        raise Refusal(f"{folder} is a clone of another repository; choose another folder with --name")
    unfinished = folder / ".git" / _IN_PROGRESS
    if not unfinished.exists() and (changed := _git(folder, "status", "--porcelain", "--untracked-files=no")):
        first = changed.splitlines()[0][2:].strip()
        raise Refusal(
            f"{folder} was changed on this box ({first}); commit that, or undo it with git checkout"
        )
    if not _has(folder, commit):
        # Not every server gives a single commit.
        _git(folder, "fetch", "--quiet", "--depth", "1", "origin", commit, check=False)
    if not _has(folder, commit):
        _git(folder, "fetch", "--quiet", "origin")
    if not _has(folder, commit):
        raise Refusal(f"the training's repository has no commit {commit}; push it first")
    force = ["--force"] if unfinished.exists() else []
    unfinished.touch()
    _git(folder, "checkout", "--quiet", *force, "--detach", commit)
    unfinished.unlink()


def unpack(archive: Path, folder: Path) -> None:
    """Have the files of this tar archive there, and none that an earlier one brought and it lacks."""
    if (folder / ".git").exists():
        raise Refusal(f"{folder} has a clone; choose another folder for the shipped tree with --name")
    if not archive.is_file():
        raise Refusal(f"there is no archive {archive}; ship the tree again")
    folder.mkdir(parents=True, exist_ok=True)
    brought = (
        set(json.loads((folder / _SHIPPED).read_text("utf-8"))) if (folder / _SHIPPED).exists() else set()
    )
    with tempfile.TemporaryDirectory(prefix=".shipped-", dir=folder.parent) as new:
        _run(["tar", "-xzf", str(archive), "-C", new], f"{archive} cannot be unpacked")
        files = {
            str(path.relative_to(new))
            for path in Path(new).rglob("*")
            if not path.is_dir() or path.is_symlink()
        }
        for name in sorted(files - brought):
            if os.path.lexists(folder / name):
                raise Refusal(f"{folder / name} is already there and was not shipped; move it away first")
        _note(folder, files | brought)
        for name in sorted(files):
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.move(str(Path(new, name)), folder / name)
        for name in brought - files:
            (folder / name).unlink(missing_ok=True)
        _note(folder, files)


def link_data(folder: Path) -> None:
    """Have the volume's `data` in the repository, unless it has its own."""
    data, link = volume() / "data", folder / "data"
    if data.is_dir() and not os.path.lexists(link):
        link.symlink_to(data)


def point_to_log(log: Path) -> None:
    """Have `logs/current.log` on the volume lead to this run's log."""
    link = volume() / "logs" / "current.log"
    if link.exists() and not link.is_symlink():
        return  # somebody's own file
    link.parent.mkdir(exist_ok=True)
    new = link.with_name(f"current.log.{os.getpid()}")
    new.symlink_to(log)
    new.replace(link)


def _note(folder: Path, files: set[str]) -> None:
    new = folder / f"{_SHIPPED}.tmp"
    new.write_text(json.dumps(sorted(files)), "utf-8")
    new.replace(folder / _SHIPPED)


def _has(folder: Path, commit: str) -> bool:
    # asked this way, git also says it of a commit whose files were not all fetched
    command = [*_GIT, "cat-file", "-e", f"{commit}^{{tree}}"]
    return subprocess.run(command, cwd=folder, capture_output=True).returncode == 0


# A volume's files may be another user's.
_GIT = ["git", "-c", "safe.directory=*", "-c", "advice.detachedHead=false"]


def _git(folder: Path, *words: str, check: bool = True) -> str:
    return _run([*_GIT, *words], f"git {words[0]} failed in {folder}", folder, check)


def _run(command: list[str], failed: str, folder: Path | None = None, check: bool = True) -> str:
    env = os.environ | {"GIT_TERMINAL_PROMPT": "0", "LC_ALL": "C"}
    ran = subprocess.run(
        command, cwd=folder, env=env, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    if check and ran.returncode != 0:
        raise Failure(f"{failed}: {' '.join(ran.stderr.split())[-300:]}; put that right, then start it again")
    return ran.stdout.strip()
