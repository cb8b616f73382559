"""What `fab status` shows: the run, GPU, disks, what ends the box; and moving its deadline.

One command reads everything; whatever the box lacks (no GPU, no worker yet) is left out.
"""

import json as jsonlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from datetime import UTC, datetime
from typing import Any

from ops import durations
from ops.ssh import look, session
from ops.ssh.box import Box
from worker import amounts, timestamps
from worker.errors import UserError

# After that a model that is not being reported on is not being fetched: one waits five minutes at most.
_SILENT_S = 600

# Each section may fail by itself: the box may be only partly set up.
_STATUS = f"""
root=$1 home=$2 remote=$1/current/remote
echo "{look.MARK}run"; [ ! -f "$remote/session.sh" ] || bash "$remote/session.sh" status 2>&1
echo "{look.MARK}status"; cat "$root/state/current/status.json" 2> /dev/null; echo
echo "{look.MARK}watchdog"; [ ! -f "$remote/watchdog.sh" ] || bash "$remote/watchdog.sh" status 2>&1
echo "{look.MARK}gpu"; {look.GPU_QUERY} 2> /dev/null
echo "{look.MARK}disk"; df -Pk "$root" "$home" / 2> /dev/null
echo "{look.MARK}models"; date -u +%Y-%m-%dT%H:%M:%SZ; cat "$root"/state/models/*.json 2> /dev/null
echo "{look.MARK}keys"; grep -o '"Expiration": *"[^"]*"' "$home/aws.json" 2> /dev/null
exit 0
"""


@dataclass(frozen=True)
class ModelState:
    """What remote/models.py is doing with a model, or did last. `age_s`: since then, by the box's clock."""

    model: str
    state: str
    age_s: float
    done_bytes: int | None = None
    total_bytes: int | None = None
    bytes_per_s: float | None = None
    eta_s: float | None = None
    error: str | None = None


@dataclass(frozen=True)
class BoxStatus:
    """`run`: the JSON of session.sh; `status`: the run's status.json; `watchdog`: that of watchdog.sh.

    `faults`: what these scripts said in place of an answer.
    """

    run: Mapping[str, Any]
    status: Mapping[str, Any]
    watchdog: Mapping[str, Any]
    gpus: list[look.Gpu]
    disks: list[look.Disk]
    credentials_expire: datetime | None
    models: list[ModelState] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)


def read_status(box: Box) -> BoxStatus:
    """The box as it is now."""
    ran = box.shell(_STATUS, box.info.root, box.info.home)
    found = look.sections(ran.out)
    return BoxStatus(
        run=_object(found.get("run", "")),
        status=_object(found.get("status", "")),
        watchdog=_object(found.get("watchdog", "")),
        gpus=look.parse_gpus(found.get("gpu", "")),
        disks=look.parse_disks(found.get("disk", "")),
        credentials_expire=_expiry(found.get("keys", "")),
        models=parse_models(found.get("models", "")),
        faults=[
            said.strip().splitlines()[-1]
            for said in (found.get("run", ""), found.get("watchdog", ""))
            if said.strip() and not _object(said)
        ],
    )


def rows(box: Box, *, json: bool) -> list[dict[str, Any]]:
    """The box as rows to read, or for a script as one object."""
    found = read_status(box)
    if json:
        return [asdict(found) | {"state": state(found.run, found.status)}]
    return list(status_rows(found, datetime.now(UTC)))


def extend(box: Box, text: str) -> str:
    """Move the deadline by a span like `2h`, at most to the end of the lifetime; -> what ends the box."""
    seconds = int(durations.parse(text, "--extend").total_seconds())
    ran = box.remote("deadline.sh", "extend", str(seconds))
    if ran.code:
        raise UserError(ran.reason())
    clipped = ", the end of the lifetime given at launch" if ran.json().get("clipped") else ""
    return session.ending(box.remote("watchdog.sh", "status").json()) + clipped


def status_rows(found: BoxStatus, now: datetime) -> list[dict[str, str]]:
    """One row for each thing that is known."""
    run, status = found.run, found.status
    current = status if status.get("run_id") == run.get("run_id") else {}
    rows = {"run": run.get("run_id") or "none yet", "state": state(run, current)}
    name = session.name_of(run.get("job"))
    if name != session.WORKER:
        rows["job"] = name
    if songs := current.get("songs"):
        failed = f", {songs['failed']} failed" if songs.get("failed") else ""
        rows["songs"] = f"{songs['done']} of {songs['asked']} done{failed}"
    for song in current.get("current", []):
        total = song.get("frames_total") or 0
        rows[f"  {song['song']}"] = f"{100 * song['frames_done'] / total:.0f} %" if total else "waiting"
    if steps := current.get("steps"):
        rows["steps"] = _steps(steps)
    if current.get("rate") is not None:
        rows["speed"] = f"{current['rate']:.2f} {'steps' if steps else 's of audio'} per second"
    if current.get("eta_s") is not None and run.get("running"):
        rows["time left"] = amounts.duration(current["eta_s"])
    if current.get("cost_usd") is not None:
        rows["cost"] = (
            f"{amounts.usd(current['cost_usd'])} at {amounts.usd(current['hourly_cost_usd'])} an hour"
        )
    # The job takes a stop's signal for a Ctrl-C or another's.
    if run.get("stopped_by"):
        rows["stopped by"] = str(run["stopped_by"])
    elif current.get("notice"):
        rows["notice"] = str(current["notice"])
    for gpu in found.gpus:
        used, total = gpu.memory_used_mb or 0, gpu.memory_total_mb or 0
        busy = "" if gpu.use_percent is None else f"{gpu.use_percent:.0f} % busy, "
        rows[f"GPU {gpu.gpu}"] = f"{gpu.name}: {busy}{used / 1024:.1f} of {total / 1024:.1f} GB"
    for model in found.models:
        if shown := model_row(model):
            rows[f"model {model.model}"] = shown
    for disk in found.disks:
        rows[f"disk {disk.at}"] = f"{disk.free_gb:.1f} GB free of {disk.size_gb:.1f}"
    rows |= watchdog_rows(found.watchdog, name)
    if found.faults:
        rows["fault"] = "; ".join(dict.fromkeys(found.faults))
        if not run:
            del rows["run"], rows["state"]  # not known
    if found.credentials_expire:
        left_s = (found.credentials_expire - now).total_seconds()
        rows["credentials"] = (
            f"expire in {amounts.duration(left_s)}" if left_s > 0 else "EXPIRED; run: fab install --renew"
        )
    if run.get("stop_hook"):
        rows["after the run"] = str(run["stop_hook"])
    return [{"what": name, "now": value} for name, value in rows.items()]


def _steps(steps: Mapping[str, Any]) -> str:
    """`25 of 40, epoch 0.62, loss 2.31`."""
    text = str(steps["done"]) + (f" of {steps['total']}" if steps.get("total") else "")
    text += f", epoch {steps['epoch']:.2f}" if steps.get("epoch") is not None else ""
    return text + (f", loss {steps['loss']}" if steps.get("loss") is not None else "")


def parse_models(text: str) -> list[ModelState]:
    """The box's time, then a line of each state file."""
    now, _, lines = text.partition("\n")
    found = []
    for line in lines.splitlines():
        its = _object(line)
        try:
            age_s = (timestamps.parse(now) - timestamps.parse(its["updated_at"])).total_seconds()
            known: dict[str, Any] = {
                each.name: its.get(each.name) for each in fields(ModelState) if each.name != "age_s"
            }
            found.append(ModelState(age_s=age_s, **known))
        except (KeyError, ValueError, TypeError):
            continue  # another version's
    return found


def model_row(model: ModelState) -> str:
    """`fetching: 1.2 GB of 2.4 GB, 85.0 MB/s, 14 s left`; "" for a model with which nothing is to be done."""
    if model.state == "done":
        return ""
    if model.state in ("failed", "interrupted", "damaged"):
        return model.state + (f": {model.error}" if model.error else "; get it again")
    if model.age_s > _SILENT_S:
        return f"{model.state} ended without a word {amounts.duration(model.age_s)} ago; get it again"
    text = model.state
    if model.done_bytes is not None and model.total_bytes:
        text += f": {amounts.size(model.done_bytes)} of {amounts.size(model.total_bytes)}"
        text += f", {amounts.size(model.bytes_per_s)}/s" if model.bytes_per_s else ""
        text += f", {amounts.duration(model.eta_s)} left" if model.eta_s else ""
    return text


def watchdog_rows(watchdog: Mapping[str, Any], job: str = session.WORKER) -> dict[str, str]:
    """What switches the box off, when, and what it did. Where nothing does, its `job` is stopped."""
    if not watchdog:
        return {}
    rows = {}
    off = watchdog.get("turns_off")
    if not off:
        named = watchdog.get("action")
        why = f"on the box there is no executable {named}" if named else "MUSICGEN_STOP_HOOK is not set"
        rows["this box"] = f"{session.STAYS_ON} ({why})"
    if not watchdog.get("running"):
        rows["watchdog"] = "NOT RUNNING: no limit and no deadline holds; start it: fab install, or fab run"
    if (left_s := watchdog.get("left_s")) is None:
        rows["deadline"] = "none"
    else:
        then = "then the box switches off" if off else f"then the {job} is stopped"
        rows["deadline"] = f"in {amounts.duration(max(0, left_s))}; {then}"
        if watchdog.get("lifetime_over"):
            rows["deadline"] += (
                "; its lifetime was over when it started: fab status --extend 2h begins another"
            )
    if acted := watchdog.get("acted"):
        rows["watchdog acted"] = f"{acted.get('acted_at')}: {acted.get('detail')}"
    return rows


def state(run: Mapping[str, Any], status: Mapping[str, Any]) -> str:
    """`running: generating`, `ended with exit code 0 (done)`, `idle`."""
    if run.get("running"):
        return f"running: {status.get('state', 'starting')}"
    if run.get("exit_code") is None:
        return "idle"
    meaning = {0: "done", 1: "something failed", 2: "bad input", 75: "interrupted", 137: "killed"}
    code = run["exit_code"]
    return f"ended with exit code {code} ({meaning.get(code, 'failed')})"


def _object(text: str) -> dict[str, Any]:
    """The JSON object that the text or its last line is; empty if there is none."""
    for candidate in (text, (text.strip().splitlines() or [""])[-1]):
        try:
            found = jsonlib.loads(candidate)
        except ValueError:
            continue
        if isinstance(found, dict):
            return found
    return {}


def _expiry(text: str) -> datetime | None:
    found = re.search(r'"(\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ)"', text)
    return timestamps.parse(found[1]) if found else None
