"""The four phases that make a box work, in order: deploy, install, validate, run. Each can be run again.

A list or a setting that is wrong is found before the box is touched. What a phase is about to do goes to
`report`; what it found is returned. Asks nothing.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ops import release as releases
from ops import ui
from ops.release import Release
from ops.repository import ROOT
from ops.settings import Settings
from ops.ssh import configure, session, ship
from ops.ssh.box import Box
from ops.ssh.configure import Configured
from ops.ssh.link import Report
from ops.ssh.session import Run
from ops.ssh.ship import Shipped
from worker.errors import UserError

INSTALL_LIMIT_S = 3600
CHECK_LIMIT_S = 600


@dataclass(frozen=True)
class Finding:
    """One thing that validate looked at. `ok`: yes, no, or a warning that stops nothing."""

    name: str
    ok: bool | str
    detail: str
    remedy: str


def checked(settings: Settings, prompts: str = "") -> Release:
    """The release to ship. Raises BadInput for a wrong setting, list or tree; touches no network."""
    settings.check()
    return releases.from_tree(ROOT, Path(prompts or settings.prompts))


def deploy(box: Box, release: Release, report: Report, *, force: bool = False) -> Shipped:
    """Phase 1: make the release the current one. Raises UserError while a worker runs, unless forced."""
    report(f"box {box.label}, a machine of {box.info.platform}, our files in {box.info.root}")
    run = session.status_if_deployed(box)
    if run and run.running and not force:
        raise UserError(
            f"the worker is running (run {run.run_id}) and keeps the code it began with; "
            "use fab sync to restart it with the new code, or --force to deploy beside it"
        )
    shipped = ship.send(box, release)
    report(f"release {release.id}: {release.n_files} files, {release.n_bytes / 1e6:.1f} MB")
    return shipped


def install(box: Box, settings: Settings, report: Report, *, use_my_keys: bool = False) -> dict[str, Any]:
    """Phase 2: settings and credentials, then the environment. -> what install.sh says."""
    give(box, settings, report, use_my_keys=use_my_keys)
    steps = _Lines(report)
    ran = box.remote("install.sh", limit_s=INSTALL_LIMIT_S, on_output=steps.take)
    steps.end()
    if ran.code:
        raise UserError(ran.reason())
    found: dict[str, Any] = ran.json()
    session.guard(box)
    return found


def give(box: Box, settings: Settings, report: Report, *, use_my_keys: bool | None = None) -> Configured:
    """Settings and credentials alone; a running worker goes on with the new credentials.

    `use_my_keys`: None for what the box has now.
    """
    if use_my_keys is None:
        use_my_keys = configure.has_own_keys(box)
    if use_my_keys:
        report("warning: your own long-lived AWS keys lie on the box; anyone who gets in there has them")
    given = configure.configure(box, settings, use_my_keys=use_my_keys)
    if given.made_bucket:
        report(f"made bucket {given.bucket}")
    until = f", until {given.expires:%Y-%m-%d %H:%M} UTC" if given.expires else ""
    report(f"settings are on the box; credentials: {given.source}{until}")
    return given


def validate(box: Box) -> list[Finding]:
    """Phase 3: everything the worker needs, looked at where it will run."""
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
    """The names of what would make the run fail."""
    return [finding.name for finding in findings if finding.ok is False]


def run(
    box: Box, settings: Settings, report: Report, *, keep_alive: bool = False, only: Sequence[str] = ()
) -> Run:
    """Phase 4: start the worker, with settings and credentials as they are now."""
    give(box, settings, report)
    session.guard(box)
    started = session.start(box, keep_alive=keep_alive, arguments=[f"--only={name}" for name in only])
    if started.exit_code:
        raise UserError(
            f"run {started.run_id} ended at once, exit code {started.exit_code}; see why: fab logs"
        )
    how = "started; follow it" if started.running else "ended already; see it"
    report(f"run {started.run_id} has {how}: fab logs")
    return started


def sync(box: Box, settings: Settings, release: Release, report: Report, *, grace_s: int) -> Run:
    """New code and list, and the worker again: it goes on from its checkpoints."""
    shipped = deploy(box, release, report, force=True)
    stopped, how = session.stop(box, grace_s)
    if how != session.HOW["nothing"]:
        report(f"run {stopped.run_id}: {how}")
    if shipped.needs_install:
        report("the environment is not made from these requirements; installing")
        install(box, settings, report, use_my_keys=configure.has_own_keys(box))
    return run(box, settings, report, keep_alive=stopped.keep_alive)


def installed(found: Mapping[str, Any]) -> str:
    """What install.sh did, as a line."""
    done = "installed" if found.get("changed") else "nothing to install"
    return f"{done}, {found.get('seconds', 0)} s; torch: {found.get('torch')}"


def marked(findings: Sequence[Finding]) -> list[dict[str, str]]:
    """The findings as `fab validate` shows them, with marks that this console has."""
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


class _Lines:
    """Blocks of output as lines, told as they come; the last line's JSON is not for the user."""

    def __init__(self, report: Report) -> None:
        self._report = report
        self._rest = b""

    def take(self, block: bytes) -> None:
        *lines, self._rest = re.split(rb"[\r\n]+", self._rest + block)
        for line in lines:
            self._say(line)

    def end(self) -> None:
        self._say(self._rest)

    def _say(self, line: bytes) -> None:
        if line.strip() and not line.startswith((b"{", b"error: ")):
            self._report(line.decode("utf-8", "replace"))
