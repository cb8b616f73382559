"""remote/train.py: what it writes into the state folder, for `fab status` and the watchdog."""

import pytest

from tests.remote.boxes import until


def test_status_of_a_finished_training(box):
    box.train(HOURLY_COST_USD="0.5")
    status = box.status()
    assert (status["schema"], status["run_id"]) == (1, "20261122T195059Z-ab12")
    assert (status["state"], status["exit_code"], status["eta_s"]) == ("done", 0, None)
    assert status["steps"] == {"done": 8, "total": 8, "epoch": None, "loss": "0.125"}
    assert (status["songs"], status["frames"], status["hourly_cost_usd"]) == (None, None, 0.5)
    assert 0 < status["cost_usd"] < 0.01


def test_goal_is_known_once_a_checkpoint_has_it(box):
    box.configure(max_steps=None, steps=8, fail=[[1, 7]])
    box.train()
    assert [line["goal"] for line in box.lines("begun")] == [None, 8]
    assert box.status()["steps"]["total"] == 8


@pytest.mark.parametrize(
    ("keys", "state", "code"),
    [({"leave_at": 5}, "interrupted", 75), ({"fail": [[1, 3], [2, 3]]}, "failed", 1)],
)
def test_status_says_how_it_ended(box, keys, state, code):
    box.configure(**keys)
    box.train()
    assert (box.status()["state"], box.status()["exit_code"]) == (state, code)


def test_status_is_written_while_it_trains(box):
    box.configure(hang_at=3)
    process = box.start()
    until((box.repository / "logs" / "hanging").exists)
    until((box.state / "status.json").exists)
    assert box.status()["state"] in ("starting", "training")
    assert box.status()["exit_code"] is None
    box.stopped(process)


def test_every_step_is_a_line(box):
    box.configure(fail=[[1, 5]])
    box.train()
    assert [line["step"] for line in box.lines("step")] == [1, 2, 3, 4, 5, 5, 6, 7, 8]
    assert box.lines("step")[-1]["text"] == "step 8 of 8: loss 0.125"
    assert [line["checkpoint"] for line in box.lines("begun")] == [None, "checkpoint-4"]
    assert [line["step"] for line in box.lines("retry")] == [5]
    assert [line["exit_code"] for line in box.lines("ended")] == [0]


def test_loss_that_is_no_number_is_shown_and_the_training_goes_on(box):
    box.configure(loss=float("nan"))
    assert box.train().returncode == 0
    assert box.status()["steps"]["loss"] == "nan"
    assert {(line["level"], line["loss"]) for line in box.lines("step")} == {("warning", None)}


def test_broken_checkpoint_is_a_line(box):
    box.configure(half=[[1, 5]])
    box.train()
    (line,) = box.lines("broken")
    assert "checkpoint-6 is not valid: optimizer.pt" in line["text"]


def test_progress_grows_with_what_is_printed_before_the_first_step(box):
    box.configure(hang_at=0)
    process = box.start()
    until((box.repository / "logs" / "hanging").exists)
    box.stopped(process)
    assert box.status()["progress"] == len("training\n")


def test_current_log_leads_to_the_newest_runs_log(box):
    (box.state / "log").write_text("of this run")
    box.train()
    box.train()
    assert (box.volume / "logs" / "current.log").read_text() == "of this run"


def test_file_of_somebody_elses_at_the_place_of_the_link_stays(box):
    (box.volume / "logs").mkdir()
    (box.volume / "logs" / "current.log").write_text("mine")
    assert box.train().returncode == 0
    assert (box.volume / "logs" / "current.log").read_text() == "mine"


def test_without_a_state_folder_nothing_is_written(box):
    assert box.train(MUSICGEN_STATE_DIR="").returncode == 0
    assert list(box.state.iterdir()) == []
