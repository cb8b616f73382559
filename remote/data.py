"""The training's data on this box, in the folder of MUSICGEN_DATA_DIR: what `fab sync-data` asks for.

    data.py list                   -> {"folder", "files": [[path, bytes, mtime], ...],
                                       "partial": {path: bytes that have come}}
    data.py probe BYTES            write so much there and take it away: a quota shows in no other way
    data.py prepare < [path, ...]  -> {path: bytes of its partial file}; the folders for them are there then
    data.py place < {path: bytes}  a partial file becomes the file, if it has so many
    data.py unpack < TAR           each file of the archive becomes a file
    data.py sums < [path, ...]     -> {path: SHA-256}; null where it cannot be read
    data.py mark < {path: mtime}   these are verified: their time becomes the source's
    data.py remove < [path, ...]   delete files, and the folders that are empty then
    data.py stop                   end rsync of a connection that was lost: it then keeps what came
    data.py tidy                   delete what unfinished transfers left

A file that was sent has the time 0 until it is verified. Partial files are in a folder of their own beside
the file's place. Exit code 1 and one line when the disk is full, or a file cannot be written.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

PARTIAL = ".musicgen-partial"
# Where rsync writes a file first. It deletes a folder of partial files that it has emptied; this one is left.
SCRATCH = f"{PARTIAL}/new"
_BLOCK = 1 << 20
# Where space cannot be reserved, it is filled for so long: then that much is known to be there.
_FILL_S = 20.0
_STOP_S = 10.0


def listed(folder: Path) -> dict[str, Any]:
    """Every file, also those behind links to folders."""
    files, partial = [], {}
    for place, names in _walk(folder):
        if place == folder / SCRATCH:
            continue
        for name in names:
            try:
                found = (place / name).stat()
            except OSError:  # a broken link, or gone meanwhile
                continue
            if place.name == PARTIAL:
                partial[str((place.parent / name).relative_to(folder))] = found.st_size
            else:
                files.append([str((place / name).relative_to(folder)), found.st_size, int(found.st_mtime)])
    return {"folder": str(folder), "files": files, "partial": partial}


def probe(folder: Path, n_bytes: int) -> None:
    """Raise OSError if so much cannot be written, as far as can be found out in a short time."""
    (folder / SCRATCH).mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=folder / SCRATCH) as file:
        reserve = ["fallocate", "--length", str(max(n_bytes, 1)), file.name]
        reserved = subprocess.run(reserve, capture_output=True, text=True)
        if reserved.returncode == 0:
            return
        if "not supported" not in reserved.stderr:
            sys.exit(f"error: {reserved.stderr.strip()}")
        until_s, zeros = time.monotonic() + _FILL_S, bytes(8 * _BLOCK)
        while n_bytes > 0 and time.monotonic() < until_s:
            n_bytes -= file.write(zeros[: min(n_bytes, len(zeros))])
        file.flush()
        os.fsync(file.fileno())


def prepare(folder: Path, paths: list[str]) -> dict[str, int]:
    """Make the folders of these files; -> how much of each has come already."""
    for at in {folder / SCRATCH, *(_partial(folder, path).parent for path in paths)}:
        at.mkdir(parents=True, exist_ok=True)
    return {path: partial.stat().st_size for path in paths if (partial := _partial(folder, path)).exists()}


def place(folder: Path, sizes: dict[str, int]) -> None:
    """Give complete files their names. SFTP does not say of every write that it failed."""
    for path, n_bytes in sizes.items():
        partial = _partial(folder, path)
        if (come := partial.stat().st_size) != n_bytes:
            sys.exit(f"error: only {come} of {n_bytes} bytes of {path} came")
        os.utime(partial, (0, 0))
        partial.replace(folder / path)


def unpack(folder: Path, archive: Any) -> None:
    """Write the files of a tar stream, each whole or not at all."""
    with tarfile.open(fileobj=archive, mode="r|") as members:
        for member in members:
            content = members.extractfile(member)
            if content is None or member.name.startswith("/") or ".." in member.name.split("/"):
                sys.exit(f"error: {member.name} is not a file of a folder")
            prepare(folder, [member.name])
            with _partial(folder, member.name).open("wb") as file:
                shutil.copyfileobj(content, file)
            place(folder, {member.name: member.size})


def sums(folder: Path, paths: list[str]) -> dict[str, str | None]:
    """The checksums of files as they are on the disk."""
    return {path: _sum(folder / path) for path in paths}


def mark(folder: Path, times: dict[str, int]) -> None:
    """Set the times of verified files."""
    for path, mtime in times.items():
        os.utime(folder / path, (mtime, mtime))


def remove(folder: Path, paths: list[str]) -> None:
    """Delete files, and the folders in which nothing is left."""
    for path in paths:
        (folder / path).unlink(missing_ok=True)
        for above in list(Path(path).parents)[:-1]:
            try:
                (folder / above).rmdir()
            except OSError:
                break


def stop(folder: Path) -> None:
    """End every rsync that writes here, and wait until each has, for a short time.

    One whose connection died silently would notice that only later, and keep what came only then.
    """
    until_s = time.monotonic() + _STOP_S
    while (found := list(_rsyncs(folder))) and time.monotonic() < until_s:
        for pid in found:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)
        time.sleep(0.1)


def tidy(folder: Path) -> None:
    """Delete what unfinished transfers left, all of which are over."""
    left = [place for place, _ in _walk(folder) if place.name == PARTIAL]
    for place in left:
        shutil.rmtree(place, ignore_errors=True)


def _walk(folder: Path) -> Iterator[tuple[Path, list[str]]]:
    """Every folder and its files, also behind links, but not behind one that leads back to where it is."""
    for place, folders, names in os.walk(folder, followlinks=True):
        real = Path(place).resolve()
        above = {real, *real.parents}
        links = [name for name in folders if Path(place, name).is_symlink()]
        for name in links:
            if Path(place, name).resolve() in above:
                folders.remove(name)
        yield Path(place), names


def _rsyncs(folder: Path) -> Iterator[int]:
    """Processes of rsync's receiving side that are in this folder."""
    for process in Path("/proc").glob("[0-9]*"):
        with suppress(OSError):
            words = (process / "cmdline").read_bytes().split(b"\0")
            if words[:2] == [b"rsync", b"--server"] and (process / "cwd").readlink() == folder.resolve():
                yield int(process.name)


def _partial(folder: Path, path: str) -> Path:
    """Where a file is until it is complete."""
    return (folder / path).parent / PARTIAL / Path(path).name


def _sum(path: Path) -> str | None:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while block := file.read(_BLOCK):
                digest.update(block)
    except OSError:
        return None
    return digest.hexdigest()


def main(words: list[str]) -> None:
    """Do one command and print its answer as JSON."""
    folder = Path(os.environ["MUSICGEN_DATA_DIR"])
    if words[0] != "list":
        folder.mkdir(parents=True, exist_ok=True)
    print(json.dumps(_answer(folder, words[0], words[1:]) or {}))


def _answer(folder: Path, command: str, words: list[str]) -> Any:
    plain: dict[str, Callable[..., Any]] = {"list": listed, "stop": stop, "tidy": tidy}
    with_input: dict[str, Callable[..., Any]] = {
        "prepare": prepare,
        "place": place,
        "sums": sums,
        "mark": mark,
        "remove": remove,
    }
    if command in plain:
        return plain[command](folder)
    if command in with_input:
        return with_input[command](folder, json.load(sys.stdin))
    if command == "probe":
        probe(folder, int(words[0]))
    elif command == "unpack":
        unpack(folder, sys.stdin.buffer)
    else:
        sys.exit(f"error: data.py does not know {command}; run: fab deploy")
    return None


if __name__ == "__main__":
    try:
        main(sys.argv[1:])
    except OSError as error:
        sys.exit(f"error: {error.strerror or error}: {error.filename or os.environ['MUSICGEN_DATA_DIR']}")
