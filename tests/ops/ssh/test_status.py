"""What `fab status` shows of a box, and what a box cannot say is left out."""

import json
from datetime import UTC, datetime
from types import SimpleNamespace

import pytest

from ops.ssh import look
from ops.ssh.box import CommandResult
from ops.ssh.look import Disk, Gpu
from ops.ssh.status import BoxStatus, extend, model_row, parse_models, read_status, status_rows
from tests.ops.ssh.connect import connected

NOW = datetime(2026, 11, 22, 20, 0, tzinfo=UTC)
RUN = {"run_id": "r-1", "running": True, "exit_code": None, "stop_hook": None}
STATUS = {
    "run_id": "r-1",
    "state": "generating",
    "songs": {"asked": 10, "done": 4, "made": 2, "failed": 1, "left": 5},
    "current": [{"song": "x_5c0ffee0.wav", "frames_done": 50, "frames_total": 200}],
    "rate": 3.25,
    "eta_s": 600,
    "hourly_cost_usd": 0.86,
    "cost_usd": 0.43,
    "notice": None,
}


def rows(run=RUN, status=STATUS, watchdog=None, keys=None):
    found = BoxStatus(
        run=run,
        status=status,
        watchdog=watchdog or {},
        gpus=[Gpu(0, "L40S", 51, 9216, 46080, 61, 210.5, 350)],
        disks=[Disk("/workspace", 70.0, 100.0)],
        credentials_expire=keys,
    )
    return {row["what"]: row["now"] for row in status_rows(found, NOW)}


def test_running_worker_shows_songs_speed_time_left_and_cost():
    found = rows(watchdog={"running": True, "left_s": 7200, "action": "/off", "turns_off": True})
    assert found["state"] == "running: generating"
    assert found["songs"] == "4 of 10 done, 1 failed"
    assert found["  x_5c0ffee0.wav"] == "25 %"
    assert found["speed"] == "3.25 s of audio per second"
    assert found["time left"] == "10 min 0 s"
    assert found["cost"] == "$0.43 at $0.86 an hour"
    assert found["GPU 0"] == "L40S: 51 % busy, 9.0 of 45.0 GB"
    assert found["disk /workspace"] == "70.0 GB free of 100.0"
    assert found["deadline"] == "in 2 h 0 min; then the box switches off"


def test_running_training_shows_its_steps_and_their_speed():
    its = {"songs": None, "frames": None, "current": [], "state": "training", "rate": 0.4}
    steps = {"done": 1025, "total": 4000, "epoch": 0.6254, "loss": "nan"}
    train = RUN | {"job": "train"}
    found = rows(run=train, status=STATUS | its | {"steps": steps}, watchdog={"running": True, "left_s": 60})
    assert found["job"] == "training" and found["state"] == "running: training"
    assert found["steps"] == "1025 of 4000, epoch 0.63, loss nan"
    assert found["speed"] == "0.40 steps per second"
    assert found["deadline"] == "in 1 min 0 s; then the training is stopped"
    assert "songs" not in found


@pytest.mark.parametrize(
    ("steps", "shown"),
    [
        ({"done": 3, "total": None, "epoch": None, "loss": None}, "3"),
        ({"done": 0, "total": 40, "epoch": 0, "loss": None}, "0 of 40, epoch 0.00"),
    ],
)
def test_of_a_training_what_is_not_known_yet_is_left_out(steps, shown):
    assert rows(run=RUN | {"job": "train"}, status={"run_id": "r-1", "steps": steps})["steps"] == shown


def test_status_of_an_older_run_is_not_shown_as_this_one_s():
    assert "songs" not in rows(status=STATUS | {"run_id": "r-0"})


@pytest.mark.parametrize(
    ("code", "shown"),
    [(0, "ended with exit code 0 (done)"), (75, "ended with exit code 75 (interrupted)")],
)
def test_ended_run_shows_how_it_ended(code, shown):
    assert rows(run=RUN | {"running": False, "exit_code": code})["state"] == shown


def test_run_that_was_stopped_shows_by_what_and_no_ctrl_c():
    found = rows(run=RUN | {"stopped_by": "fab stop"}, status=STATUS | {"notice": "Ctrl-C"})
    assert found["stopped by"] == "fab stop" and "notice" not in found


def test_box_without_a_watchdog_is_shown_as_such():
    found = rows(watchdog={"running": False, "left_s": None, "action": None})
    assert found["watchdog"].startswith("NOT RUNNING: ") and found["deadline"] == "none"


def test_deadline_of_a_box_that_cannot_go_off_is_the_worker_s():
    found = rows(watchdog={"running": True, "left_s": 60, "action": None})
    assert found["this box"].startswith(
        "nothing turns this box off; it bills until you stop it (MUSICGEN_STOP_HOOK"
    )
    assert found["deadline"] == "in 1 min 0 s; then the worker is stopped"


def test_box_that_started_after_its_end_says_what_begins_another_lifetime():
    over = {"running": True, "left_s": 540, "action": "/off", "turns_off": True, "lifetime_over": True}
    assert "fab status --extend 2h begins another" in rows(watchdog=over)["deadline"]


def test_what_the_watchdog_did_is_shown():
    acted = {"acted_at": "2026-11-22T19:00:00Z", "detail": "no worker ran for 1800 s"}
    found = rows(watchdog={"running": True, "left_s": None, "action": "/off", "acted": acted})
    assert found["watchdog acted"] == "2026-11-22T19:00:00Z: no worker ran for 1800 s"


@pytest.mark.parametrize(
    ("off", "line"),
    [
        ("true", "this box switches off in 2 h 0 min at the latest"),
        (
            "false",
            "nothing turns this box off; it bills until you stop it; its worker is stopped in 2 h 0 min",
        ),
    ],
)
def test_moved_deadline_is_said_with_what_happens_then(off, line):
    answers = {
        "deadline.sh": '{"left_s": 7200, "clipped": false}',
        "watchdog.sh": f'{{"left_s": 7200, "turns_off": {off}}}',
    }
    box = SimpleNamespace(remote=lambda script, *arguments: CommandResult(0, answers[script], ""))
    assert extend(box, "1h").startswith(line)


def test_expired_credentials_come_with_their_remedy():
    left = rows(keys=datetime(2026, 11, 22, 21, 0, tzinfo=UTC))["credentials"]
    assert left == "expire in 1 h 0 min"
    gone = rows(keys=datetime(2026, 11, 22, 19, 0, tzinfo=UTC))["credentials"]
    assert gone == "EXPIRED; run: fab install --renew"


def test_script_of_the_box_that_fails_is_no_run_that_never_was(box, tmp_path):
    scripts = box.root / "current" / "remote"
    scripts.mkdir(parents=True)
    (scripts / "session.sh").write_text("echo 'error: flock is missing on this box' >&2; exit 2\n")
    with connected(box, tmp_path) as conn:
        found = {row["what"]: row["now"] for row in status_rows(read_status(conn), NOW)}
    assert found["fault"] == "error: flock is missing on this box"
    assert "run" not in found and "state" not in found


def test_box_with_nothing_on_it_still_shows_gpu_and_disk(box, tmp_path):
    with connected(box, tmp_path) as conn:
        found = read_status(conn)
        (gpu,) = look.gpus(conn)
    assert (found.run, found.status, found.credentials_expire) == ({}, {}, None)
    assert found.gpus == [gpu] and gpu.name == "NVIDIA L40S"
    assert found.disks


# --- models


def model_shown(now="2026-11-22T20:00:00Z", **its):
    """How a model's state file is shown, of which the last was written at 20:00."""
    known = {"schema": 1, "model": "demo/tiny", "updated_at": "2026-11-22T20:00:00Z", "error": None} | its
    (model,) = parse_models(f"{now}\n{json.dumps(known)}\n")
    return model_row(model)


def test_model_that_is_being_fetched_shows_bytes_speed_and_time_left():
    its = {"done_bytes": 1_200_000_000, "total_bytes": 2_400_000_000, "bytes_per_s": 85e6, "eta_s": 14.1}
    assert model_shown(state="fetching", **its) == "fetching: 1.2 GB of 2.4 GB, 85.0 MB/s, 14.1 s left"
    assert model_shown(state="waiting") == "waiting"


def test_model_with_which_nothing_is_to_be_done_is_not_shown():
    assert model_shown(state="done") == ""


def test_model_whose_download_failed_or_was_killed_says_so():
    assert model_shown(state="failed", error="disk full; free space") == "failed: disk full; free space"
    assert model_shown(state="damaged") == "damaged; get it again"
    killed = model_shown(now="2026-11-22T20:30:00Z", state="fetching")
    assert killed == "fetching ended without a word 30 min 0 s ago; get it again"


def test_state_of_a_model_that_cannot_be_read_is_left_out():
    assert parse_models("2026-11-22T20:00:00Z\nnonsense\n{}\n") == parse_models("") == []
