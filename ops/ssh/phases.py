"""The four phases that make a box work, in order: deploy, install, validate, run. Each can be run again.

A wrong job list or setting is found before the box is touched. Progress goes to `report`, results are
returned. Asks the user nothing.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ops import models, ui
from ops import release as releases
from ops.release import Release
from ops.repository import ROOT
from ops.settings import Settings, child_env
from ops.ssh import configure, session, ship
from ops.ssh.box import Box
from ops.ssh.configure import BoxConfiguration
from ops.ssh.link import Report
from ops.ssh.session import Run
from ops.ssh.ship import ShippedRelease
from worker import amounts, timestamps
from worker.errors import UserError

INSTALL_LIMIT_S = 3600
CHECK_LIMIT_S = 600


@dataclass(frozen=True)
class Finding:
    """The result of one check. `ok`: True, False, or "warn", which stops nothing."""

    name: str
    ok: bool | str
    detail: str
    remedy: str


def checked_release(settings: Settings, prompts: str = "") -> Release:
    """The release to ship. Raises BadInput for a wrong setting, model, list or tree. Uses no network."""
    settings.check()
    models.refuse_other_use(settings.model, settings.is_commercial)
    models.refuse_unsupported(settings.model, child_env())
    return releases.from_tree(ROOT, Path(prompts or settings.prompts), settings.model)


def deploy(box: Box, release: Release, report: Report, *, force: bool = False) -> ShippedRelease:
    """Phase 1: make the release the current one. Raises UserError while a run is on, unless forced."""
    report(f"box {box.label} ({box.info.platform}), files in {box.info.root}")
    run = session.status_if_deployed(box)
    if run and run.running and not force:
        new = "stop it: fab stop" if run.job == session.TRAIN else "restart it with the new code: fab sync"
        raise UserError(
            f"the {session.name_of(run.job)} is running (run {run.run_id}) and keeps its release; "
            f"{new}, or deploy without a restart: fab deploy --force"
        )
    shipped = ship.send(box, release)
    size = f"{amounts.count(release.n_files, 'file')}, {amounts.size(release.n_bytes)}"
    report(f"release {release.id}: {'unchanged, ' * shipped.unchanged}{size}")
    return shipped


def install(box: Box, settings: Settings, report: Report, *, use_my_keys: bool = False) -> dict[str, Any]:
    """Phase 2: settings and credentials, then the environment. -> the JSON that install.sh prints."""
    send_settings(box, settings, report, use_my_keys=use_my_keys)
    report(session.ending(session.guard(box, settings.lifetime_h)))
    lines = _LineReporter(report)
    ran = box.remote("install.sh", limit_s=INSTALL_LIMIT_S, on_output=lines.take)
    lines.end()
    if ran.code:
        raise UserError(ran.reason())
    found: dict[str, Any] = ran.json()
    return found


def send_settings(
    box: Box, settings: Settings, report: Report, *, use_my_keys: bool | None = None
) -> BoxConfiguration:
    """Send settings and credentials; a running worker takes up the new credentials.

    `use_my_keys`: None keeps the kind of keys that the box has now.
    """
    if use_my_keys is None:
        use_my_keys = configure.has_own_keys(box)
    if use_my_keys:
        report("warning: your own long-lived AWS keys are on the box; whoever can log in there has them")
    sent = configure.configure(box, settings, use_my_keys=use_my_keys)
    if sent.made_bucket:
        report(f"created bucket {sent.bucket}")
    until = f", until {timestamps.stamp(sent.expires)}" if sent.expires else ""
    report(f"sent the settings; credentials: {sent.source}{until}")
    return sent


def validate(box: Box) -> list[Finding]:
    """Phase 3: check on the box everything that the worker needs."""
    python = box.info.python and "python3"
    if not python:
        raise UserError(f"there is no python3 on {box.label}; run: fab install")
    ran = box.remote("check.py", interpreter=python, limit_s=CHECK_LIMIT_S)
    if ran.code > 1:
        raise UserError(f"the check itself failed ({ran.reason()}); run: fab deploy install, then again")
    return [
        Finding(*(row.get(name, "") for name in ("name", "ok", "detail", "remedy"))) for row in ran.json()
    ]


def would_fail(findings: Sequence[Finding]) -> list[str]:
    """The names of the checks that failed."""
    return [finding.name for finding in findings if finding.ok is False]


def refuse_failing(findings: Sequence[Finding]) -> None:
    """Raises UserError if a check failed."""
    if failed := would_fail(findings):
        raise UserError(f"the run would fail: {', '.join(failed)}; see the remedies above")


def run(
    box: Box, settings: Settings, report: Report, *, keep_alive: bool = False, arguments: Sequence[str] = ()
) -> Run:
    """Phase 4: send settings and credentials as they are now, and start the worker with these arguments."""
    send_settings(box, settings, report)
    guarded = session.guard(box, settings.lifetime_h)
    started = session.start(box, keep_alive=keep_alive, arguments=arguments)
    if started.exit_code:
        raise UserError(
            f"run {started.run_id} ended at once, exit code {started.exit_code}; see why: fab logs"
        )
    how = "started; follow it" if started.running else "ended already; see its log"
    report(f"run {started.run_id} has {how}: fab logs")
    report(session.ending(guarded))
    return started


def sync(
    box: Box,
    settings: Settings,
    release: Release,
    report: Report,
    *,
    grace_s: int,
    arguments: Sequence[str] = (),
) -> Run:
    """Ship code and list and restart the worker with these arguments; it resumes from its checkpoints.

    Raises UserError while a training is on.
    """
    on = session.status_if_deployed(box)
    if on and on.running and on.job == session.TRAIN:
        raise UserError(f"the training is running (run {on.run_id}), and not the worker; stop it: fab stop")
    shipped = deploy(box, release, report, force=True)
    stopped, needed = session.stop(box, grace_s, by="fab sync")
    if needed is not session.StopNeeded.NOTHING:
        report(f"run {stopped.run_id}: {session.ended_by(needed, stopped.job)}")
    if shipped.needs_install:
        report("the environment was made from other requirements; installing")
        install(box, settings, report, use_my_keys=configure.has_own_keys(box))
    return run(box, settings, report, keep_alive=stopped.keep_alive, arguments=arguments)


def install_line(found: Mapping[str, Any]) -> str:
    """The JSON of install.sh as a line to read."""
    done = "installed" if found.get("changed") else "nothing to install"
    return f"{done}, {amounts.duration(found.get('seconds', 0))}; torch: {found.get('torch')}"


def finding_rows(findings: Sequence[Finding]) -> list[dict[str, str]]:
    """The findings as `fab validate` shows them, with marks that this console can show."""
    marks = {True: "\u2713", False: "\u2717"}
    if not ui.can_show("".join(marks.values())):
        marks = {True: "ok", False: "NO"}
    return [
        {
            "": marks.get(finding.ok, "!") if isinstance(finding.ok, bool) else "!",
            "check": finding.name.replace("_", " "),
            "found": finding.detail,
            "remedy": finding.remedy or "",
        }
        for finding in findings
    ]


class _LineReporter:
    """Reports a script's output line by line, without its JSON and its error, which the caller reads."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._rest = b""

    def take(self, block: bytes) -> None:
        *lines, self._rest = re.split(rb"[\r\n]+", self._rest + block)
        for line in lines:
            self._emit(line)

    def end(self) -> None:
        self._emit(self._rest)

    def _emit(self, line: bytes) -> None:
        if line.strip() and not line.startswith((b"{", b"error: ")):
            self._report(line.decode("utf-8", "replace"))
