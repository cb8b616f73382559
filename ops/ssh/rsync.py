"""Send files to a folder of the box with rsync, over the ssh program and the pinned host key.

rsync resumes a file in its middle and sends only what differs. Files keep no owner, which network volumes
refuse. Does not decide what to send, and tries nothing twice.
"""

import io
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from ops.data_files import DataFile
from ops.ssh import terminal
from ops.ssh.box import Box, CommandResult
from worker.errors import UserError

# Both ends give up on the other after this long; ssh itself notices a dead connection before.
_SILENCE_S = 60
_SSH_OPTIONS = ("BatchMode=yes", "ConnectTimeout=15", "ServerAliveInterval=5", "ServerAliveCountMax=3")
_VERSION = re.compile(r"rsync +version +v?(\d+)\.(\d+)")
_LEAST = (3, 1)  # for --info=progress2; macOS has 2.6.9 or openrsync
_PROGRESS = re.compile(r"^ *(\d+) +\d+% ")
# Exit codes of a connection that ended: socket, protocol stream, timeouts; and ssh's own.
_CUT = {10, 12, 30, 35, 255}
_CUT_TEXT = re.compile("Broken pipe|Connection reset|connection unexpectedly closed")
_NO_WAY = re.compile(
    r"is your shell clean|command not found|Permission denied \([a-z]|"
    "Host key verification failed|protocol version mismatch|unknown option|Bad configuration option"
)
_FULL = re.compile("No space left|Disk quota")


class Unusable(Exception):
    """rsync does not work between these two machines; the text says why."""


@dataclass(frozen=True)
class _Ended:
    code: int
    lines: list[str]  # of its messages

    @property
    def reason(self) -> str:
        told = [line for line in self.lines if line.startswith(("rsync: ", "ssh: ", "error: "))]
        return (told or self.lines[-1:] or [f"exit code {self.code}"])[0]


def refuse_unusable(box: Box) -> None:
    """Raise Unusable where one of the two machines has no rsync that will do, or this one no ssh."""
    if os.name == "nt":
        raise Unusable("rsync does not know Windows' paths")  # those of Cygwin and WSL need others
    for program in ("rsync", "ssh"):
        if not shutil.which(program):
            raise Unusable(f"there is no {program} on this machine")
    own = subprocess.run(["rsync", "--version"], capture_output=True, text=True).stdout
    for where, text in (("this machine", own), (box.label, box.run("rsync --version").out)):
        found = _VERSION.search(text)
        if not found or (int(found[1]), int(found[2])) < _LEAST:
            raise Unusable(f"there is no rsync {_LEAST[0]}.{_LEAST[1]} or newer on {where}")


def send(
    box: Box,
    source: Path,
    folder: str,
    partial: str,
    files: Sequence[DataFile],
    told: Callable[[int], None],
) -> None:
    """Send these files of `source`; `told` gets the bytes that are done, again and again.

    What came of a file is kept in a folder `partial` beside it; in that of `folder` itself, `new` is there
    already. Raises LinkLost, Unusable, or UserError.
    """
    _ = box.transport  # pins the host key, or refuses it, before ssh starts
    with tempfile.TemporaryFile() as names:
        names.write(b"".join(file.path.encode() + b"\0" for file in files))
        names.seek(0)
        with subprocess.Popen(
            _command(box, folder, partial),
            cwd=source,
            stdin=names,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            env=os.environ | {"LC_ALL": "C"},
        ) as process:
            try:
                ended = _followed(process, told)
            finally:
                process.terminate()  # on Ctrl-C; rsync then keeps what came
    if ended.code:
        raise _problem(box, folder, ended)


def _command(box: Box, folder: str, partial: str) -> list[str]:
    *ssh, where = terminal.ssh_command(box)
    for option in _SSH_OPTIONS:
        ssh += ["-o", option]
    user, _, host = where.rpartition("@")
    host = f"[{host}]" if ":" in host else host
    return [
        "rsync",
        "--from0",
        "--files-from=-",
        "--copy-links",  # what a link leads to
        "--keep-dirlinks",  # a folder of the box may be on another volume
        "--no-owner",
        "--no-group",
        f"--partial-dir={partial}",
        f"--temp-dir={partial}/new",  # below `folder`
        f"--timeout={_SILENCE_S}",
        "--info=progress2",
        "--no-human-readable",
        "--protect-args",
        f"--rsync-path={' '.join([*box.sudo, 'rsync'])}",
        f"--rsh={' '.join(map(_quoted, ssh))}",
        "./",
        f"{user}@{host}:{folder}/",
    ]


def _quoted(word: str) -> str:
    """As rsync takes --rsh apart: at spaces, and with quotes that are doubled within quotes."""
    return "'" + word.replace("'", "''") + "'"


def _followed(process: "subprocess.Popen[bytes]", told: Callable[[int], None]) -> _Ended:
    output = cast(io.BufferedReader, process.stdout)
    lines: list[str] = []
    rest = b""
    while block := output.read1(4096):
        *complete, rest = re.split(rb"[\r\n]", rest + block)
        for line in [raw.decode("utf-8", "replace") for raw in complete]:
            if found := _PROGRESS.match(line):
                told(int(found[1]))
            elif line.strip():
                lines.append(line)
    if rest.strip():
        lines.append(rest.decode("utf-8", "replace"))
    return _Ended(process.wait(), lines)


def _problem(box: Box, folder: str, ended: _Ended) -> Exception:
    text = "\n".join(ended.lines)
    if _FULL.search(text):
        return box.write_problem(CommandResult(ended.code, "", text), folder)
    if found := _NO_WAY.search(text):
        (line,) = [line for line in ended.lines if found[0] in line][:1] or [found[0]]
        return Unusable(line)
    if ended.code in _CUT or _CUT_TEXT.search(text):
        return box.lost()
    if ended.code == 24:
        return UserError(f"files were removed while they were sent ({ended.reason}); run it again")
    return UserError(f"rsync could not send all ({ended.reason}); correct that, then run it again")
