"""A training as `fab` meets it: followed, shown, stopped, and left alone by what is for the worker."""

import re
import signal

import pytest

from ops import release
from ops.repository import ROOT
from ops.ssh import session, ship
from ops.ssh.session import StopNeeded
from tests.ops.ssh.connect import connected

TRAINING = b"""
import json, os, signal, sys, time

def save(number, frame):
    print("checkpoint written", flush=True)
    sys.exit(75)

signal.signal(signal.SIGTERM, signal.SIG_IGN if "deaf" in sys.argv else save)
steps = {"done": 25, "total": 40, "epoch": 0.625, "loss": "2.31"}
its = {"run_id": os.environ["RUN_ID"], "state": "training", "progress": 25, "steps": steps, "rate": 1.25}
with open(os.environ["MUSICGEN_STATE_DIR"] + "/status.json", "w") as file:
    json.dump(its, file)
print("step 25", flush=True)
time.sleep(600)
"""


@pytest.fixture
def conn(box, tmp_path, monkeypatch):
    """A connection to a box that is deployed to; nothing was installed there."""
    monkeypatch.setattr(session, "_SETTLE_S", 0)
    scripts = {f"remote/{path.name}": path.read_bytes() for path in (ROOT / "remote").glob("*.sh")}
    files = scripts | {"remote/train.py": TRAINING, "prompts.txt": b"rain ; 1 ; rain\n"}
    with connected(box, tmp_path) as conn:
        ship.send(conn, release.bundle(files))
        yield conn


def step(box):
    """The log of the training that is on, when it has made a step."""
    (log,) = box.root.glob("state/2*/log")
    return "step 25" in log.read_text()


@pytest.fixture
def training(fab, box, conn):
    """A user who has a training on the box."""
    session.start(conn, job=session.TRAIN)
    with fab.start("logs", "--lines", "9") as following:
        next(line for line in following.stdout if b"step 25" in line)
        following.send_signal(signal.SIGINT)
        assert next(line for line in following.stderr if b"the training keeps running" in line)
    return fab


def test_training_is_shown_stopped_by_sigterm_and_followed_to_its_exit_code(training, box):
    shown = training("status").stdout
    assert re.search(r"job\W+training", shown) and "running: training" in shown
    assert re.search(r"steps\W+25 of 40, epoch 0.62, loss 2.31", shown)
    done = training("stop")
    assert done.returncode == 0
    assert done.stderr.splitlines()[-1].endswith(
        "it stopped at SIGTERM; a training resumes from its newest checkpoint"
    )
    (folder,) = box.root.glob("state/2*")
    assert (folder / "stopped_by").read_text() == "fab stop\n"
    log = training("logs")
    assert log.returncode == 75 and "checkpoint written" in log.stdout


def test_what_is_for_the_worker_refuses_while_a_training_is_on(training, box, conn):
    for words in (("run",), ("sync",), ("deploy",)):
        done = training(*words)
        assert done.returncode == 1, words
        (line,) = [line for line in done.stderr.splitlines() if line.startswith("error:")]
        assert re.match(r"error: the training is (already )?running \(run .*\)", line)
        assert "fab sync" not in line and "fab stop" in line
    assert session.status(conn).running and step(box)
    assert len(list(box.root.glob("state/2*"))) == 1


def test_deaf_training_is_killed_after_the_grace_that_was_asked_for(fab, conn):
    session.start(conn, job=session.TRAIN, arguments=["deaf"])
    done = fab("stop", "--grace", "1s")
    assert done.returncode == 0 and "did not react and was killed; a training resumes" in done.stderr


def test_worker_that_ignored_its_first_signal_is_told_from_a_training_that_had_no_other():
    assert session.ended_by(StopNeeded.SIGTERM, None) == "it ignored SIGINT and stopped at SIGTERM"
    assert session.ended_by(StopNeeded.SIGTERM, session.TRAIN).startswith("it stopped at SIGTERM")
