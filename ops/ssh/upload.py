"""Send files to the data folder of the box over SFTP, where rsync cannot be used, as on Windows.

A large file is resumed at the byte where it was cut; small ones go together, as each would take several round
trips. What came of a file becomes the file only when it is complete. Tries nothing twice.
"""

import io
import json
import tarfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import BinaryIO

from ops.data_files import DataFile, batches
from ops.ssh.box import Box, CommandResult
from ops.ssh.link import BROKEN, LinkLost
from worker.errors import UserError

_SMALL = 4 << 20
_BATCH = 8 << 20
_BATCH_FILES = 500
_BLOCK = 1 << 18
_PROBE = 1 << 20
_LIMIT_S = 1800
SCRIPT = "data.py"


def ask(box: Box, command: str, *words: str, stdin: bytes = b"", limit_s: float = _LIMIT_S) -> CommandResult:
    """Have remote/data.py do one command. Raises UserError for what it could not write."""
    ran = box.remote(SCRIPT, command, *words, interpreter="python3", stdin=stdin, limit_s=limit_s)
    if ran.code:
        raise box.write_problem(ran, "the data folder")
    return ran


def refuse_full(box: Box) -> None:
    """Raise UserError if nothing more can be written in the data folder."""
    ask(box, "probe", str(_PROBE))


def send(
    box: Box,
    source: Path,
    folder: str,
    partial: str,
    files: Sequence[DataFile],
    told: Callable[[int], None],
) -> None:
    """Send these files of `source`; `told` gets the bytes that are done, again and again.

    What came of a file is kept in a folder `partial` beside it. Raises LinkLost or UserError.
    """
    done = 0
    for batch in batches([file for file in files if file.n_bytes < _SMALL], _BATCH, _BATCH_FILES):
        ask(box, "unpack", stdin=_tar(source, batch))
        done += sum(file.n_bytes for file in batch)
        told(done)
    for file in files:
        if file.n_bytes >= _SMALL:
            _send_large(box, source, folder, partial, file, told, done)
            done += file.n_bytes


def _tar(source: Path, files: Sequence[DataFile]) -> bytes:
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for file in files:
            with _opened(source, file) as opened:
                content = opened.read()  # its size may have changed since it was listed
            member = tarfile.TarInfo(file.path)
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
    return packed.getvalue()


def _send_large(
    box: Box, source: Path, folder: str, partial: str, file: DataFile, told: Callable[[int], None], done: int
) -> None:
    come = ask(box, "prepare", stdin=json.dumps([file.path]).encode()).json().get(file.path, 0)
    place, _, name = f"{folder}/{file.path}".rpartition("/")
    with _opened(source, file) as content:
        if come > file.n_bytes:  # the file has become shorter since
            come = 0
        content.seek(come)
        try:
            with box.sftp() as sftp, sftp.open(f"{place}/{partial}/{name}", "ab" if come else "wb") as copy:
                copy.set_pipelined(True)
                while block := _read(content, file):
                    copy.write(block)
                    come += len(block)
                    told(done + come)
        except BROKEN as error:
            raise _cannot_write(box, file, error) from None
    try:
        ask(box, "place", stdin=json.dumps({file.path: come}).encode())
    except UserError:
        refuse_full(box)  # where it was lost, this says so, too
        raise


def _cannot_write(box: Box, file: DataFile, error: Exception) -> UserError:
    """What a failure during a write means; SFTP has no word for a full disk, so the box is asked."""
    problem = box.sftp_problem(error)
    if isinstance(problem, LinkLost):
        return problem
    refuse_full(box)
    return UserError(f"{box.label} could not write {file.path} ({error}); run it again")


def _opened(source: Path, file: DataFile) -> BinaryIO:
    try:
        return (source / file.path).open("rb")
    except OSError as error:
        raise _cannot_read(file, error) from None


def _read(content: BinaryIO, file: DataFile) -> bytes:
    try:
        return content.read(_BLOCK)
    except OSError as error:  # here: around the write, it would be taken for the connection's
        raise _cannot_read(file, error) from None


def _cannot_read(file: DataFile, error: OSError) -> UserError:
    return UserError(f"cannot read {file.path} any more ({error.strerror}); correct that, then run it again")
