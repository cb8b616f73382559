"""The code that a machine runs, pinned: this folder as an archive named by its content, or a commit.

What git would keep goes, with the job list and the lyrics and audio files that it names; `.env`, keys and
ignored files never do.
Line ends become LF and modes are set here, so every checkout of a commit gives the same release,
whether it goes over SSH or through the bucket.
"""

import gzip
import hashlib
import io
import re
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import urlsplit

from ops import repository
from ops.repository import git
from worker import amounts
from worker.errors import BadInput
from worker.songs import families, jobs
from worker.songs.job import Job

MAX_BYTES = 50_000_000
MAX_AUDIO_BYTES = 100_000_000  # of all audio files that a list continues
PROMPTS = "prompts.txt"
# What is packed where there is no git.
_PARTS = ("worker", "remote", "ops", "requirements", "examples", "pyproject.toml", "tasks.py", "fabfile.py")
_NEVER = (".env", ".runpod.env", ".boxes", ".git", "out")
_SECRET_SUFFIXES = (".pem", ".key")
# Whatever the file is called, tracked or not: id_ed25519, pod.ppk.
_PRIVATE_KEY = re.compile(rb"\s*(-----BEGIN [A-Z ]*PRIVATE KEY-----|PuTTY-User-Key-File-)")


@dataclass(frozen=True)
class Release:
    """Pinned code: an archive with its SHA-256, or a commit of a repository. `id`: its folder on the box."""

    id: str
    archive: bytes = b""
    sha256: str = ""
    git_url: str = ""
    commit: str = ""
    n_files: int = 0
    n_bytes: int = 0

    @property
    def key(self) -> str:
        """The archive's key in the bucket, below the prefix; empty for a commit."""
        return f"code/{self.sha256}.tar.gz" if self.archive else ""


def from_tree(root: Path, prompts: Path, model: str = "") -> Release:
    """The working tree as it is now, changes and all, and the job list for this model.

    Raises BadInput for a wrong list, and for a tree that is too large.
    """
    prompts = prompts.expanduser()
    listed = jobs.load(prompts, families.of(model))
    lyrics, audio = _named(listed, prompts.parent)
    files = {name: root / name for name in sorted(_kept(root))} | {PROMPTS: prompts} | lyrics
    files = {name: path for name, path in files.items() if name not in audio}
    _check_size(files, MAX_BYTES, "the code to ship has", "put what is not code into .gitignore")
    remedy = "convert them to FLAC or MP3, or cut them to their ends"
    _check_size(audio, MAX_AUDIO_BYTES, "the audio files to continue have", remedy)

    # Lyrics as they are: the song's name depends on every byte.
    contents = {
        name: path.read_bytes() if name in lyrics else as_shipped(path.read_bytes())
        for name, path in files.items()
    }
    contents = {name: each for name, each in contents.items() if not _PRIVATE_KEY.match(each)}
    return bundle(contents | {name: path.read_bytes() for name, path in audio.items()})


def from_git(root: Path, prompts: Path, url: str, model: str = "") -> Release:
    """This checkout's commit, which a box clones from `url`. Raises BadInput for what the commit lacks."""
    if urlsplit(url).password or (urlsplit(url).username or "git") != "git":
        raise BadInput(
            "MUSICGEN_GIT_URL contains credentials, and user data can be read; give a public address, "
            "or leave it empty to send this folder"
        )
    commit = (git("rev-parse", "HEAD", root=root) or "").strip()
    if not commit:
        raise BadInput("this folder is not a git checkout, so it has no commit; leave MUSICGEN_GIT_URL empty")
    if git("status", "--porcelain", root=root):
        raise BadInput(
            "this checkout has uncommitted changes; commit and push them, or leave MUSICGEN_GIT_URL empty"
        )
    if prompts.expanduser().resolve() != (root / PROMPTS).resolve():
        raise BadInput(
            f"with MUSICGEN_GIT_URL the job list is the repository's {PROMPTS}; put {prompts} there"
        )
    lyrics, audio = _named(jobs.load(prompts, families.of(model)), root)
    tracked = repository.files("--cached", root=root) or []
    if lacking := sorted((lyrics | audio).keys() - tracked):
        raise BadInput(
            f"{lacking[0]} is not in the commit; commit and push it, or leave MUSICGEN_GIT_URL empty"
        )
    return Release(commit[:16], git_url=url, commit=commit)


def bundle(contents: dict[str, bytes]) -> Release:
    """The release of these files; its id depends on their names and contents alone.

    It is the beginning of the SHA-256 of what `sha256sum --zero` prints for them, so a box can check it.
    """
    digest, buffer = hashlib.sha256(), io.BytesIO()
    with (
        gzip.GzipFile(fileobj=buffer, mode="wb", compresslevel=6, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as tar,
    ):
        for name in sorted(contents):
            content = contents[name]
            digest.update(
                f"{hashlib.sha256(content).hexdigest()}  {name}\0".encode("utf-8", "surrogateescape")
            )
            entry = tarfile.TarInfo(name)
            entry.size = len(content)
            entry.mode = 0o755 if content.startswith(b"#!") else 0o644  # Windows has no modes
            tar.addfile(entry, io.BytesIO(content))
    archive = buffer.getvalue()
    return Release(
        digest.hexdigest()[:12],
        archive,
        hashlib.sha256(archive).hexdigest(),
        n_files=len(contents),
        n_bytes=sum(map(len, contents.values())),
    )


def as_shipped(content: bytes) -> bytes:
    """Text with LF, as bash needs it; what contains a NUL is not text and stays as it is."""
    return content if b"\0" in content else content.replace(b"\r\n", b"\n")


def _kept(root: Path) -> Iterable[str]:
    """Files git would keep, tracked or new; without git, the parts that a box needs."""
    listed = repository.files("--cached", "--others", "--exclude-standard", root=root)
    if listed is None:
        found = [path for part in _PARTS for path in [root / part, *(root / part).rglob("*")]]
        listed = [path.relative_to(root).as_posix() for path in found if "__pycache__" not in path.parts]
    return {name for name in listed if _may_leave(name) and (root / name).is_file()}


def _may_leave(name: str) -> bool:
    """False for what may contain a secret, even if git tracks it."""
    path = PurePosixPath(name)
    secret = path.name.startswith(".env") and path.name != ".env.example"
    return path.parts[0] not in _NEVER and not secret and path.suffix not in _SECRET_SUFFIXES


def _named(listed: Sequence[Job], folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """The lyrics and the audio files of a list in this folder, by their paths in the release."""
    lyrics = {_inside(path, job.line): folder / path for job in listed if (path := job.options.get("lyrics"))}
    audio = {job.options["continue"]: job.continued_file.path for job in listed if job.continued_file}
    return lyrics, audio


def _check_size(files: Mapping[str, Path], most: int, what: str, remedy: str) -> None:
    sizes = {name: path.stat().st_size for name, path in files.items()}
    if (total := sum(sizes.values())) > most:
        largest = ", ".join(sorted(sizes, key=sizes.__getitem__, reverse=True)[:3])
        raise BadInput(
            f"{what} {amounts.size(total)}, over {amounts.size(most)}; {remedy} (largest: {largest})"
        )


def _inside(lyrics: str, line: int) -> str:
    """The path of the lyrics in the release: relative to the job list, as here."""
    path = PurePosixPath(lyrics.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in lyrics:
        raise BadInput(f"{PROMPTS}:{line}: lyrics {lyrics} are outside its folder; move them beside the list")
    return path.as_posix()
