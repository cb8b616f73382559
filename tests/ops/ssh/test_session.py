"""The worker's life as `fab` leads it: started, followed, restarted and stopped, gently or firmly.

The worker is one that only waits, so that it can be met in the middle of its work.
"""

import hashlib
import re
import signal
import time
from pathlib import Path

import pytest

from ops import release
from ops.repository import ROOT
from ops.ssh import session, ship
from ops.ssh.status import read_status
from tests.ops.ssh.connect import connected

REQUIREMENTS = release.as_shipped((ROOT / "requirements" / "worker.txt").read_bytes())


def works(box, body):
    """The worker of the box does this, from its next start on."""
    python = box.box_home / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text(f"#!/bin/bash\n{body}\n")
    python.chmod(0o755)


@pytest.fixture
def conn(box, tmp_path, monkeypatch):
    """A connection to a box that is deployed to and installed."""
    monkeypatch.setattr(session, "_SETTLE_S", 0)
    scripts = {f"remote/{path.name}": path.read_bytes() for path in (ROOT / "remote").glob("*.sh")}
    files = scripts | {"prompts.txt": b"rain ; 1 ; rain\n", "requirements/worker.txt": REQUIREMENTS}
    works(box, "exit 1")
    (box.box_home / "venv.stamp").write_text(f"{hashlib.sha256(REQUIREMENTS).hexdigest()}  - python3\n")
    with connected(box, tmp_path) as conn:
        ship.send(conn, release.bundle(files))
        yield conn


@pytest.fixture
def waiting(fab, box, conn):
    """A user whose worker on the box counts to a thousand, and stops when it is asked to."""
    works(
        box,
        "trap 'echo saved; exit 75' INT TERM\nfor ((n = 0; n < 1000; n++)); do echo line $n; sleep 0.1; done",
    )
    session.start(conn)
    return fab


def test_stop_is_gentle_says_so_and_again_succeeds(waiting, box):
    done = waiting("stop")
    assert done.returncode == 0
    assert done.stderr.splitlines()[-1].endswith("it stopped by itself and kept its checkpoints")
    assert waiting("stop").stderr.splitlines()[-1].endswith("nothing was running")
    assert "fab stop" in waiting("status").stdout
    assert waiting("logs").returncode == 75


def test_deaf_worker_is_killed_after_the_grace(fab, box, conn):
    box.variables["MUSICGEN_STOP_TERM_S"] = "0"
    box.write_shell()
    works(box, "trap '' INT TERM\nwhile :; do sleep 0.1; done")
    session.start(conn)
    done = fab("stop", "--grace", "1s")
    assert done.returncode == 0
    assert "did not react and was killed" in done.stderr


def test_deploy_beside_a_running_worker_is_refused_unless_forced(waiting, box):
    (waiting.here / "prompts.txt").write_text("new ; 1 ; new\n")
    refused = waiting("deploy")
    assert refused.returncode == 1
    assert "error: the worker is running" in refused.stderr
    assert waiting("deploy", "--force").returncode == 0
    assert (box.root / "current" / "prompts.txt").read_text() == "new ; 1 ; new\n"
    (used,) = [run.read_text().strip() for run in box.root.glob("state/2*/release")]
    assert Path(used).is_dir() and Path(used) != (box.root / "current").resolve()


def test_sync_restarts_the_worker_with_the_new_list(waiting, box):
    (waiting.here / "prompts.txt").write_text("new ; 1 ; new\n")
    done = waiting("sync")
    assert done.returncode == 0, done.stderr
    first, second = sorted(box.root.glob("state/2*"))
    assert (first / "exit_code").read_text() == "75\n"
    assert not (second / "exit_code").exists()
    release = Path((second / "release").read_text().strip())
    assert (release / "prompts.txt").read_text() == "new ; 1 ; new\n"


def test_ctrl_c_ends_the_following_at_once_and_not_the_worker(waiting, box):
    with waiting.start("logs") as process:
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        assert next(line for line in process.stderr if b"the worker keeps running" in line)
        assert time.monotonic() - began < 10  # a second at most; this machine may be busy
        assert process.wait(60) == 0
    assert list(box.root.glob("state/2*/exit_code")) == []


def test_logs_once_ends_by_itself(waiting, conn):
    session.stop(conn)
    done = waiting("logs", "--once", "--lines", "2")
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 2)


def test_run_after_a_stop_is_a_new_run_with_the_same_list(waiting, box):
    assert waiting("stop").returncode == 0
    assert waiting("run").returncode == 0
    first, second = sorted(box.root.glob("state/2*"))
    assert (first / "release").read_text() == (second / "release").read_text()
    assert not (second / "exit_code").exists()


def test_worker_that_ends_at_once_is_no_start(fab, box, conn):
    works(box, "echo 'error: no such song'; exit 2")
    done = fab("run")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].endswith(" ended at once, exit code 2; see why: fab logs")
    assert fab("logs").returncode == 2


def test_watchdog_is_started_once_and_status_shows_it(conn):
    assert not read_status(conn).watchdog["running"]
    first, second = session.guard(conn), session.guard(conn)
    assert first["running"] and second["pid"] == first["pid"]
    assert read_status(conn).watchdog["running"]


def test_box_that_nothing_turns_off_says_so_everywhere(fab, box, conn):
    line = "nothing turns this box off; it bills until you stop it"
    works(box, "sleep 60")
    fab.env = {"MUSICGEN_LIFETIME_H": "2"}
    done = fab("run")
    last = done.stderr.splitlines()[-1]
    assert re.fullmatch(rf"{line}; its worker is stopped in (2 h 0|1 h 59) min at the latest", last)
    assert line in fab("status").stdout
    (log,) = box.root.glob("state/2*/log")
    assert log.read_text().splitlines()[0].endswith(f"; {line}")


def test_box_with_a_stop_hook_and_a_deadline_says_when_it_goes(fab, box, conn):
    works(box, "sleep 60")
    hook = box.home / "off"
    hook.write_text("#!/bin/sh\n")
    hook.chmod(0o755)
    fab.env = {"MUSICGEN_STOP_HOOK": str(hook)}
    done = fab("run")
    last = done.stderr.splitlines()[-1]
    assert re.fullmatch(r"this box switches off in (8 h 0|7 h 59) min at the latest", last)
    assert "nothing turns this box off" not in fab("status").stdout


def test_lifetime_of_0_sets_no_deadline(fab, box, conn):
    works(box, "sleep 60")
    fab.env = {"MUSICGEN_LIFETIME_H": "0"}
    assert fab("run").returncode == 0
    assert read_status(conn).watchdog["left_s"] is None


def test_run_on_an_environment_that_was_not_finished_is_refused(fab, box, conn):
    (box.box_home / "venv.stamp").unlink()
    done = fab("run")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last == "error: the environment for this release is missing or incomplete; run: fab install"
    assert not (box.root / "state" / "current").exists()


def test_no_tmux_is_one_line(fab, box, conn):
    box.lack("tmux")
    done = fab("run")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: tmux is missing; run: fab install"
