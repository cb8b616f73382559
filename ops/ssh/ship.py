"""Ship the working tree: one tar stream becomes a release named by its content, then current one.

What git would keep goes, with the job list and its lyrics; `.env`, keys and ignored files never do.
Line ends become LF and modes are set here, so every checkout of a commit gives the same release.
A release appears whole or not at all; three are kept, and any that an unfinished run uses.
"""

import gzip
import hashlib
import io
import re
import subprocess
import tarfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from ops.ssh.box import ROOT, Box
from worker.errors import BadInput, UserError
from worker.songs import jobs

MAX_BYTES = 50_000_000
KEEP = 3
PROMPTS = "prompts.txt"
# What a copy without git ships.
_PARTS = ("worker", "remote", "ops", "requirements", "examples", "pyproject.toml", "tasks.py", "fabfile.py")
_NEVER = (".env", ".runpod.env", ".boxes", ".git", "out")
_SECRET_SUFFIXES = (".pem", ".key")
# By whatever name, also one that git does not know yet: id_ed25519, pod.ppk.
_PRIVATE_KEY = re.compile(rb"\s*(-----BEGIN [A-Z ]*PRIVATE KEY-----|PuTTY-User-Key-File-)")

# $1 root, $2 release name, $3 how many to keep, $4 home. stdin: the tar stream.
_RECEIVE = r"""
set -euo pipefail
root=$1 name=$2 keep=$3
releases=$root/releases
mkdir -p "$releases"
if [ -d "$releases/$name" ]; then
  cat > /dev/null
else
  new=$releases/.$name.$$
  trap 'rm -rf "$new"' EXIT
  mkdir "$new"
  tar -xzf - -C "$new"
  mv -T "$new" "$releases/$name" 2> /dev/null || [ -d "$releases/$name" ]
fi
touch "$releases/$name"
ln -sfn "releases/$name" "$root/current.$$"
mv -T "$root/current.$$" "$root/current"

# --- a release that a run without an exit code names is in use
used=" $name "
for run in "$root"/state/*/release; do
  [ -f "$run" ] && [ ! -e "${run%/release}/exit_code" ] && used+="$(basename "$(cat "$run")") "
done
find "$releases" -mindepth 1 -maxdepth 1 -name '.*' -mmin +60 -exec rm -rf {} +
n=0
while read -r release; do
  n=$((n + 1))
  [ "$n" -le "$keep" ] || [[ "$used" == *" $release "* ]] || rm -rf "${releases:?}/$release"
done < <(ls -1t "$releases")
# --- install.sh notes what the environment was made from
made_from=$(cut -d ' ' -f 1 "$4/venv.stamp" 2> /dev/null || true)
wanted=$(sha256sum "$root/current/requirements/worker.txt" 2> /dev/null | cut -d ' ' -f 1 || true)
[ "$made_from" = "$wanted" ] || echo needs-install
"""


@dataclass(frozen=True)
class Release:
    """What is to be shipped: its name, its bytes, and how much is in it."""

    name: str
    archive: bytes
    n_files: int
    n_bytes: int


@dataclass(frozen=True)
class Shipped:
    """A release that lies on the box and is the current one.

    `needs_install`: the environment there was made from other requirements, or not to the end.
    """

    release: Release
    needs_install: bool


def pack(prompts: Path, root: Path = ROOT) -> Release:
    """The working tree and the job list as a release. Raises BadInput for a wrong list or a big tree."""
    listed = jobs.load(prompts)
    files = {name: root / name for name in sorted(_kept(root))}
    files[PROMPTS] = prompts
    for job in listed:
        if lyrics := job.options.get("lyrics"):
            files[_inside(lyrics, job.line)] = prompts.parent / lyrics

    sizes = {name: path.stat().st_size for name, path in files.items()}
    if sum(sizes.values()) > MAX_BYTES:
        largest = ", ".join(sorted(sizes, key=sizes.__getitem__, reverse=True)[:3])
        raise BadInput(
            f"the code to ship has {sum(sizes.values()) / 1e6:.0f} MB, over {MAX_BYTES / 1e6:.0f}; "
            f"put what is no code into .gitignore (largest: {largest})"
        )
    contents = {name: as_shipped(path.read_bytes()) for name, path in files.items()}
    return bundle({name: each for name, each in contents.items() if not _PRIVATE_KEY.match(each)})


def bundle(contents: dict[str, bytes]) -> Release:
    """The release of these files, whose name depends on nothing but names and contents."""
    digest, buffer = hashlib.sha256(), io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=6, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name in sorted(contents):
            content = contents[name]
            digest.update(f"{name}\0{len(content)}\0".encode() + content)
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            entry.mode = 0o755 if content.startswith(b"#!") else 0o644  # Windows has no modes
            tar.addfile(entry, io.BytesIO(content))
    n_bytes = sum(map(len, contents.values()))
    return Release(digest.hexdigest()[:12], buffer.getvalue(), len(contents), n_bytes)


def as_shipped(content: bytes) -> bytes:
    """Text with LF, as bash needs it; what holds a NUL is no text and stays as it is."""
    return content if b"\0" in content else content.replace(b"\r\n", b"\n")


def send(box: Box, release: Release) -> Shipped:
    """Make it the box's current release. Run again after any failure: nothing half is left."""
    words = (box.place.root, release.name, str(KEEP), box.place.home)
    ran = box.shell(_RECEIVE, *words, stdin=release.archive, limit_s=600)
    if ran.code:
        if "No space left" in ran.err or "Disk quota" in ran.err:
            raise UserError(f"the disk of {box.label} is full; free space (fab shell), then deploy again")
        raise UserError(f"the box did not take the release ({ran.reason()}); run: fab deploy")
    return Shipped(release, "needs-install" in ran.out)


def _kept(root: Path) -> Iterable[str]:
    """Files git would keep, tracked or new; without git, the parts that a box needs."""
    command = ["git", "-C", str(root), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, check=True, capture_output=True).stdout.decode("utf-8").split("\0")
    except (OSError, subprocess.CalledProcessError):
        found = [path for part in _PARTS for path in [root / part, *(root / part).rglob("*")]]
        listed = [path.relative_to(root).as_posix() for path in found if "__pycache__" not in path.parts]
    return {name for name in listed if name and _may_leave(name) and (root / name).is_file()}


def _may_leave(name: str) -> bool:
    """False for what may hold a secret, even where git tracks it."""
    path = PurePosixPath(name)
    secret = path.name.startswith(".env") and path.name != ".env.example"
    return path.parts[0] not in _NEVER and not secret and path.suffix not in _SECRET_SUFFIXES


def _inside(lyrics: str, line: int) -> str:
    """The lyrics' place in the release: beside its job list, as here."""
    path = PurePosixPath(lyrics.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in lyrics:
        raise BadInput(f"{PROMPTS}:{line}: lyrics {lyrics} lie outside its folder; move them beside the list")
    return path.as_posix()
