"""Follow a run's log over SSH until its exit code is known.

Gives every byte once and in order, across dropped, reset and half-open connections.
Ctrl-C stops following; the worker goes on. Does not start, stop or judge a run, and prints nothing.
Raises BoxGone when nothing answers at the box's address any more: read the tail from the bucket.
"""

import re
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import UTC, datetime

import paramiko

from ops import durations
from ops.interrupts import remembered
from ops.ssh import worker
from ops.ssh.box import Box, LinkLost, NoAnswer
from ops.ssh.link import Tell
from worker.errors import BadInput, UserError

PAUSES_S = (1, 2, 5, 10, 30)
GONE_AFTER_S = 120
# A run whose processes are gone without an exit code is given one by session.sh: ask now and then.
_ASK_AFTER_S = 30
_BLOCK = 65536
_LOST = (paramiko.SSHException, EOFError, OSError, LinkLost, NoAnswer)

# $1 state folder, $2 run or nothing, $3 lines back or nothing, $4 since (UTC) or nothing.
# Output: the run's folder, then the byte to begin at. Our log's lines begin with the time they were written.
_BEGINNING = r"""
set -euo pipefail
state=$1
if [ -n "$2" ]; then
  found=$(cd "$state" && ls -1d *"$2" 2> /dev/null | tail -n 1) || true
  [ -n "$found" ] || exit 44
  run=$state/$found
else
  run=$(readlink -f "$state/current") && [ -d "$run" ] || exit 44
fi
echo "$run"
log=$run/log
if [ ! -e "$log" ]; then echo 0
elif [ -n "$4" ]; then
  LC_ALL=C awk -v since="$4" '
    match($0, /[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]T[0-9:]*Z/) && RSTART < 6 {
      if (substr($0, RSTART, RLENGTH) >= since) { exit }
    }
    { at += length($0) + 1 }
    END { print at + 0 }' "$log"
elif [ -n "$3" ]; then
  size=$(wc -c < "$log")
  echo $((size - $(head -c "$size" "$log" | tail -n "$3" | wc -c)))
else echo 0
fi
"""


class BoxGone(UserError):
    """The box does not answer any more."""


class _OwnSide(Exception):
    """Whoever takes the log cannot: a closed pipe looks like a lost connection and is none."""


def beginning(box: Box, run: str = "", lines: str = "", since: str = "") -> tuple[str, int]:
    """The folder of a run (the newest; or one by its id's end) and the byte of its log to begin at.

    `since` is a time as our log writes it; it wins over `lines`.
    """
    if lines and not (lines.isascii() and lines.isdigit()):
        raise BadInput(f"--lines {lines} is not a whole number; write it like --lines 50")
    if not re.fullmatch(r"[A-Za-z0-9-]*", run):
        raise BadInput(f"--run {run} is no run; fab status names them")
    ran = box.shell(_BEGINNING, f"{box.place.root}/state", run, lines, since)
    if ran.code == 44:
        raise BadInput(f"there is no run {run} on the box" if run else "nothing ever ran here; run: fab run")
    if ran.code:
        raise UserError(f"cannot read the log ({ran.reason()}); run it again")
    folder, at = ran.out.split("\n")[:2]
    return folder, int(at)


def since_when(text: str, now: datetime) -> str:
    """`30m` ago, or a UTC time, as our log writes times. Raises BadInput."""
    if not text:
        return ""
    try:
        moment = datetime.fromisoformat(text)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    except ValueError:
        moment = now - durations.parse(text, "--since")
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def follow(
    box: Box,
    folder: str,
    write: Callable[[bytes], None],
    tell: Tell,
    *,
    offset: int = 0,
    poll_s: float = 1.0,
) -> int:
    """Give `write` the log of the run in `folder` from `offset` on; -> the worker's exit code."""
    tries, last_heard_s = 0, time.monotonic()

    def took(block: bytes) -> None:
        nonlocal offset
        try:
            write(block)
        except OSError as error:
            raise _OwnSide from error
        offset += len(block)

    with remembered() as check:
        while True:
            try:
                with box.sftp() as sftp:
                    while True:
                        code = _exit_code(sftp, folder)  # before the log: nothing written after it is missed
                        if grown := _read(sftp, f"{folder}/log", offset, took):
                            last_heard_s = time.monotonic()
                        tries = 0
                        check()
                        if code is not None and not grown:
                            return code
                        if time.monotonic() - last_heard_s > _ASK_AFTER_S:
                            with suppress(UserError):  # it only settles what is lost
                                worker.status(box)
                            last_heard_s = time.monotonic()
                        time.sleep(0 if grown else poll_s)
            except _OwnSide as error:
                raise error.__cause__ or error from None
            except _LOST as error:
                box.close()
                if tries == 0:
                    since_s = time.monotonic()
                    tell(f"the connection was lost after byte {offset}; following again when it is back")
                if isinstance(error, NoAnswer) and time.monotonic() - since_s > GONE_AFTER_S:
                    raise BoxGone(f"{box.label} does not answer any more; run it again to go on") from None
                check()
                time.sleep(PAUSES_S[min(tries, len(PAUSES_S) - 1)])
                tries += 1


def read_to_end(box: Box, folder: str, write: Callable[[bytes], None], offset: int = 0) -> int | None:
    """Give `write` what there is of the log; -> the exit code, or None while the run is on."""
    blocks: list[bytes] = []
    try:
        with box.sftp() as sftp:
            code = _exit_code(sftp, folder)
            _read(sftp, f"{folder}/log", offset, blocks.append)
    except (paramiko.SSHException, EOFError, OSError):
        raise UserError(f"the connection to {box.label} was lost; run it again") from None
    write(b"".join(blocks))
    return code


def _exit_code(sftp: paramiko.SFTPClient, folder: str) -> int | None:
    with suppress(FileNotFoundError), sftp.open(f"{folder}/exit_code", "rb") as file:
        return int(file.read() or b"1")
    return None


def _read(sftp: paramiko.SFTPClient, path: str, offset: int, write: Callable[[bytes], None]) -> bool:
    """Give `write` the file from `offset` on; -> whether there was anything."""
    n_read = 0
    with suppress(FileNotFoundError), sftp.open(path, "rb") as file:
        file.seek(offset)
        while block := file.read(_BLOCK):
            write(block)
            n_read += len(block)
    return n_read > 0
