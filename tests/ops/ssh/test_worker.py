"""The worker's life as `fab` leads it: started, followed, restarted and stopped, gently or firmly.

The worker is one that only waits, so that it can be met in the middle of its work.
"""

import signal
import time
from pathlib import Path

import pytest


@pytest.fixture
def waiting(fab, box):
    """A deployed box whose worker counts to a thousand, and stops when it is asked to."""
    assert fab("deploy").returncode == 0
    python = box.box_home / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(
        "#!/bin/bash\ntrap 'echo saved; exit 75' INT TERM\n"
        "for ((n = 0; n < 1000; n++)); do echo line $n; sleep 0.1; done\n"
    )
    python.chmod(0o755)
    assert fab("run").returncode == 0
    return fab


def test_stop_is_gentle_says_so_and_again_succeeds(waiting, box):
    done = waiting("stop")
    assert done.returncode == 0
    assert done.stderr.splitlines()[-1].endswith("it stopped by itself and kept its checkpoints")
    assert waiting("stop").stderr.splitlines()[-1].endswith("nothing was running")
    assert waiting("logs").returncode == 75


def test_deaf_worker_is_killed_after_the_grace(waiting, box):
    waiting("stop")
    python = box.box_home / "venv" / "bin" / "python"
    python.write_text("#!/bin/bash\ntrap '' INT TERM\nwhile :; do sleep 0.1; done\n")
    assert waiting("run").returncode == 0
    done = waiting("stop", "--grace", "1s")
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


def test_ctrl_c_ends_the_following_within_a_second_and_not_the_worker(waiting, box):
    with waiting.start("logs") as process:
        assert process.stdout.readline()
        process.send_signal(signal.SIGINT)
        began = time.monotonic()
        process.wait(10)
        assert time.monotonic() - began < 1.5  # Python itself takes its time to end
        assert process.returncode == 0
        assert b"the worker goes on" in process.stderr.read()
    assert list(box.root.glob("state/2*/exit_code")) == []


def test_logs_once_ends_by_itself(waiting):
    waiting("stop")
    done = waiting("logs", "--once", "--lines", "2")
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 2)


def test_no_tmux_is_one_line(waiting, box):
    waiting("stop")
    box.lack("tmux")
    done = waiting("run")
    assert done.returncode == 1
    assert done.stderr.splitlines()[-1] == "error: tmux is missing; run: fab install"
