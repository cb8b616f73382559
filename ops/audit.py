"""An append-only log of every action that creates, changes or deletes something, one JSON line each.

    with log.action("ec2.run_instances", request) as done:
        instance = launch(request)
        done({"InstanceId": instance}, price_usd=0.21)

The intent is on disk before the action and its result after it, both with the same `id`. An intent that
cannot be written stops the action, unless the action ends something that costs money: a full disk must not
keep a machine running. Such a line, and a result that cannot be written, go to stderr, so no id is lost.
Secrets are left out; of user data and other bytes only the SHA-256 is written. Does not read the log: a
reader skips empty lines, and a last line that a crash cut short.
"""

import functools
import hashlib
import json
import os
import platform
import re
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from datetime import date, datetime
from pathlib import Path
from typing import Any

from ops import repository, ui
from worker import timestamps
from worker.errors import UserError

# Tokens that make a request unique or name the next page are not secrets.
_SECRET = re.compile(
    r"(?i)secret|password|passwd|api_?key|authorization|credential|privatekey|^keymaterial$"
    r"|(?<!client)(?<!next)(?<!starting)token$"
)
_CODE = re.compile(r"(?i)^user_?data$")

Done = Callable[..., None]


@dataclass(frozen=True)
class AuditLog:
    """Where the lines go, who acts and in which task. `secrets` are never written, whatever holds them."""

    path: Path
    actor: str = ""
    region: str = ""
    task: str = ""
    secrets: Sequence[str] = field(default=(), repr=False)

    @contextmanager
    def action(
        self,
        name: str,
        request: object = None,
        *,
        region: str = "",
        dry_run: bool = False,
        ends: bool = False,
    ) -> Iterator[Done]:
        """Write the intent, run the block, write its result: what `done(result, **facts)` was given.

        `done` writes at once, so that an error later in the block cannot lose the result. An exception
        of the block is written as the result and raised. Raises UserError if the intent cannot be
        written, unless the action `ends` something that costs money.
        """
        started_s = time.monotonic()
        head = {
            "id": uuid.uuid4().hex[:12],
            "action": name,
            "actor": self.actor,
            "host": platform.node(),
            "task": self.task,
            "region": region or self.region,
            "dry_run": dry_run,
            "version": _version(),
        }
        intent = {"phase": "intent"} | head | {"request": request}
        try:
            self._append(intent)
        except OSError as error:
            if not ends:
                raise UserError(
                    f"cannot write the audit log {self.path} ({error.strerror}), so nothing was done; "
                    "correct MUSICGEN_AUDIT_LOG or free the disk"
                ) from None
            self._say(intent, error)
        written = False

        def result(outcome: str, more: Mapping[str, Any]) -> None:
            nonlocal written
            written = True
            lasted = {"duration_s": round(time.monotonic() - started_s, 3)}
            entry = {"phase": "result"} | head | {"outcome": outcome} | lasted | dict(more)
            try:
                self._append(entry)
            except OSError as error:
                self._say(entry, error)

        def done(answer: object = None, **facts: Any) -> None:
            result("done", {"result": answer} | facts)

        try:
            yield done
        except BaseException as error:  # a Ctrl-C too: whether the action happened is then unknown
            result("failed", {"error": f"{type(error).__name__}: {error}"})
            raise
        if not written:
            result("done", {})

    def _say(self, entry: Mapping[str, Any], error: OSError) -> None:
        with suppress(OSError, ValueError):  # stderr, too, may be closed
            ui.say(f"warning: cannot write the audit log {self.path} ({error.strerror}); its line is:")
            ui.say(self._line(entry))

    def _line(self, entry: Mapping[str, Any]) -> str:
        line = json.dumps({"ts": timestamps.now()} | redacted(entry), ensure_ascii=True, default=str)
        for secret in self.secrets:
            if len(secret) > 3:
                line = line.replace(json.dumps(secret)[1:-1], "***")
        return line

    def _append(self, entry: Mapping[str, Any]) -> None:
        line = self._line(entry).encode() + b"\n"
        self.path.parent.mkdir(parents=True, exist_ok=True)
        # O_APPEND and one write: lines of two processes do not mix.
        flags = os.O_RDWR | os.O_APPEND | os.O_CREAT | getattr(os, "O_BINARY", 0)
        handle = os.open(self.path, flags, 0o600)
        try:
            size = os.fstat(handle).st_size
            if size:
                os.lseek(handle, size - 1, os.SEEK_SET)
                if os.read(handle, 1) != b"\n":  # a crash or a full disk cut the last line
                    line = b"\n" + line
            if os.write(handle, line) != len(line):
                raise OSError(28, "no space left")
            os.fsync(handle)
        finally:
            os.close(handle)


def redacted(value: Any, name: str = "") -> Any:
    """The value without secrets: `***` where its name says so; user data and bytes as SHA-256."""
    if isinstance(value, Mapping):
        return {
            str(key): redacted(part, str(key)) for key, part in value.items() if key != "ResponseMetadata"
        }
    if value and _SECRET.search(name):
        return "***"
    if isinstance(value, str) and _CODE.search(name):
        value = value.encode()
    if isinstance(value, bytes | bytearray):
        return {"sha256": hashlib.sha256(value).hexdigest(), "bytes": len(value)}
    if isinstance(value, list | tuple):
        return [redacted(part, name) for part in value]
    if isinstance(value, datetime | date):
        return value.isoformat()
    return value


@functools.cache
def _version() -> str:
    """The commit of these tools."""
    return repository.head() or "unknown"
