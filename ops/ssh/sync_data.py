"""Send a folder of training data to the box: only what differs, across lost connections, each file compared.

With rsync, else over SFTP. A file counts as sent when its checksum on the box is this machine's; it then has
the source's time, by which the next sync knows it. While this runs, the box's watchdog counts it as work,
and a second sync to the same box is refused. Deletes nothing on the box unless asked.
"""

import functools
import hashlib
import json
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from ops import ui
from ops.data_files import DataFile, Differences, batches, compare, files_in, total
from ops.ssh import rsync, upload
from ops.ssh.attended import SILENCE_S, Attended
from ops.ssh.box import Box
from ops.ssh.link import LinkLost, NoAnswer
from ops.ssh.reconnect import Reconnection
from ops.ssh.upload import ask
from worker import amounts
from worker.errors import UserError

PARTIAL = ".musicgen-partial"  # as remote/data.py has it
# Tries in a row in which not a byte came through.
_MOST_FRUITLESS = 8
_MOST_SENDS = 3
_COMPARE_BYTES, _COMPARE_FILES = 2 << 30, 500
_PROGRESS_S = 10.0
_LIST_LIMIT_S, _SUMS_LIMIT_S = 1800, 7200
# Longer than any upload; the box ends it when nobody attends to it any more.
_BUSY_S = 9_999_999
_HOLD = ("busy.sh", "sync-data", str(_BUSY_S), "--", "sh", "-c", "echo held; exec sleep infinity")
_HOLD_LIMIT_S = 30
_HOLD_AGAIN_S = 10.0
_TAKEN = 4  # exit code of busy.sh
_SHOWN_NAMES = 10

T = TypeVar("T")


@dataclass(frozen=True)
class SyncFlags:
    """What the user asked for. `delete`: also what the source does not have, after a question."""

    delete: bool = False
    yes: bool = False
    dry_run: bool = False


def sync(box: Box, source: Path, flags: SyncFlags) -> None:
    """Make the data folder of the box have what `source` has. Raises UserError, Refused, BadInput."""
    here = files_in(source)
    if not box.info.python:
        raise UserError(f"there is no python3 on {box.label}; run: fab install, then run it again")
    syncing = _Sync(box, source)
    found = syncing.differences(here)
    extra = found.extra if flags.delete else []
    rows = _rows(found, flags.delete)
    ui.say(f"{source} to {syncing.folder} of {box.label}")
    if extra:
        for file in extra[:_SHOWN_NAMES]:
            ui.say(f"to delete: {file.path}")
        if len(extra) > _SHOWN_NAMES:
            ui.say(f"to delete: {len(extra) - _SHOWN_NAMES} more")
        question = f"Delete {amounts.count(len(extra), 'file')} on {box.label}?"
        if not ui.agreed(rows, question, yes=flags.yes, dry_run=flags.dry_run):
            return
    else:
        ui.show(rows)
        if flags.dry_run:
            ui.say("dry run: nothing was changed")
            return
    n_sent = n_bytes = 0
    if found.to_send or found.to_compare or extra:
        with syncing:
            n_sent, n_bytes = syncing.send_all(found)
            syncing.finish(extra)
    deleted = f", {len(extra)} deleted" if extra else ""
    same = len(here) - n_sent
    sent = f"{amounts.count(n_sent, 'file')} ({amounts.size(n_bytes)})"
    ui.say(f"{sent} sent and compared by checksum, {same} there before{deleted}")


def _rows(found: Differences, delete: bool) -> list[dict[str, object]]:
    groups = {
        "to send": found.to_send,
        "to compare (other time)": found.to_compare,
        "unchanged": found.unchanged,
        "only on the box, to delete" if delete else "only on the box, stays": found.extra,
    }
    return [
        {"files": name, "number": len(files), "size": amounts.size(total(files))}
        for name, files in groups.items()
        if files or name == "to send"
    ]


class _Sync:
    """One sync: its connection, what it has sent, and how far it is. A `with` block holds the box as busy."""

    def __init__(self, box: Box, source: Path) -> None:
        self.folder = ""
        self._box, self._source = box, source
        self._reconnection = Reconnection(box, ui.say, "going on")
        self._held: Attended | None = None
        self._held_on_s = 0.0
        self._partial: dict[str, int] = {}
        self._sent: dict[str, int] = {}
        self._n_sends: Counter[str] = Counter()
        self._unverified: set[str] = set()
        self._probed = self._was_cut = False
        self._way: Callable[..., None] | None = None

    def __enter__(self) -> "_Sync":
        self._hold()
        return self

    def __exit__(self, *_: object) -> None:
        if self._held:
            self._held.close()

    def differences(self, here: dict[str, DataFile]) -> Differences:
        """What the box lacks of these files."""
        found = ask(self._box, "list", limit_s=_LIST_LIMIT_S).json()
        self.folder, self._partial = found["folder"], found["partial"]
        there = {path: DataFile(path, n_bytes, mtime) for path, n_bytes, mtime in found["files"]}
        return compare(here, there, self._unverified)

    def send_all(self, found: Differences) -> tuple[int, int]:
        """Send and compare until nothing differs; -> how many files were sent, and their bytes."""
        while not self._pass(found):
            # Both anew: a file may have been changed meanwhile, and after a cut some have come.
            here = files_in(self._source)
            found = self._again_after_a_cut(functools.partial(self.differences, here))
        return len(self._sent), sum(self._sent.values())

    def finish(self, extra: Sequence[DataFile]) -> None:
        """Delete these, and what unfinished transfers left."""
        if extra:
            names = json.dumps([file.path for file in extra]).encode()
            self._again_after_a_cut(lambda: ask(self._box, "remove", stdin=names))
        self._again_after_a_cut(lambda: ask(self._box, "tidy"))

    def _pass(self, found: Differences) -> bool:
        """Compare and send, as far as the connection allows; -> whether there was nothing left to send."""
        try:
            self._hold()
            if self._was_cut:
                ask(self._box, "stop")
                self._was_cut = False
            return self._compared_and_sent(found)
        except (LinkLost, NoAnswer) as error:
            self._wait(error)
            return False

    def _compared_and_sent(self, found: Differences) -> bool:
        to_send = found.to_send + self._compared(found.to_compare)
        if not to_send:
            return True
        for file in to_send:
            if self._n_sends[file.path] >= _MOST_SENDS:
                raise UserError(
                    f"{file.path} differs on the box each time it was sent; is something changing it, "
                    "here or there? run it again"
                )
        if not self._probed:
            self._probe(sum(max(file.n_bytes - self._partial.get(file.path, 0), 0) for file in to_send))
        self._sent |= {file.path: file.n_bytes for file in to_send}
        self._unverified |= {file.path for file in to_send}
        self._send(to_send)
        self._n_sends.update(file.path for file in to_send)
        return False

    def _compared(self, files: Sequence[DataFile]) -> list[DataFile]:
        """Compare checksums, both machines at once; the right files are marked. -> the others."""
        wrong: list[DataFile] = []
        progress = _Progress("compared", total(files))
        with ThreadPoolExecutor(1) as beside:
            for batch in batches(files, _COMPARE_BYTES, _COMPARE_FILES):
                own = beside.submit(_sums, self._source, batch)
                names = json.dumps([file.path for file in batch]).encode()
                sums = ask(self._box, "sums", stdin=names, limit_s=_SUMS_LIMIT_S).json()
                right = {path for path, found in own.result().items() if found == sums[path]}
                wrong += [file for file in batch if file.path not in right]
                times = {file.path: file.mtime for file in batch if file.path in right}
                ask(self._box, "mark", stdin=json.dumps(times).encode())
                self._unverified -= times.keys()
                progress.add(total(batch))
                self._reconnection.tries = 0
        return wrong

    def _probe(self, n_bytes: int) -> None:
        try:
            ask(self._box, "probe", str(n_bytes))
        except LinkLost:
            raise
        except UserError as error:
            raise UserError(f"{amounts.size(n_bytes)} are to be sent, and {error}") from None
        self._probed = True

    def _send(self, files: Sequence[DataFile]) -> None:
        progress = _Progress("sent", total(files))

        def told(n_bytes: int) -> None:
            if n_bytes > progress.n_bytes:
                self._reconnection.tries = 0
            progress.reach(n_bytes)
            self._hold_on()

        if self._way is None:
            try:
                rsync.refuse_unusable(self._box)
                self._way = rsync.send
            except rsync.Unusable as why:
                self._use_sftp(why)
        try:
            ask(self._box, "prepare", stdin=b"[]")
            self._way(self._box, self._source, self.folder, PARTIAL, files, told)  # type: ignore[misc]
        except UserError:
            # rsync often has no time to say that the disk is full; if the connection is lost, this says so.
            upload.refuse_full(self._box)
            raise
        except rsync.Unusable as why:
            self._use_sftp(why)
            upload.send(self._box, self._source, self.folder, PARTIAL, files, told)

    def _use_sftp(self, why: Exception) -> None:
        ui.say(f"sending over SFTP, as rsync cannot be used: {why}")
        self._way = upload.send

    def _again_after_a_cut(self, step: Callable[[], T]) -> T:
        while True:
            try:
                self._hold()
                return step()
            except (LinkLost, NoAnswer) as error:
                self._wait(error)

    def _wait(self, error: UserError) -> None:
        """Until the next try. Raises the error after too many in which nothing came through."""
        if self._reconnection.tries >= _MOST_FRUITLESS:
            raise error
        self._was_cut = True
        self._reconnection.wait(error, "in the middle")

    def _hold(self) -> None:
        """Be what the box is busy with, again after a lost connection.

        Raises UserError if another sync is on.
        """
        if self._held and not self._held.ended:
            return
        # The box does not notice at once that a connection of ours is dead.
        until_s = time.monotonic() + (SILENCE_S + 10 if self._held else 0)
        while True:
            held = Attended(self._box, *_HOLD)
            try:
                held.wait_for(r"(?m)^held\r?$", _HOLD_LIMIT_S)
                self._held = held
                return
            except LinkLost:
                raise
            except UserError:
                held.close()
                if held.code != _TAKEN:
                    raise
                if time.monotonic() > until_s:
                    raise UserError(
                        f"another fab sync-data to {self._box.label} is on, or was cut in the last minute; "
                        "wait for it, then run it again"
                    ) from None
            time.sleep(1)

    def _hold_on(self) -> None:
        """The same in the middle of a transfer, whose own connection may live longer than the box's."""
        if self._held and self._held.ended and time.monotonic() - self._held_on_s > _HOLD_AGAIN_S:
            self._held_on_s = time.monotonic()
            with suppress(UserError):
                self._hold()


class _Progress:
    """A line now and then on how far it is."""

    def __init__(self, word: str, of_bytes: int) -> None:
        self.n_bytes = 0
        self._word, self._of = word, amounts.size(of_bytes)
        self._began_s = self._said_s = time.monotonic()

    def add(self, n_bytes: int) -> None:
        self.reach(self.n_bytes + n_bytes)

    def reach(self, n_bytes: int) -> None:
        self.n_bytes, now_s = n_bytes, time.monotonic()
        if now_s - self._said_s >= _PROGRESS_S:
            self._said_s = now_s
            rate = amounts.size(n_bytes / (now_s - self._began_s))
            ui.say(f"{amounts.size(n_bytes)} of {self._of} {self._word}, {rate}/s")


def _sums(source: Path, files: Sequence[DataFile]) -> dict[str, str]:
    return {file.path: _sum(source, file) for file in files}


def _sum(source: Path, file: DataFile) -> str:
    """Its checksum; empty where it cannot be read any more."""
    try:
        with (source / file.path).open("rb") as content:
            return hashlib.file_digest(content, "sha256").hexdigest()
    except OSError:
        return ""
