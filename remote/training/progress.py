"""What a training's run shows of itself in its state folder, while it runs and after.

`status.json`, whole every few seconds, in the format of the worker's status: `steps` in place of songs, and
`progress`, which only grows: with every step, and with what is printed, as fetching, preparing data, skipping
batches after a resume and a long evaluation take no step. Its state is `starting` until the first step.
`train.jsonl`, a line for each event and each step: schema, time, level, event, text, then the event's facts.
Without a state folder, as when train.py is run by hand, nothing is written.
"""

from __future__ import annotations

import json
import math
import os
import socket
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

from .curves import Point

SCHEMA = 1
EVERY_S = 5.0
_RATE_WINDOW_S = 300.0
_WHY = {"signal": "it was asked to stop", "limit": "its limit is reached", "stall": "it hangs"}
_LOSS, _EPOCH = "train/loss", "train/epoch"


class Progress:
    """Writes both files: `begun` before an attempt, `look` while it runs, `ended` after the last.

    `step`, how far it is, and `goal`, where it is finished, may be set when they are known.
    """

    def __init__(self, state: Path | None, run_id: str, config: str, usd_per_hour: float):
        self._state, self._run_id, self._config, self._usd_per_hour = state, run_id, config, usd_per_hour
        self._began, self._began_at = time.monotonic(), _utc()
        self._written = -math.inf
        self._progress = 0
        self._phase, self._notice = "starting", ""
        self.goal: int | None = None
        self.step = 0
        self._epoch: float | None = None
        self._loss: float | None = None
        self._bytes = 0
        self._paces: list[tuple[float, int]] = []  # when, at which step

    @property
    def cost_usd(self) -> float:
        """Of the whole time so far."""
        return (time.monotonic() - self._began) / 3600 * self._usd_per_hour

    def begun(self, attempt: int, step: int, goal: int | None, resumed: str) -> None:
        """An attempt starts from this step. `resumed`: the checkpoint, empty for none."""
        self.step, self.goal, self._bytes, self._paces = step, goal, 0, []
        text = f"attempt {attempt}: from {resumed}" if resumed else f"attempt {attempt}: from the beginning"
        self.note("begun", text, attempt=attempt, step=step, goal=goal, checkpoint=resumed or None)

    def look(self, points: list[Point], n_bytes: int, asked: str) -> None:
        """Take in what is new, and write the status if it is time for it."""
        self._progress += n_bytes - self._bytes
        self._bytes = n_bytes
        for step in sorted({point.step for point in points if point.tag == _LOSS}):
            self._take_step(step, {point.tag: point.value for point in points if point.step == step})
        if asked:
            self._phase, self._notice = "stopping", _WHY[asked]
        if time.monotonic() - self._written >= EVERY_S:
            self._write()

    def ended(self, code: int, text: str) -> None:
        """The run's end: its exit code and its last line."""
        self._phase = {0: "done", 75: "interrupted"}.get(code, "failed")
        self._notice = text if code == 75 else self._notice
        self.note("ended", text, level="info" if code == 0 else "error", exit_code=code, step=self.step)
        self._write(code)

    def note(self, event: str, text: str, level: str = "info", **facts: Any) -> None:
        """One line of train.jsonl. A full disk loses it, and stops nothing."""
        if self._state is None:
            return
        line = {"schema": SCHEMA, "time": _utc(), "level": level, "event": event, "text": text, **facts}
        with suppress(OSError), (self._state / "train.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(line, default=str) + "\n")

    def _take_step(self, step: int, values: dict[str, float]) -> None:
        self._progress += 1
        self._phase = "training"
        self.step, self._loss = step, values[_LOSS]
        self._epoch = _finite(values.get(_EPOCH, math.nan))
        now = time.monotonic()
        self._paces = [pace for pace in self._paces if now - pace[0] <= _RATE_WINDOW_S] + [(now, step)]
        known = {tag.removeprefix("train/"): _finite(value) for tag, value in values.items()}
        of = f" of {self.goal}" if self.goal else ""
        level = "info" if math.isfinite(values[_LOSS]) else "warning"
        self.note(
            "step", f"step {step}{of}: loss {values[_LOSS]:.4g}", level, step=step, goal=self.goal, **known
        )

    @property
    def _rate(self) -> float | None:
        """Steps per second, lately."""
        if len(self._paces) < 2 or self._paces[-1][0] <= self._paces[0][0]:
            return None
        (began, first), (now, last) = self._paces[0], self._paces[-1]
        return (last - first) / (now - began)

    def _write(self, code: int | None = None) -> None:
        self._written = time.monotonic()
        if self._state is None:
            return
        rate = self._rate
        left = None if self.goal is None else max(0, self.goal - self.step)
        status = {
            "schema": SCHEMA,
            "run_id": self._run_id,
            "state": self._phase,
            "updated_at": _utc(),
            "started_at": self._began_at,
            "pid": os.getpid(),
            "host": os.environ.get("RUNPOD_POD_ID") or socket.gethostname(),
            "model": self._config,
            "device": None,
            "precision": None,
            "slots": None,
            "progress": self._progress,
            "songs": None,
            "frames": None,
            "current": [],
            "rate": rate,
            "eta_s": left / rate if rate and left is not None and code is None else None,
            "hourly_cost_usd": self._usd_per_hour,
            "cost_usd": round(self.cost_usd, 6),
            "gpu_memory": None,
            "notice": self._notice or None,
            "exit_code": code,
            "steps": {
                "done": self.step,
                "total": self.goal,
                "epoch": self._epoch,
                "loss": None if self._loss is None else f"{self._loss:.4g}",
            },
        }
        new = self._state / "status.json.tmp"
        with suppress(OSError):
            new.write_text(json.dumps(status, indent=2) + "\n", "utf-8")
            new.replace(self._state / "status.json")


def _finite(value: float) -> float | None:
    """JSON has no NaN."""
    return value if math.isfinite(value) else None


def _utc() -> str:
    return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
