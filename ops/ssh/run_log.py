"""Follow a run's log over SSH until its exit code is known.

Gives every byte once and in order, across dropped, reset and half-open connections.
Ctrl-C stops following; the worker goes on. Does not start, stop or judge a run.
When nothing answers at the box's address any more, the tail comes from the bucket.
"""

import re
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime

import paramiko

from ops import durations, ui
from ops.interrupts import remembered
from ops.settings import Settings
from ops.ssh import session
from ops.ssh.box import Box
from ops.ssh.link import LinkLost, NoAnswer, Report
from worker.errors import BadInput, UserError
from worker.songs import status
from worker.store.base import Missing
from worker.store.open import open_store

PAUSES_S = (1, 2, 5, 10, 30)
GONE_AFTER_S = 120
# A run whose processes are gone without an exit code is given one by session.sh: ask now and then.
_ASK_AFTER_S = 30
_BLOCK = 65536
_LINES = 20
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


@dataclass(frozen=True)
class Ended:
    """A run as the bucket tells it. `exit_code`: None if it never wrote its last status."""

    run_id: str
    state: str
    exit_code: int | None
    tail: list[str]


def show(box: Box, settings: Settings, *, run: str, lines: str, since: str, once: bool) -> int:
    """Print a run's log until it ends (`once`: what there is); -> the worker's exit code.

    Ctrl-C ends only the following, with 0. Raises UserError if neither box nor bucket has the run.
    """
    stamp = since_when(since, datetime.now(UTC))
    folder = ""
    try:
        folder, at = beginning(box, run, lines or str(_LINES), stamp)
        if once:
            read_to_end(box, folder, ui.pour, at)
            return 0
        code = follow(box, folder, ui.pour, ui.say, offset=at)
    except (NoAnswer, BoxGone) as error:
        # Boxes may share a bucket: the run that was followed is told, not the newest of them all.
        return _from_bucket(settings, error, folder.rpartition("/")[2] or run, int(lines or _LINES))
    except KeyboardInterrupt:
        ui.say("\nstopped following; the worker goes on (fab stop ends it)")
        return 0
    ui.say(f"run {folder.rpartition('/')[2]} ended with exit code {code}")
    return code


def beginning(box: Box, run: str = "", lines: str = "", since: str = "") -> tuple[str, int]:
    """The folder of a run (the newest; or one by its id's end) and the byte of its log to begin at.

    `since` is a time as our log writes it; it wins over `lines`.
    """
    if lines and not (lines.isascii() and lines.isdigit()):
        raise BadInput(f"--lines {lines} is not a whole number; write it like --lines 50")
    if not re.fullmatch(r"[A-Za-z0-9-]*", run):
        raise BadInput(f"--run {run} is no run; fab status names them")
    ran = box.shell(_BEGINNING, f"{box.info.root}/state", run, lines, since)
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
    report: Report,
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
                                session.status(box)
                            last_heard_s = time.monotonic()
                        time.sleep(0 if grown else poll_s)
            except _OwnSide as error:
                raise error.__cause__ or error from None
            except _LOST as error:
                box.close()
                if tries == 0:
                    since_s = time.monotonic()
                    report(f"the connection was lost after byte {offset}; following again when it is back")
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


def last_run(place: str, run_id: str = "", n_lines: int = 20) -> Ended | None:
    """The newest run in the bucket, or the one whose id ends so; None if there is none.

    Raises UserError if its status cannot be read.
    """
    store = open_store(place)
    found = sorted(key.split("/")[1] for key in store.list("runs/") if key.endswith(f"/{status.FILE}"))
    found = [name for name in found if name.endswith(run_id)]
    if not found:
        return None
    try:
        last = status.read(store.read(f"runs/{found[-1]}/{status.FILE}"))
    except status.Unreadable as error:
        raise UserError(f"{error}; see runs/{found[-1]} in {store.location}") from None
    try:
        log = store.read(f"runs/{found[-1]}/worker.log").decode("utf-8", "replace").splitlines()
    except Missing:
        log = []
    return Ended(found[-1], last.state, last.exit_code, log[max(0, len(log) - n_lines) :])


def _from_bucket(settings: Settings, gone: UserError, run: str, n_lines: int) -> int:
    settings.export_aws()
    place = settings.output_place
    ended = last_run(place, run, n_lines) if place.startswith("s3://") else None
    if ended is None:
        raise gone
    ui.say(f"{gone}")
    ui.say(f"the box is gone; this is what {place} has of run {ended.run_id}:")
    ui.pour("".join(f"{line}\n" for line in ended.tail).encode())
    code = "no exit code" if ended.exit_code is None else f"exit code {ended.exit_code}"
    ui.say(f"run {ended.run_id}: {ended.state}, {code}")
    return 1 if ended.exit_code is None else ended.exit_code


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
