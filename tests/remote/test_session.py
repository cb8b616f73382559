"""One run of the worker, from its start to what comes after: session.sh, job.sh, stop_hook.sh."""

import json
import os
import shutil
import signal
import subprocess
from datetime import UTC, datetime
from pathlib import Path

import pytest

from tests.remote.boxes import until
from worker.host.spot_notice import parse_notice

SECRET = "swordfish"


def alive(pid):
    return Path(f"/proc/{pid}").exists()


def seen(box):
    return json.loads((box.state / "seen.json").read_text())


def test_run_that_ended_has_its_workers_exit_code(box):
    box.start("exit", "3")
    assert box.ended() == "3\n"
    assert box.status()["exit_code"] == 3 and not box.status()["running"]


def test_worker_that_was_killed_has_137(box):
    started = box.start()
    os.kill(started["pid"], signal.SIGKILL)
    assert box.ended() == "137\n"


def test_status_names_the_run_that_is_on(box):
    started = box.start()
    status = box.status()
    assert status["running"] and status["exit_code"] is None
    assert status["run_id"] == started["run_id"] == box.state.name
    assert Path(f"/proc/{status['pid']}/cmdline").read_bytes().split(b"\0")[1:3] == [b"-m", b"worker"]
    assert status["log_bytes"] == (box.state / "log").stat().st_size > 0


def test_status_before_any_run_names_none(box):
    status = box.status()
    assert status["run_id"] is None and status["pid"] is None and not status["running"]


def test_box_without_flock_says_so_and_is_not_taken_for_busy(box, tmp_path):
    tools = tmp_path / "tools"
    tools.mkdir()
    for name in ("bash", "dirname", "readlink", "tr", "grep", "id"):
        (tools / name).symlink_to(shutil.which(name))
    for script in ("session.sh", "watchdog.sh"):
        done = box.sh(script, "start", PATH=str(tools))
        assert (done.returncode, done.stderr) == (
            2,
            "error: flock is missing on this box; install util-linux there (fab shell), then run it again\n",
        )


def test_worker_gets_prompts_arguments_and_its_place(box):
    box.start("exit", "0", "--only", "a b'c")
    assert seen(box)["argv"] == ["--prompts", f"{box.release}/prompts.txt", "exit", "0", "--only", "a b'c"]
    assert seen(box)["env"]["RUN_ID"] == box.state.name
    assert seen(box)["env"]["MUSICGEN_STATE_DIR"] == str(box.state)


def test_worker_gets_settings_exactly_as_deployed(box):
    box.settings(AWS_SECRET_ACCESS_KEY='$HOME "`x` #', HF_HOME="/weights")
    box.start("exit", "0")
    assert seen(box)["env"]["AWS_SECRET_ACCESS_KEY"] == '$HOME "`x` #'
    assert seen(box)["env"]["HF_HOME"] == "/weights"


def test_secret_is_only_in_the_worker(box):
    box.settings(AWS_SECRET_ACCESS_KEY=SECRET, MUSICGEN_STOP_HOOK=str(box.hook()))
    started = box.start()
    wrapper, worker = map(int, (box.home / "worker.run").read_text().split()[1:])
    tmux_env = subprocess.run(["tmux", "show-environment", "-g"], env=box.env, capture_output=True).stdout
    processes = [
        path for path in Path("/proc").glob("[0-9]*/cmdline") if path.parent.name != str(os.getpid())
    ]
    command_lines = b"".join(path.read_bytes() for path in processes if path.exists())
    assert SECRET.encode() in Path(f"/proc/{worker}/environ").read_bytes()
    assert SECRET.encode() not in Path(f"/proc/{wrapper}/environ").read_bytes() + tmux_env + command_lines
    assert started["pid"] == worker


def test_songs_of_a_box_without_bucket_lie_outside_the_release(box):
    box.start("exit", "0")
    assert seen(box)["env"]["MUSICGEN_OUTPUT"] == f"{box.root}/output"


@pytest.mark.parametrize(
    ("deployed", "output"),
    [
        ({"MUSICGEN_S3_BUCKET": "b"}, None),
        ({"MUSICGEN_OUTPUT": "out/x"}, "ROOT/out/x"),
        ({"MUSICGEN_OUTPUT": "/o"}, "/o"),
    ],
)
def test_output_that_was_set_is_kept(box, deployed, output):
    box.settings(**deployed)
    box.start("exit", "0")
    expected = output and output.replace("ROOT", str(box.root))
    assert seen(box)["env"].get("MUSICGEN_OUTPUT") == expected


def test_run_id_is_a_utc_time_and_four_digits(box):
    run_id = box.start("exit", "0")["run_id"]
    made = datetime.strptime(run_id[:16], "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    assert abs((datetime.now(UTC) - made).total_seconds()) < 60
    assert len(run_id) == 21 and int(run_id[17:], 16) >= 0


def test_second_start_is_refused_and_harms_nothing(box):
    first = box.start()
    second = box.sh("session.sh", "start")
    assert second.returncode == 4
    assert second.stderr.startswith("error: the worker is already running")
    assert json.loads(second.stdout)["run_id"] == first["run_id"]
    assert box.status()["pid"] == first["pid"]


def test_of_starts_at_once_one_wins(box):
    starts = [
        subprocess.Popen(
            box.command("session.sh", "start"),
            env=box.env,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(3)
    ]
    assert sorted(start.wait(60) for start in starts) == [0, 4, 4]


def test_worker_outside_tmux_counts_as_running(box):
    unit = subprocess.Popen(box.command("job.sh"), env=box.env)
    until(lambda: box.status()["pid"])
    assert box.sh("session.sh", "start").returncode == 4
    unit.send_signal(signal.SIGTERM)
    unit.wait(60)


def test_stopped_unit_hands_its_signal_to_the_worker(box):
    unit = subprocess.Popen(box.command("job.sh", "--", "quiet"), env=box.env)
    until(lambda: (box.state / "ready").exists())
    unit.send_signal(signal.SIGINT)
    assert unit.wait(60) == 75
    assert (box.state / "exit_code").read_text() == "75\n"


def test_session_that_is_killed_still_records_its_end(box):
    box.start()
    subprocess.run(["tmux", "kill-session", "-t", "=worker"], env=box.env, check=True)
    assert box.ended() == "143\n"


def test_run_whose_processes_all_vanished_gets_an_exit_code(box):
    started = box.start()
    wrapper = int((box.home / "worker.run").read_text().split()[1])
    os.kill(wrapper, signal.SIGKILL)
    os.kill(started["pid"], signal.SIGKILL)
    until(lambda: not box.status()["running"])
    assert box.status()["exit_code"] == 137
    assert "the run was lost" in (box.state / "log").read_text()


def test_run_of_another_box_on_the_same_volume_is_left_alone(box):
    box.start("exit", "0")
    box.ended()
    (box.state / "exit_code").unlink()
    (box.state / "box").write_text("another\n")
    assert box.status()["exit_code"] is None


def test_next_run_has_its_own_state(box):
    box.start("exit", "1")
    box.ended()
    first = box.state
    box.start("exit", "2")
    box.ended()
    assert box.state != first and (first / "exit_code").read_text() == "1\n"


def test_worker_keeps_the_release_it_was_started_from(box):
    box.start()
    box.make_release(box.root / "releases" / "bbbb")
    (box.root / "next").symlink_to(box.root / "releases" / "bbbb")
    (box.root / "next").replace(box.root / "current")
    assert box.status()["release"] == str(box.release) == seen(box)["cwd"]


def test_graceful_stop_needs_one_signal(box):
    box.start()
    answer = box.json("session.sh", "stop", "60")
    assert (answer["needed"], answer["exit_code"], answer["running"]) == ("SIGINT", 75, False)
    assert "checkpoint written" in (box.state / "log").read_text()


def test_worker_deaf_to_the_first_signal_gets_the_second(box):
    box.start("deaf")
    answer = box.json("session.sh", "stop", "0")
    assert (answer["needed"], answer["exit_code"]) == ("SIGTERM", 143)


def test_worker_deaf_to_both_signals_is_killed_with_its_children(box):
    started = box.start("stone-deaf", "child")
    answer = box.json("session.sh", "stop", "0", MUSICGEN_STOP_TERM_S="0")
    assert (answer["needed"], answer["exit_code"]) == ("SIGKILL", 137)
    assert not alive(started["pid"])
    child = int((box.state / "child").read_text())
    until(lambda: not alive(child) or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2])


def test_child_left_behind_by_the_worker_is_ended(box):
    box.start("child", "exit", "0")
    until((box.state / "child").exists)
    child = int((box.state / "child").read_text())
    until(lambda: not alive(child) or "Z" in Path(f"/proc/{child}/stat").read_text().split()[2])


def test_stopping_what_is_stopped_succeeds(box):
    assert box.json("session.sh", "stop")["needed"] == "nothing"
    box.start("exit", "0")
    box.ended()
    assert box.json("session.sh", "stop", "5")["needed"] == "nothing"


@pytest.mark.parametrize(
    ("missing", "reason"),
    [
        ("home/venv/bin/python", "the environment for this release is missing or incomplete"),
        ("home/venv.stamp", "the environment for this release is missing or incomplete"),
        ("root/current/prompts.txt", "there is no prompts.txt"),
    ],
)
def test_start_says_what_is_missing(box, missing, reason):
    (box.home.parent / missing).unlink()
    done = box.sh("session.sh", "start")
    assert done.returncode == 2 and done.stderr.startswith(f"error: {reason}")


def test_environment_of_other_requirements_starts_nothing(box):
    (box.release / "requirements" / "worker.txt").write_text("songbird==2.0\n")
    done = box.sh("session.sh", "start")
    assert done.returncode == 2 and "incomplete; install it first" in done.stderr


@pytest.mark.parametrize("code", ["0", "1", "2", "75"])
def test_stop_hook_runs_however_the_worker_ended(box, code):
    box.settings(MUSICGEN_STOP_HOOK=str(box.hook()), MUSICGEN_STOP_GRACE_S="0")
    box.start("exit", code)
    until(box.calls)
    assert box.calls() == [f"worker ended with exit code {code}"]
    until(lambda: box.status()["stop_hook"] == "ran 0")


def test_stop_hook_runs_after_a_worker_that_was_killed(box):
    box.settings(MUSICGEN_STOP_HOOK=str(box.hook()), MUSICGEN_STOP_GRACE_S="0")
    os.kill(box.start()["pid"], signal.SIGKILL)
    until(box.calls)


def test_stop_hook_waits_for_those_who_follow(box):
    box.settings(MUSICGEN_STOP_HOOK=str(box.hook()), MUSICGEN_STOP_GRACE_S="1")
    box.start("exit", "0")
    until(box.calls)
    ended, called = (path.stat().st_mtime for path in (box.state / "exit_code", box.home / "hook.calls"))
    assert called - ended > 0.9


def test_stop_hook_may_be_named_within_the_release(box):
    hook = box.release / "remote" / "hook"
    hook.write_bytes(box.hook().read_bytes())
    hook.chmod(0o700)
    box.settings(MUSICGEN_STOP_HOOK="remote/hook", MUSICGEN_STOP_GRACE_S="0")
    box.start("exit", "0")
    until(box.calls)


def test_what_the_stop_hook_says_is_kept(box):
    box.settings(MUSICGEN_STOP_HOOK=str(box.hook(body="echo no; exit 9")), MUSICGEN_STOP_GRACE_S="0")
    box.start("exit", "0")
    until(lambda: box.status()["stop_hook"] == "ran 9")
    log = (box.state / "stop_hook.log").read_text()
    assert "no\n" in log and "ended with exit code 9; this box may still be on" in log


def test_stop_hook_gets_the_platforms_variables_and_no_secret(box):
    Path(box.env["MUSICGEN_PLATFORM_ENV"]).write_text('export RUNPOD_POD_ID="pod7"\n')
    hook = box.hook(body=f"env > {box.home}/hook.env")
    box.settings(MUSICGEN_STOP_HOOK=str(hook), MUSICGEN_STOP_GRACE_S="0", AWS_SECRET_ACCESS_KEY=SECRET)
    box.start("exit", "0")
    until(lambda: box.status()["stop_hook"] == "ran 0")
    env = (box.home / "hook.env").read_text()
    assert "RUNPOD_POD_ID=pod7\n" in env and SECRET not in env


STATUS = '{"schema":1,"notice":"%s","progress":3}'
SPOT = parse_notice('{"action":"terminate","time":"2026-11-22T19:50:59Z"}', datetime.now(UTC), 0.0)


@pytest.mark.parametrize(
    ("deployed", "options", "worker"),
    [
        ({"MUSICGEN_KEEP_ALIVE": "1"}, (), ("exit", "0")),
        ({}, ("--keep-alive",), ("exit", "0")),
        ({"MUSICGEN_STOP_HOOK": ""}, (), ("exit", "0")),
        ({}, (), ("exit", "75", f"status={STATUS % SPOT.reason}")),
        ({}, (), ("exit", "75", f"status={STATUS % f'SIGTERM, and {SPOT.reason}'}")),
    ],
    ids=["keep-alive setting", "keep-alive option", "no hook", "spot notice", "signal and spot notice"],
)
def test_stop_hook_is_skipped(box, deployed, options, worker):
    box.settings(**({"MUSICGEN_STOP_HOOK": str(box.hook()), "MUSICGEN_STOP_GRACE_S": "0"} | deployed))
    box.start(*worker, options=options)
    box.ended()
    until(lambda: box.status()["stop_hook"].startswith("skipped: "))
    until(lambda: not (box.home / "worker.lock").exists() or not box.status()["running"])
    assert box.calls() == [] and "this box stays on" in (box.state / "log").read_text()


def test_interruption_without_spot_notice_ends_the_box(box):
    box.settings(MUSICGEN_STOP_HOOK=str(box.hook()), MUSICGEN_STOP_GRACE_S="0")
    box.start("exit", "75", f"status={STATUS % 'SIGTERM'}")
    until(box.calls)


def test_box_stays_on_after_stop_with_keep(box):
    box.settings(MUSICGEN_STOP_HOOK=str(box.hook()), MUSICGEN_STOP_GRACE_S="0")
    box.start()
    answer = box.json("session.sh", "stop", "--keep", "60")
    assert answer["stop_hook"] == "skipped: it was asked to stay on" and box.calls() == []


def test_stop_after_the_run_was_deleted_succeeds(box):
    (box.root / "state").mkdir(exist_ok=True)
    (box.root / "state" / "current").symlink_to("20261122T195059Z-gone")
    assert box.json("session.sh", "stop", "--keep")["needed"] == "nothing"


def test_stop_with_keep_cancels_a_hook_that_counts_down(box):
    box.settings(MUSICGEN_STOP_HOOK=str(box.hook()), MUSICGEN_STOP_GRACE_S="600")
    box.start("exit", "0")
    box.ended()
    assert box.status()["stop_hook"] == "pending"
    box.json("session.sh", "stop", "--keep")
    until(lambda: box.status()["stop_hook"] == "skipped: it was asked to stay on")
    assert box.calls() == []


def test_new_run_cancels_a_hook_that_counts_down(box):
    box.settings(MUSICGEN_STOP_HOOK=str(box.hook()), MUSICGEN_STOP_GRACE_S="600")
    box.start("exit", "0")
    box.ended()
    first = box.state
    box.start()
    until(lambda: (first / "stop_hook").read_text().startswith("skipped: "))
    assert box.calls() == [] and box.status()["running"]


def test_start_in_place_of_a_run_that_counts_down_keeps_the_tmux_server(box, tmp_path):
    """A server that ends with its last session, just when the next one asks it, is a start that failed."""
    slow = tmp_path / "bin" / "tmux"
    slow.parent.mkdir()
    real = f'{shutil.which("tmux")} "$@"; code=$?'
    slow.write_text(f'#!/bin/sh\n{real}\n[ "$1" != kill-session ] || sleep 0.5\nexit $code\n')
    slow.chmod(0o755)
    box.env["PATH"] = f"{slow.parent}:{box.env['PATH']}"
    ask = ["tmux", "list-sessions", "-F", "#{pid} #{session_name}"]
    box.settings(MUSICGEN_STOP_HOOK=str(box.hook()), MUSICGEN_STOP_GRACE_S="600")
    box.start("exit", "0")
    box.ended()
    before = subprocess.run(ask, env=box.env, capture_output=True, text=True).stdout
    box.start()
    assert subprocess.run(ask, env=box.env, capture_output=True, text=True).stdout == before
    assert before.endswith(" worker\n")


def test_log_ends_with_the_exit_code_and_the_fate_of_the_box(box):
    box.settings(MUSICGEN_STOP_HOOK=str(box.hook()), MUSICGEN_STOP_GRACE_S="7")
    box.start("exit", "1")
    box.ended()
    last = (box.state / "log").read_text().splitlines()[-1]
    assert last.endswith("the worker ended with exit code 1; this box switches off in 7 s")


def test_api_key_of_the_pod_reaches_the_stop_hook_and_not_the_worker(box):
    Path(box.env["MUSICGEN_PLATFORM_ENV"]).write_text("RUNPOD_POD_ID=pod1\nRUNPOD_API_KEY=planted\n")
    box.env["RUNPOD_API_KEY"] = "planted"
    hook = box.hook(body=f'echo "$RUNPOD_API_KEY" > {box.home}/key')
    box.settings(MUSICGEN_STOP_HOOK=str(hook), MUSICGEN_STOP_GRACE_S="0", MUSICGEN_PLATFORM="other")
    box.start("exit", "0")
    until((box.home / "key").exists)
    until(lambda: (box.home / "key").read_text() == "planted\n")
    assert "planted" not in (box.state / "seen.json").read_text()


def processes_of_the_run(box):
    """job.sh and the worker, by their environments."""
    pids = (box.home / "worker.run").read_text().split()[1:]
    found = [Path(f"/proc/{pid}/environ").read_bytes() for pid in pids]
    assert len(found) == 2 and all(str(box.root).encode() in each for each in found)
    return found


def test_api_key_of_who_starts_a_run_is_in_neither_its_processes_nor_tmux(box):
    box.env["RUNPOD_API_KEY"] = "planted"
    box.start()
    ask = ["tmux", "display-message", "-p", "#{pid}"]
    server = subprocess.run(ask, env=box.env, capture_output=True, text=True).stdout.strip()
    shown = subprocess.run(["tmux", "show-environment", "-g"], env=box.env, capture_output=True).stdout
    assert b"HOME=" in shown
    in_tmux = shown + Path(f"/proc/{server}/environ").read_bytes()
    assert b"planted" not in b"".join([in_tmux, *processes_of_the_run(box)])


def test_api_key_in_a_users_own_tmux_does_not_reach_the_processes_of_a_run(box):
    """RunPod's ~/.bashrc exports it, so it is in a tmux server that a person has started."""
    key = {"RUNPOD_API_KEY": "planted"}
    subprocess.run(["tmux", "new-session", "-d", "-s", "mine"], env=box.env | key, check=True)
    box.start()
    assert b"planted" not in b"".join(processes_of_the_run(box))
