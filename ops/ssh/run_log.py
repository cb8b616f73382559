"""Follow a run's log over SSH until its exit code is known; from the bucket when the box is gone.

Gives every byte once and in order, across dropped, reset and half-open connections.
Ctrl-C stops following; the run goes on. Does not start or stop a run.
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
from ops.ssh.link import BROKEN, LinkLost, NoAnswer, Report
from ops.ssh.reconnect import BoxGone, Reconnection
from worker import timestamps
from worker.errors import BadInput, UserError
from worker.songs import status
from worker.store.base import Missing
from worker.store.open import open_store

POLL_S = 1.0
# A run whose processes are gone without an exit code is given one.
_CHECK_AFTER_S = 30
_BLOCK = 65536
_LINES = 20
_GOES_ON = "following"
_LOST = (*BROKEN, LinkLost, NoAnswer)

# $1 state folder, $2 run or empty, $3 lines back or empty, $4 since (UTC) or empty.
# Output: the run's folder, its job, then the byte to start at. Lines of the log begin with their timestamp.
_FIND_START = r"""
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
head -n 1 "$run/job" 2> /dev/null || echo
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


class _WriterFailed(Exception):
    """`write` failed, as with a closed pipe, which is not to be taken for a lost connection."""


@dataclass(frozen=True)
class LogQuery:
    """What of which run. `run`: its id or the end of it (empty: the newest).

    `lines`: start this many lines back. `since`: start at a time or a span ago; wins over `lines`.
    """

    run: str = ""
    lines: str = ""
    since: str = ""


@dataclass(frozen=True)
class EndedRun:
    """A run as it is in the bucket. `exit_code`: None if it did not write its last status."""

    run_id: str
    state: str
    exit_code: int | None
    tail: list[str]


def show(box: Box, settings: Settings, query: LogQuery, *, once: bool = False) -> int:
    """Print a run's log until it ends (`once`: what there is now); -> the job's exit code.

    Ctrl-C ends only the following, with 0. Raises UserError if neither box nor bucket has the run.
    """
    folder, job = "", ""
    try:
        if once:
            folder, job, at = find_start(box, query)
            read_to_end(box, folder, ui.pour, at)
            return 0
        reconnection = Reconnection(box, ui.say, _GOES_ON)
        while not folder:
            try:
                folder, job, at = find_start(box, query)
            except (LinkLost, NoAnswer) as error:
                if isinstance(error, NoAnswer) and not reconnection.tries:
                    raise
                reconnection.wait(error, "before the first byte")
        code = follow(box, folder, ui.pour, ui.say, offset=at)
    except (NoAnswer, BoxGone) as error:
        # The run that was followed or asked for: the newest in the bucket may be another box's.
        run = folder.rpartition("/")[2] or query.run
        if not run:
            raise type(error)(
                f"{error}; the log of a run that is in the bucket: fab logs --run RUN_ID"
            ) from None
        return _show_from_bucket(settings, error, run, int(query.lines or _LINES))
    except KeyboardInterrupt:
        ui.say(f"\nstopped following; the {session.name_of(job)} keeps running (stop it: fab stop)")
        return 0
    ui.say(f"run {folder.rpartition('/')[2]} ended with exit code {code}")
    return code


def find_start(box: Box, query: LogQuery) -> tuple[str, str, int]:
    """The folder of the run on the box, its job, and the byte of its log to start at. Raises BadInput."""
    run, lines = query.run, query.lines or str(_LINES)
    since = since_when(query.since, datetime.now(UTC))
    if not (lines.isascii() and lines.isdigit()):
        raise BadInput(f"--lines {lines} is not a whole number; write it like --lines 50")
    if not re.fullmatch(r"[A-Za-z0-9-]*", run):
        raise BadInput(f"--run {run} is not a valid run id; see the newest: fab status")
    ran = box.shell(_FIND_START, f"{box.info.root}/state", run, lines, since)
    if ran.code == 44:
        raise BadInput(
            f"there is no run {run} on the box"
            if run
            else "there was no run on this box yet; start one: fab run"
        )
    if ran.code:
        raise UserError(f"cannot read the log ({ran.reason()}); run it again")
    folder, job, at = ran.out.split("\n")[:3]
    return folder, job, int(at)


def since_when(text: str, now: datetime) -> str:
    """The timestamp of `30m` before `now`, or of a time, which is UTC without a zone. Raises BadInput."""
    if not text:
        return ""
    try:
        moment = datetime.fromisoformat(text)
        moment = moment if moment.tzinfo else moment.replace(tzinfo=UTC)
    except ValueError:
        moment = now - durations.parse(text, "--since")
    return timestamps.stamp(moment)


def follow(
    box: Box,
    folder: str,
    write: Callable[[bytes], None],
    report: Report,
    *,
    offset: int = 0,
    settle: Callable[[Box], object] = session.status,
) -> int:
    """Pass the log of the run in `folder` to `write` from `offset` on; -> its exit code.

    `settle`: asked now and then, writes the exit code of a run whose processes are gone.
    """
    reconnection, last_grown_s = Reconnection(box, report, _GOES_ON), time.monotonic()

    def pass_on(block: bytes) -> None:
        nonlocal offset
        try:
            write(block)
        except OSError as error:
            raise _WriterFailed from error
        offset += len(block)

    with remembered() as check:
        while True:
            try:
                with box.sftp() as sftp:
                    while True:
                        code = _exit_code(sftp, folder)  # before the log, so that no line is missed
                        if grown := _read(sftp, f"{folder}/log", offset, pass_on):
                            last_grown_s = time.monotonic()
                        reconnection.tries = 0
                        check()
                        if code is not None and not grown:
                            return code
                        if time.monotonic() - last_grown_s > _CHECK_AFTER_S:
                            with suppress(UserError):  # the next try will do
                                settle(box)
                            last_grown_s = time.monotonic()
                        time.sleep(0 if grown else POLL_S)
            except _WriterFailed as error:
                raise error.__cause__ or error from None
            except _LOST as error:
                check()
                reconnection.wait(error, f"after byte {offset}")


def read_to_end(box: Box, folder: str, write: Callable[[bytes], None], offset: int = 0) -> int | None:
    """Pass what there is of the log to `write`; -> the exit code, or None while the run is on."""
    blocks: list[bytes] = []
    try:
        with box.sftp() as sftp:
            code = _exit_code(sftp, folder)
            _read(sftp, f"{folder}/log", offset, blocks.append)
    except BROKEN as error:
        raise box.sftp_problem(error) from None
    write(b"".join(blocks))
    return code


def last_run(output: str, run_id: str = "", n_lines: int = 20) -> EndedRun | None:
    """The newest run in the output, or the one whose id ends in `run_id`; None if there is none.

    Raises UserError if its status cannot be read.
    """
    store = open_store(output)
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
    return EndedRun(found[-1], last.state, last.exit_code, log[max(0, len(log) - n_lines) :])


def _show_from_bucket(settings: Settings, gone: UserError, run: str, n_lines: int) -> int:
    settings.export_aws()
    output = settings.output_place
    ended = last_run(output, run, n_lines) if output.startswith("s3://") else None
    if ended is None:
        raise gone
    ui.say(str(gone))
    ui.say(f"{output} has this of run {ended.run_id}:")
    ui.pour("".join(f"{line}\n" for line in ended.tail).encode())
    code = "no exit code" if ended.exit_code is None else f"exit code {ended.exit_code}"
    ui.say(f"run {ended.run_id}: {ended.state}, {code}")
    return 1 if ended.exit_code is None else ended.exit_code


def _exit_code(sftp: paramiko.SFTPClient, folder: str) -> int | None:
    with suppress(FileNotFoundError), sftp.open(f"{folder}/exit_code", "rb") as file:
        code = file.read().strip()
        return int(code) if code.isdigit() else 1  # empty or damaged: it did not end well
    return None


def _read(sftp: paramiko.SFTPClient, path: str, offset: int, write: Callable[[bytes], None]) -> bool:
    """Pass the file from `offset` on to `write`; -> whether there was anything."""
    n_read = 0
    with suppress(FileNotFoundError), sftp.open(path, "rb") as file:
        file.seek(offset)
        while block := file.read(_BLOCK):
            write(block)
            n_read += len(block)
    return n_read > 0
