"""A training is a run like the worker's: the same lock, log, exit code, stop hook and watchdog."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.remote.boxes import until

QUICK = {"MUSICGEN_WATCHDOG_POLL_S": "0.1", "MUSICGEN_WATCHDOG_RETRY_S": "0.1"}


def seen(box):
    return json.loads((box.state / "seen.json").read_text())


def status(state, step=0):
    """A status.json of a training."""
    return "status=" + json.dumps({"state": state, "progress": step})


@pytest.mark.parametrize(("options", "job"), [((), "worker"), (("--job", "train"), "train")])
def test_state_folder_and_status_say_which_job_it_is(box, options, job):
    box.start("exit", "0", options=options)
    assert (box.state / "job").read_text() == f"{job}\n"
    box.ended()
    assert box.status()["job"] == job


def test_run_of_a_release_that_knew_no_other_job_is_the_workers(box):
    assert box.status()["job"] is None
    box.start("exit", "0")
    box.ended()
    (box.state / "job").unlink()
    assert box.status()["job"] == "worker"


def test_training_gets_its_arguments_its_place_and_the_secrets(box):
    box.settings(HF_TOKEN="hf_planted")
    started = box.train("exit", "0", "--config", "a b'c")
    its = seen(box)
    assert its["argv"] == ["exit", "0", "--config", "a b'c"] and its["cwd"] == str(box.release)
    assert its["env"]["RUN_ID"] == started["run_id"] and its["env"]["MUSICGEN_STATE_DIR"] == str(box.state)
    assert its["env"]["HF_TOKEN"] == "hf_planted" and its["env"]["HF_HOME"]
    assert "MUSICGEN_OUTPUT" not in its["env"]


def test_training_needs_no_environment_of_the_worker_and_no_list_of_songs(box):
    shutil.rmtree(box.home / "venv")
    (box.release / "prompts.txt").unlink()
    box.train("exit", "3")
    assert box.ended() == "3\n"


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        (("--job", "train"), "there is no remote/train.py in "),
        (("--job", "dance"), "dance is not a job; write: --job worker, or --job train"),
        (("--dance",), "--dance is not an option"),
    ],
)
def test_start_that_cannot_be_is_refused_before_anything_is_touched(box, options, reason):
    (box.release / "remote" / "train.py").unlink()
    done = box.sh("session.sh", "start", *options)
    assert done.returncode == 2 and done.stderr.startswith(f"error: {reason}")
    assert not (box.root / "state" / "current").exists()


@pytest.mark.parametrize(
    ("first", "name", "second"),
    [("worker", "worker", "train"), ("train", "training", "worker"), ("train", "training", "train")],
)
def test_second_job_of_either_kind_is_refused_and_touches_nothing(box, first, name, second):
    started = box.start(options=("--job", first))
    before = sorted(path.name for path in (box.root / "state").iterdir())
    for script, words in (("session.sh", ("start", "--job", second)), ("job.sh", ("--job", second))):
        done = box.sh(script, *words)
        assert done.returncode == 4
        assert done.stderr.startswith(f"error: the {name} is already running (run {started['run_id']})")
    assert sorted(path.name for path in (box.root / "state").iterdir()) == before
    assert box.status()["pid"] == started["pid"] and box.status()["job"] == first


def test_of_a_worker_and_a_training_started_at_once_one_wins(box):
    starts = [
        subprocess.Popen(
            box.command("session.sh", "start", "--job", job),
            env=box.env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for job in ("worker", "train", "train")
    ]
    assert sorted(start.wait(60) for start in starts) == [0, 4, 4]


def test_stopped_training_gets_sigterm_and_no_sigint(box):
    box.train()
    answer = box.json("session.sh", "stop", "--keep")
    assert (answer["needed"], answer["exit_code"], answer["job"]) == ("SIGTERM", 75, "train")
    log = (box.state / "log").read_text()
    assert "checkpoint written" in log and "the training ended with exit code 75" in log


def test_training_deaf_to_sigterm_is_killed_after_the_grace(box):
    started = box.train("deaf")
    answer = box.json("session.sh", "stop", "0", MUSICGEN_STOP_TERM_S="600")
    assert (answer["needed"], answer["exit_code"]) == ("SIGKILL", 137)
    assert not Path(f"/proc/{started['pid']}").exists()


@pytest.mark.parametrize(("job", "grace_s"), [("worker", "60"), ("train", "300")])
def test_stop_without_a_grace_gives_each_job_its_own(box, job, grace_s):
    box.start(options=("--job", job))
    stop = box.command("session.sh", "stop", "--keep", "", "fab stop")
    traced = subprocess.run([stop[0], "-x", *stop[1:]], env=box.env, capture_output=True, text=True)
    assert f"+ ended_within {grace_s}\n" in traced.stderr
    assert (box.state / "stopped_by").read_text() == "fab stop\n"


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_training_gets_sigterm_for_whatever_signal_its_unit_gets(box, number):
    """A Ctrl-C in its terminal would end it without a checkpoint."""
    unit = subprocess.Popen(box.command("job.sh", "--job", "train"), env=box.env, start_new_session=True)
    until(lambda: (box.state / "ready").exists())
    unit.send_signal(number)
    assert unit.wait(60) == 75


@pytest.mark.parametrize("code", ["0", "1", "75"])
def test_stop_hook_runs_once_however_the_training_ended(box, code):
    box.settings(MUSICGEN_STOP_HOOK=str(box.hook()), MUSICGEN_STOP_GRACE_S="0")
    box.train("exit", code)
    until(lambda: box.status()["stop_hook"] == "ran 0")
    assert box.calls() == [f"training ended with exit code {code}"]


def test_stop_hook_is_skipped_after_a_training_with_keep_alive_and_when_a_worker_took_over(box):
    box.settings(MUSICGEN_STOP_HOOK=str(box.hook()), MUSICGEN_STOP_GRACE_S="600")
    box.train("exit", "0", options=("--keep-alive",))
    box.ended()
    assert box.status()["stop_hook"] == "skipped: keep-alive"
    box.train("exit", "0")
    box.ended()
    first = box.state
    box.start()
    until(lambda: (first / "stop_hook").read_text().startswith("skipped: "))
    assert box.calls() == [] and box.status()["job"] == "worker"


def test_training_whose_processes_all_vanished_gets_an_exit_code(box):
    started = box.train()
    wrapper = int((box.home / "worker.run").read_text().split()[1])
    os.kill(wrapper, signal.SIGKILL)
    os.kill(started["pid"], signal.SIGKILL)
    until(lambda: not box.status()["running"])
    assert box.status()["exit_code"] == 137 and box.status()["job"] == "train"


# --- the watchdog


@pytest.fixture
def guarded(box):
    """A box with a watchdog under these settings, and a stop hook called `off`."""

    def start(**settings):
        box.settings(MUSICGEN_STOP_HOOK=str(box.hook("off")), MUSICGEN_STOP_GRACE_S="0", **settings)
        box.json("watchdog.sh", "start", **QUICK)
        return box

    return start


def test_training_that_prints_before_its_first_step_makes_progress(guarded, box):
    box.train("talking", status("starting"))
    guarded(MUSICGEN_NO_PROGRESS_LIMIT_S="1")
    time.sleep(1.5)
    assert box.status()["running"] and box.calls("off") == []


def test_training_that_prints_and_makes_no_step_is_stopped_with_sigterm(guarded, box):
    run_id = box.train("talking", status("training", 7))["run_id"]
    guarded(MUSICGEN_NO_PROGRESS_LIMIT_S="1")
    until(lambda: box.calls("off"))
    assert box.ended() == "75\n" and box.calls("off")[0] == "no_progress"
    acted = json.loads((box.root / "state" / "watchdog.json").read_text())
    assert (acted["run_id"], acted["stopped_with"]) == (run_id, "SIGTERM")
    assert acted["detail"].startswith("the training made no progress for ")


def test_silent_training_is_stopped_though_the_watchdogs_own_warnings_are_in_its_log(guarded, box):
    box.train()
    guarded(MUSICGEN_NO_PROGRESS_LIMIT_S="3", MUSICGEN_WATCHDOG_WARN_S="2 1")
    until(lambda: box.calls("off"))
    assert (box.state / "log").read_text().count("watchdog: in ") == 2


def test_talking_worker_makes_no_progress_by_it(guarded, box):
    (box.release / "worker" / "__main__.py").write_bytes((box.release / "remote" / "train.py").read_bytes())
    box.start("talking")
    guarded(MUSICGEN_NO_PROGRESS_LIMIT_S="1")
    until(lambda: box.calls("off"))


def test_training_has_five_minutes_before_the_deadline_to_save(guarded, box):
    box.train()
    end = box.json("deadline.sh", "arm", MUSICGEN_LIFETIME_S="301")["deadline"]
    guarded()
    assert box.ended() == "75\n"
    assert time.time() < end - 200
