"""remote/train.py and what it supervises: finished, stopped, crashed, hung, over a limit."""

import os
import re
import signal
from pathlib import Path

import pytest

from tests.remote.boxes import until


def last_error(err):
    (line,) = [line for line in err.splitlines() if line.startswith("error: ")]
    assert "; " in line
    assert "{" not in line
    return line


def is_alive(pid):
    stat = Path(f"/proc/{pid}/stat")
    return stat.exists() and stat.read_text().rpartition(")")[2].split()[0] != "Z"


def test_training_runs_to_its_goal(box):
    done = box.train()
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.splitlines()[-1] == "--- the training is finished"
    assert (box.repository / "out" / "checkpoint-8").is_dir()
    assert box.resumed() == ["-"]


def test_training_has_its_repository_as_folder_and_path(box):
    box.train()
    (start,) = box.starts()
    assert start["cwd"] == str(box.repository)
    assert start["env"]["PYTHONPATH"] == str(box.repository)


def test_training_gets_its_own_secrets_and_none_of_the_workers(box):
    mine = {"HF_TOKEN": "hf", "WANDB_API_KEY": "wandb"}
    box.train(**mine, AWS_SECRET_ACCESS_KEY="aws", RUNPOD_API_KEY="pod")
    (start,) = box.starts()
    assert mine.items() <= start["env"].items()
    assert not {"AWS_SECRET_ACCESS_KEY", "RUNPOD_API_KEY"} & start["env"].keys()


def test_finished_training_is_not_run_again(box):
    box.train()
    done = box.train()
    assert done.returncode == 0
    assert "finished already, at step 8; start it with --restart" in done.stdout
    assert box.status()["steps"]["done"] == 8
    assert len(box.starts()) == 1


def test_finished_training_with_a_goal_that_was_raised_goes_on(box):
    box.train()
    box.configure(max_steps=12)
    assert box.train().returncode == 0
    assert box.resumed() == ["-", "checkpoint-8"]


def test_restart_moves_earlier_output_aside(box):
    box.train()
    assert box.train("--restart").returncode == 0
    assert box.resumed() == ["-"]  # in its new logging_dir
    (aside,) = box.repository.glob("out.before-*")
    assert (aside / "checkpoint-8" / "trainer_state.json").is_file()


def test_exit_code_0_before_the_goal_is_not_finished(box):
    box.configure(leave_at=5)
    done = box.train()
    assert done.returncode == 75
    assert "not finished: it ended by itself before its goal, at step 5" in last_error(done.stderr)


def test_training_that_saves_elsewhere_is_not_called_resumable(box):
    box.configure(leave_at=1)
    done = box.train()
    assert done.returncode == 1
    assert "name that with --output-dir" in last_error(done.stderr)


def test_crash_is_resumed_from_the_newest_checkpoint(box):
    box.configure(fail=[[1, 5], [2, 6]])
    done = box.train()
    assert done.returncode == 0
    assert box.resumed() == ["-", "checkpoint-4", "checkpoint-6"]
    assert "--- the training failed with exit code 3 at step 5; once more from checkpoint-4" in done.stdout


def test_half_written_checkpoint_is_named_moved_and_the_one_before_resumed(box):
    box.configure(half=[[1, 5]])
    done = box.train()
    assert done.returncode == 0
    assert box.resumed() == ["-", "checkpoint-4"]
    assert "checkpoint-6 is not valid: optimizer.pt is damaged or half written" in done.stdout
    assert (box.repository / "out" / "broken" / "checkpoint-6").is_dir()


def test_step_that_fails_twice_ends_it(box):
    box.configure(fail=[[1, 5], [2, 5], [3, 5]])
    done = box.train("--retries", "5")
    assert done.returncode == 1
    assert "failed with exit code 3 twice at step 5" in last_error(done.stderr)
    assert len(box.starts()) == 2


def test_training_that_ends_at_once_is_tried_twice(box):
    box.configure(fail=[[n, 0] for n in range(1, 9)])
    done = box.train()
    assert done.returncode == 1
    assert "twice before its first step; see the log" in last_error(done.stderr)
    assert len(box.starts()) == 2


def test_it_has_failed_after_its_retries(box):
    box.configure(fail=[[1, 1], [2, 3], [3, 5], [4, 6]])
    done = box.train("--retries", "2")
    assert done.returncode == 1
    assert "at step 5, after 2 retries" in last_error(done.stderr)
    assert len(box.starts()) == 3


@pytest.mark.parametrize(
    ("text", "advice"),
    [
        ("torch.OutOfMemoryError: CUDA out of memory. Tried to allocate 2 GiB", "make its batches smaller"),
        ("OSError: [Errno 28] No space left on device", "free some space"),
        ("OSError: [Errno 122] Disk quota exceeded: 'out/checkpoint-4/optimizer.pt'", "free some space"),
        ("PytorchStreamWriter failed writing file data/0: file write failed", "free some space"),
        ("DefaultCPUAllocator: can't allocate memory: you tried to allocate 8 bytes", "more RAM"),
    ],
)
def test_what_another_attempt_would_not_change_ends_it_with_advice(box, text, advice):
    box.configure(fail=[[1, 3]], text=text)
    done = box.train()
    assert done.returncode == 1
    assert advice in last_error(done.stderr)
    assert len(box.starts()) == 1


def test_stopped_training_saves_and_is_resumed_from_that_step(box):
    box.configure(jit=True, step_s=0.2, max_steps=1000, save_steps=500)
    process = box.start()
    until(lambda: (box.repository / "logs" / "events.out.tfevents.1").exists())
    code, _, err = box.stopped(process)
    (saved,) = (box.repository / "out").iterdir()
    step = saved.name.rpartition("-")[2]
    assert code == 75
    again = f"start it again to resume from step {step}"
    assert last_error(err) == f"error: the training was stopped at step {step}; {again}"
    box.configure(max_steps=int(step) + 1)
    assert box.train().returncode == 0
    assert box.resumed() == ["-", saved.name]


def test_stopped_training_that_saves_nothing_goes_on_from_its_last_checkpoint(box):
    box.configure(hang_at=5)
    process = box.start()
    until((box.repository / "logs" / "hanging").exists)
    assert box.stopped(process)[0] == 75
    box.configure()
    assert box.train().returncode == 0
    assert box.resumed() == ["-", "checkpoint-4"]


def test_ctrl_c_is_passed_as_sigterm(box):
    box.configure(jit=True, step_s=0.2, max_steps=1000, save_steps=500)
    process = box.start()
    until(lambda: (box.repository / "logs" / "events.out.tfevents.1").exists())
    os.killpg(process.pid, signal.SIGINT)  # as a terminal does
    process.communicate(timeout=60)
    assert process.returncode == 75
    assert len(list((box.repository / "out").iterdir())) == 1


def test_training_that_does_not_end_is_killed_after_its_grace(box):
    box.configure(deaf=True, hang_at=3, child=True)
    process = box.start("--grace-s", "0.5")
    until((box.repository / "logs" / "hanging").exists)
    assert box.stopped(process)[0] == 75
    assert not is_alive(box.starts()[0]["pid"])
    assert not is_alive((box.repository / "logs" / "child").read_text())


def test_nothing_of_a_training_that_crashed_is_left(box):
    box.configure(child=True, fail=[[1, 3]], text="CUDA out of memory")
    box.train()
    assert not is_alive((box.repository / "logs" / "child").read_text())


def test_training_is_stopped_at_its_limit_in_time(box):
    box.configure(hang_at=3)
    done = box.train("--max-hours", "0.0002")
    assert done.returncode == 75
    assert re.search(r"was stopped .* by its limit of 0\.0002 hours; start it again", last_error(done.stderr))


def test_training_is_stopped_at_its_limit_in_dollars(box):
    box.configure(hang_at=3)
    done = box.train("--max-hours", "5", "--max-usd", "0.0004", "--usd-per-hour", "2")
    assert done.returncode == 75
    assert re.search(r"was stopped .* by its limit of \$0\.0004; start it again", last_error(done.stderr))


def test_limit_in_dollars_needs_a_price(box):
    done = box.train("--max-usd", "5")
    assert done.returncode == 2
    assert "give --usd-per-hour" in last_error(done.stderr)


@pytest.mark.parametrize("price", ["nan", "-1", "cheap"])
def test_price_that_is_none_is_refused(box, price):
    done = box.train(HOURLY_COST_USD=price)
    assert done.returncode == 2
    assert "HOURLY_COST_USD" in last_error(done.stderr)


def test_training_that_hangs_is_ended(box):
    box.configure(hang_at=3)
    done = box.train("--stall-min", "0.01")
    assert done.returncode == 1
    assert re.search(r"the training hung .*; see the log, then start it again", last_error(done.stderr))
    assert "py-spy" in done.stdout


def test_quiet_training_whose_gpu_works_does_not_hang(box):
    program = box.home / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text("#!/bin/sh\necho 97\n")
    program.chmod(0o755)
    box.configure(hang_at=3)
    path = f"{program.parent}:{box.env['PATH']}"
    done = box.train("--stall-min", "0.002", "--max-hours", "0.0005", PATH=path)
    assert done.returncode == 75


def test_stacks_of_a_training_that_hangs_go_into_the_log(box):
    program = box.home / "bin" / "py-spy"
    program.parent.mkdir()
    program.write_text('#!/bin/sh\necho "stack of $3"\n')
    program.chmod(0o755)
    box.configure(hang_at=3)
    done = box.train("--stall-min", "0.01", PATH=f"{program.parent}:{box.env['PATH']}")
    assert re.search(r"^stack of \d+$", done.stdout, re.M)
