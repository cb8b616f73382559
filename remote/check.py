#!/usr/bin/env python3
"""Phase 3 on the box: check everything that a run needs, before it costs anything.

    python3 remote/check.py [--timeout SECONDS]

Prints one JSON list of {"name", "ok": true | false | "warn", "detail", "remedy"}, with all names of GROUPS in
that order. Exit code 1 if one is false.
Takes the paths from env.sh and the settings from worker.env. Each group of checks is a process of its own,
in the worker's environment if there is one, with a time limit: if a driver or a network disk hangs, the
check has failed. Writes one small object to the bucket and a file to each disk, and removes them.
Prints no secret.
"""

import argparse
import fcntl
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path
from typing import TextIO

import check_deployed
import check_floors
import check_machine
import check_places
from check_result import Check, Checks, line

REMOTE = Path(__file__).resolve().parent

# The checks that each process makes, and the function that makes them, in the order of the output.
GROUPS: dict[str, tuple[list[str], Checks]] = {
    "tools": (["tools"], check_machine.check_tools),
    "variables": (["variables"], check_deployed.check_variables),
    "bucket": (check_deployed.BUCKET, check_deployed.check_bucket),
    "gpu_driver": (["gpu_driver"], check_machine.check_gpu_driver),
    "torch": (check_machine.TORCH, check_machine.check_torch),
    "memory": (["memory"], check_machine.check_memory),
    "disk_system": (["disk_system"], check_machine.check_disk_system),
    "disk_root": (["disk_root"], check_machine.check_disk_root),
    "floors": (["floors"], check_floors.check_floors),
    "places": (check_places.PLACES, check_places.check_places),
    "packages": (["packages"], check_deployed.check_packages),
    "model": (["model"], check_deployed.check_model),
    "watchdog": (["watchdog"], check_machine.check_watchdog),
}

_SECRET = re.compile("KEY|SECRET|TOKEN|PASSWORD")


def main() -> int:
    """Run all groups; with --group, which this script uses for its own processes, one of them."""
    parser = argparse.ArgumentParser(description="Check this box; prints a JSON list.")
    parser.add_argument("--timeout", type=float, default=60.0, help="seconds for each group of checks")
    parser.add_argument("--group", choices=GROUPS, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.group:
        run_group(arguments.group)
        return 0
    env = box_environment()
    lock = be_busy(Path(env["MUSICGEN_BOX_HOME"]), arguments.timeout)
    checks = [hidden(check, env) for check in gather(env, arguments.timeout)]
    if lock:
        lock.close()
    print(json.dumps([check._asdict() for check in checks], ensure_ascii=True))
    return 1 if any(check.ok is False for check in checks) else 0


def be_busy(home: Path, timeout_s: float) -> TextIO | None:
    """Until the file is closed, the watchdog counts this as work, as with be_busy of state.sh.

    None where it cannot be locked: what is wrong there is found by the checks.
    """
    try:
        (home / "busy").mkdir(exist_ok=True)
        file = (home / "busy" / "check").open("a", encoding="ascii")
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        file.truncate(0)
        print(int(time.clock_gettime(time.CLOCK_BOOTTIME) + timeout_s + 60), file=file, flush=True)
    except OSError:
        return None
    return file


def run_group(group: str) -> None:
    """Print each check of a group as soon as it is done."""
    names, checks = GROUPS[group]
    done = set()
    try:
        for check in checks():
            done.add(check.name)
            print(json.dumps(check), flush=True)
    except Exception as error:  # a check that raises has failed
        for name in names:
            if name not in done:
                print(json.dumps(Check(name, False, f"the check itself failed: {line(error)}")), flush=True)


def box_environment() -> dict[str, str]:
    """This process's environment with the paths of env.sh and all settings of worker.env."""
    script = (
        '. "$1/env.sh"; take_deployed; '
        "root=$MUSICGEN_BOX_ROOT home=$MUSICGEN_BOX_HOME workspace=$MUSICGEN_WORKSPACE; set -a; "
        'if [ -r "$home/worker.env" ]; then . "$home/worker.env"; fi; '
        "MUSICGEN_BOX_ROOT=$root MUSICGEN_BOX_HOME=$home MUSICGEN_WORKSPACE=$workspace; find_places; "
        "make_places 2> /dev/null; env -0"
    )
    command = ["bash", "-c", script, "bash", str(REMOTE)]
    printed = subprocess.run(command, capture_output=True, check=True).stdout
    return dict(entry.split("=", 1) for entry in os.fsdecode(printed).split("\0") if "=" in entry)


def run_is_on(env: Mapping[str, str]) -> bool:
    """True if a worker is on this box. One of another box on the same network volume is not seen."""
    return is_held(Path(env["MUSICGEN_BOX_HOME"]) / "worker.lock")


def is_held(path: Path) -> bool:
    """True if a process has locked this file."""
    try:
        with path.open("rb") as lock:
            fcntl.flock(lock, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except FileNotFoundError:
        return False
    except BlockingIOError:
        return True
    return False


def gather(env: dict[str, str], timeout_s: float) -> list[Check]:
    """Every check, the groups in parallel; one without a result in time has failed."""
    python = Path(env["MUSICGEN_BOX_HOME"]) / "venv" / "bin" / "python"
    interpreter = str(python) if os.access(python, os.X_OK) else sys.executable
    last = time.monotonic() + timeout_s
    running = {}
    for group in GROUPS:
        # A file, not a pipe, which a child of a hanging process would keep open.
        out = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115  (read below)
        process = subprocess.Popen(
            [interpreter, "-B", str(REMOTE / "check.py"), "--group", group],
            stdout=out,
            stderr=subprocess.DEVNULL,
            stdin=subprocess.DEVNULL,
            env=env,
            start_new_session=True,
        )
        running[group] = process, out
    checks = []
    for group, (names, _) in GROUPS.items():
        process, out = running[group]
        while process.poll() is None and time.monotonic() < last:
            time.sleep(0.02)
        if process.poll() is None:
            os.killpg(process.pid, signal.SIGKILL)  # not waited for, as a hanging disk may keep it
            reason = f"no result within {timeout_s:g} s"
        else:
            reason = f"the check ended without a result (exit code {process.returncode})"
        out.seek(0)
        done = {check.name: check for check in (Check(*json.loads(text)) for text in out)}
        out.close()
        remedy = "run it again; if it fails again, restart this machine"
        checks += [done.get(name) or Check(name, False, reason, remedy) for name in names]
    return checks


def hidden(check: Check, env: dict[str, str]) -> Check:
    """The check without the value of any secret, which an error's text may contain."""
    secrets = [value for name, value in env.items() if _SECRET.search(name) and len(value) > 5]
    detail, remedy = check.detail, check.remedy
    for secret in secrets:
        detail, remedy = detail.replace(secret, "***"), remedy.replace(secret, "***")
    return Check(check.name, check.ok, detail, remedy)


if __name__ == "__main__":
    sys.exit(main())
