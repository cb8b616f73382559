"""remote/train.py with a real training: killed or stopped, it ends with the losses of an undisturbed one."""

import os
import signal
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests import training
from tests.fakes.trainings import EXAMPLE
from tests.remote.boxes import until

pytestmark = pytest.mark.xdist_group("training")


@pytest.fixture
def example(box, training_python):
    """The box with the example as its training; -> how it is given to train.py."""
    box.files = {f"examples/train/{path.name}": path.read_bytes() for path in EXAMPLE.glob("*.*")}
    box.repository.mkdir()
    config = training.prepare(box.repository, step_s=0.03)
    config.rename(box.volume / "config.yaml")
    box.files["examples/train/config.yaml"] = (box.volume / "config.yaml").read_bytes()
    return ("--config", "examples/train/config.yaml", "--python", str(training_python))


def checkpoints(box):
    return {path.name: path for path in (box.repository / "checkpoints" / "example").glob("checkpoint-*")}


def training_of(process):
    """The process of the training that train.py supervises; None while there is none."""
    try:
        children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
        return next(
            (int(pid) for pid in children if b"train.py" in Path(f"/proc/{pid}/cmdline").read_bytes()), None
        )
    except OSError:
        return None


def runs_in(folder):
    """True while a process has this folder as its own."""
    for link in Path("/proc").glob("[0-9]*/cwd"):
        try:
            if link.readlink() == folder:
                return True
        except OSError:
            continue
    return False


def kill(process, everything):
    """The training alone, which train.py then resumes; or all of it, as when a box is lost."""
    with suppress(ProcessLookupError):  # it may be faster
        if everything:
            os.killpg(process.pid, signal.SIGKILL)
        elif pid := training_of(process):
            os.kill(pid, signal.SIGKILL)


def test_training_killed_at_random_moments_has_the_losses_of_an_undisturbed_one(box, example, trained, rng):
    for everything in (True, False, True, True):
        before = set(checkpoints(box))
        process = box.start(*example)
        until(lambda p=process: training_of(p) or p.poll() is not None)
        if rng.random() < 0.5:  # while a checkpoint is being written: its folder has just come
            until(lambda b=before, p=process: set(checkpoints(box)) - b or p.poll() is not None)
            time.sleep(rng.uniform(0, 0.03))
        else:
            time.sleep(rng.uniform(0, 2))
        kill(process, everything)
        process.communicate(timeout=120)
        until(lambda: not runs_in(box.repository))
    while (done := box.train(*example)).returncode != 0:
        assert "twice" in done.stderr, done.stderr  # two of the kills at one step
    wanted = training.losses(trained / "checkpoints" / "example" / "checkpoint-40")
    assert training.losses(checkpoints(box)["checkpoint-40"]) == wanted


def test_stopped_training_is_resumed_from_the_step_at_which_it_was_stopped(box, example, trained):
    process = box.start(*example)
    until(lambda: "checkpoint-10" in checkpoints(box))
    code, _, err = box.stopped(process)
    newest = max(int(name.rpartition("-")[2]) for name in checkpoints(box))
    if newest < 40:  # else it was at its goal first
        assert code == 75, err
        assert err.endswith(f"; start it again to resume from step {newest}\n")
    assert box.train(*example).returncode == 0
    loss = training.losses(checkpoints(box)["checkpoint-40"])
    wanted = training.losses(trained / "checkpoints" / "example" / "checkpoint-40")
    assert loss.keys() == wanted.keys()
    assert [loss[step] for step in range(1, newest + 1)] == [wanted[step] for step in range(1, newest + 1)]


def test_status_has_what_the_real_training_logs(box, example):
    assert box.train(*example).returncode == 0
    steps = box.status()["steps"]
    assert (steps["done"], steps["total"], steps["epoch"]) == (40, 40, 2.5)
    assert 0 < float(steps["loss"]) < 3
    assert [line["step"] for line in box.lines("step")] == list(range(1, 41))
    folders = (box.state / "curves").read_text().splitlines()
    assert [list(Path(folder).rglob("events.out.tfevents.*")) != [] for folder in folders] == [True, False]
