"""remote/watchdog.sh and deadline.sh: a box ends by itself, says why, and not early."""

import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.remote.boxes import until

QUICK = {
    "MUSICGEN_WATCHDOG_POLL_S": "0.1",
    "MUSICGEN_WATCHDOG_GRACE_S": "0",
    "MUSICGEN_WATCHDOG_RETRY_S": "0.1",
}
NEVER = {"MUSICGEN_IDLE_LIMIT_S": "0", "MUSICGEN_NO_PROGRESS_LIMIT_S": "0"}


@pytest.fixture
def guarded(box):
    """A box with a watchdog under these settings, and a stop hook called `off`."""

    def start(**settings):
        deployed = {"MUSICGEN_STOP_HOOK": str(box.hook("off")), "MUSICGEN_STOP_GRACE_S": "0"} | settings
        box.settings(**deployed)
        box.json(
            "watchdog.sh", "start", **QUICK, **{name: value for name, value in settings.items() if not value}
        )
        return box

    return start


def watching(box):
    """Wait until the watchdog has read the deadline."""
    log = box.home / "watchdog.log"
    until(lambda: log.exists() and "watching; the deadline is" in log.read_text())


def arm(box, lifetime_s, **more):
    return box.json("deadline.sh", "arm", MUSICGEN_LIFETIME_S=str(lifetime_s), **more)


def acted(box):
    return json.loads((box.root / "state" / "watchdog.json").read_text())


def test_box_without_worker_goes_off_after_the_idle_limit(guarded):
    began = time.monotonic()
    box = guarded(MUSICGEN_IDLE_LIMIT_S="1")
    until(lambda: box.calls("off"))
    assert time.monotonic() - began > 0.9
    assert set(box.calls("off")) == {"idle"}
    until(lambda: acted(box)["action_exit_code"] == 0)
    assert acted(box)["reason"] == "idle" and acted(box)["run_id"] is None


def test_working_box_is_not_idle(guarded, box):
    box.start()
    guarded(**NEVER | {"MUSICGEN_IDLE_LIMIT_S": "1"})
    time.sleep(1.2)
    assert box.status()["running"] and box.calls("off") == []


def later(box, *arguments):
    """Begin a job of busy.sh, and wait until it has begun."""
    job = subprocess.Popen(
        [*box.command("busy.sh"), *arguments, "--", "sh", "-c", f"touch {box.home}/begun; exec sleep 60"],
        env=box.env,
        start_new_session=True,
    )
    until((box.home / "begun").exists)
    return job


@pytest.fixture
def jobs():
    running = []
    yield running
    for job in running:
        os.killpg(job.pid, signal.SIGKILL)
        job.wait()


def test_box_does_not_go_off_in_the_middle_of_a_job(guarded, box, jobs):
    jobs.append(later(box, "job", "600"))
    guarded(MUSICGEN_IDLE_LIMIT_S="1")
    time.sleep(2)
    assert box.calls("off") == []
    os.killpg(jobs[0].pid, signal.SIGKILL)
    jobs.pop().wait()
    until(lambda: box.calls("off"))
    assert set(box.calls("off")) == {"idle"}


def test_job_that_hangs_keeps_no_box_on(guarded, box, jobs):
    jobs.append(later(box, "job", "1"))
    guarded(MUSICGEN_IDLE_LIMIT_S="1")
    until(lambda: box.calls("off"))
    assert jobs[0].poll() is None


def test_deadline_wins_over_a_job(guarded, box, jobs):
    jobs.append(later(box, "job", "600"))
    arm(box, 1)
    guarded(**NEVER)
    until(lambda: box.calls("off"))
    assert set(box.calls("off")) == {"lifetime"}


def test_job_gives_back_its_own_exit_code_and_runs_once_at_a_time(box, jobs):
    assert box.sh("busy.sh", "job", "60", "--", "sh", "-c", "exit 7").returncode == 7
    assert box.sh("busy.sh", "job", "--", "true").returncode == 2
    jobs.append(later(box, "job", "60"))
    again = box.sh("busy.sh", "job", "60", "--", "true")
    assert again.returncode == 4 and "job is on already" in again.stderr


def test_idle_time_counts_from_the_end_of_the_run(guarded, box):
    box.start()
    guarded(MUSICGEN_IDLE_LIMIT_S="2")
    time.sleep(1.2)
    box.json("session.sh", "stop", "--keep", "60")
    until(lambda: box.calls("off"))
    ended, off = (path.stat().st_mtime for path in (box.state / "exit_code", box.home / "off.calls"))
    assert off - ended > 1  # from its own start it would be 0.8 s


@pytest.mark.parametrize("kept", ["setting", "option"])
def test_kept_alive_box_is_never_idle(guarded, box, kept):
    box.start("exit", "0", options=("--keep-alive",) if kept == "option" else ())
    guarded(MUSICGEN_IDLE_LIMIT_S="1", **({"MUSICGEN_KEEP_ALIVE": "1"} if kept == "setting" else {}))
    time.sleep(1.2)
    assert box.calls("off") == []


def test_worker_without_progress_is_stopped_and_the_box_goes_off(guarded, box):
    run_id = box.start('status={"progress":7}')["run_id"]
    guarded(MUSICGEN_NO_PROGRESS_LIMIT_S="1", MUSICGEN_WATCHDOG_GRACE_S="10")
    until(lambda: box.calls("off"))
    assert box.ended() == "75\n"
    until(lambda: acted(box)["action_exit_code"] == 0)
    result = acted(box)
    assert (result["reason"], result["run_id"], result["stopped_with"]) == ("no_progress", run_id, "SIGINT")
    assert box.calls("off")[0] == "no_progress"


def test_worker_that_never_says_anything_makes_no_progress(guarded):
    box = guarded(MUSICGEN_NO_PROGRESS_LIMIT_S="1")
    box.start("deaf")
    until(lambda: box.calls("off"))


def test_worker_with_progress_goes_on(guarded, box):
    box.start("progress")
    guarded(MUSICGEN_NO_PROGRESS_LIMIT_S="1")
    time.sleep(1.2)
    assert box.status()["running"] and box.calls("off") == []


@pytest.mark.parametrize("place", ["models/demo--tiny", "cache/huggingface"])
def test_model_that_is_still_coming_is_progress(guarded, box, place):
    box.start()
    weights = box.root / place / "weights"
    weights.parent.mkdir(parents=True, exist_ok=True)
    guarded(MUSICGEN_NO_PROGRESS_LIMIT_S="1")
    with weights.open("ab", buffering=0) as file:
        for _ in range(8):
            file.write(bytes(2 << 20))
            time.sleep(0.2)
    assert box.status()["running"] and box.calls("off") == []
    until(lambda: box.calls("off"))


def test_stuck_worker_of_a_kept_alive_box_is_stopped_and_the_box_stays(guarded, box):
    box.start()
    guarded(MUSICGEN_NO_PROGRESS_LIMIT_S="1", MUSICGEN_WATCHDOG_GRACE_S="10", MUSICGEN_KEEP_ALIVE="1")
    assert box.ended() == "75\n"
    until(lambda: acted(box)["stopped_with"])
    assert acted(box)["action"] is None and box.calls("off") == []


def test_keep_alive_of_another_box_on_the_volume_does_not_keep_this_one_on(guarded, box):
    box.start("exit", "0", options=("--keep-alive",))
    until(lambda: box.status()["exit_code"] == 0)
    (box.root / "state" / box.status()["run_id"] / "box").write_text("another\n", "utf-8")
    assert box.status()["keep_alive"] is False
    guarded(MUSICGEN_IDLE_LIMIT_S="1")
    until(lambda: "idle" in box.calls("off"))


def test_keep_alive_ends_with_the_lifetime(guarded, box):
    arm(box, 1)
    guarded(MUSICGEN_KEEP_ALIVE="1")
    until(lambda: box.calls("off"))
    assert set(box.calls("off")) == {"lifetime"}


def test_worker_is_stopped_in_time_for_the_deadline(guarded, box):
    box.start("progress")
    end = arm(box, 61)["deadline"]
    guarded(MUSICGEN_WATCHDOG_GRACE_S="60")
    assert box.ended() == "75\n"
    assert time.time() < end - 30
    assert acted(box)["reason"] == "lifetime"


def test_action_wins_over_the_stop_hook(guarded, box):
    guarded(MUSICGEN_IDLE_LIMIT_S="1", MUSICGEN_WATCHDOG_ACTION=str(box.hook("action")))
    until(lambda: box.calls("action"))
    assert box.calls("off") == []


def test_box_that_did_not_go_off_is_ended_again(guarded):
    box = guarded(MUSICGEN_IDLE_LIMIT_S="1")
    until(lambda: len(box.calls("off")) >= 2)


def test_run_is_warned_before_it_is_stopped(guarded, box):
    box.start()
    guarded(MUSICGEN_NO_PROGRESS_LIMIT_S="4", MUSICGEN_WATCHDOG_WARN_S="600 3")
    box.ended()
    log = (box.state / "log").read_text()
    warnings = [line for line in log.splitlines() if "watchdog: in " in line]
    assert len(warnings) == 1 and "made no progress for" in warnings[0]
    assert log.index("watchdog: in ") < log.index("watchdog: now")
    assert all(line in (box.home / "watchdog.log").read_text() for line in warnings)


def test_settings_that_come_or_go_later_hold(guarded):
    box = guarded(MUSICGEN_IDLE_LIMIT_S="1", MUSICGEN_KEEP_ALIVE="1")
    time.sleep(1.2)
    assert box.calls("off") == []
    box.settings(MUSICGEN_STOP_HOOK=str(box.home / "off"), MUSICGEN_IDLE_LIMIT_S="1")
    until(lambda: box.calls("off"))


def test_box_that_nothing_can_turn_off_is_left_alone(guarded):
    box = guarded(MUSICGEN_STOP_HOOK="", MUSICGEN_IDLE_LIMIT_S="1")
    time.sleep(1.2)
    assert not (box.root / "state" / "watchdog.json").exists()


def test_deleted_release_does_not_keep_the_box_on(guarded, box):
    guarded(MUSICGEN_IDLE_LIMIT_S="1")
    newer = box.release.with_name("bbbb")
    box.make_release(newer)
    (box.root / "current").unlink()
    (box.root / "current").symlink_to(newer)
    shutil.rmtree(box.release)
    until(lambda: box.calls("off"))


def test_second_watchdog_is_refused(guarded):
    box = guarded(**NEVER)
    for command in ("start", "run"):
        again = box.sh("watchdog.sh", command)
        assert again.returncode == 4 and "already running" in again.stderr


def test_status_tells_limits_and_time_left(guarded, box):
    arm(box, 5000)
    guarded(MUSICGEN_IDLE_LIMIT_S="70", MUSICGEN_NO_PROGRESS_LIMIT_S="80")
    status = box.json("watchdog.sh", "status")
    assert status["running"] and status["idle_limit_s"] == 70 and status["no_progress_limit_s"] == 80
    assert 4900 <= status["left_s"] <= 5000 and status["acted"] is None
    assert str(status["pid"]) == (box.home / "watchdog.pid").read_text().strip()


def test_status_after_the_watchdog_died_says_so(guarded):
    box = guarded(**NEVER)
    os.kill(box.json("watchdog.sh", "status")["pid"], signal.SIGKILL)
    until(lambda: not box.json("watchdog.sh", "status")["running"])


def test_watchdog_arms_the_lifetime_of_its_settings(box):
    box.settings(MUSICGEN_STOP_HOOK=str(box.hook("off")))
    status = box.json("watchdog.sh", "start", MUSICGEN_LIFETIME_S="500", **QUICK)
    until(lambda: box.json("watchdog.sh", "status")["left_s"] is not None)
    assert status["running"] and box.json("watchdog.sh", "status")["left_s"] <= 500


def test_wrong_clock_does_not_end_a_box_that_has_time_left(guarded, box, tmp_path):
    """The clock is set while the watchdog runs: it reads `date` only when the deadline's file changes."""
    fake = tmp_path / "bin"
    fake.mkdir()
    (fake / "date").write_text(
        '#!/bin/sh\n[ "$1" = +%s ] && [ -e FAST ] && echo 9999999999 && exit\nexec /bin/date "$@"\n'.replace(
            "FAST", str(tmp_path / "fast")
        )
    )
    (fake / "date").chmod(0o755)
    box.env["PATH"] = f"{fake}:{box.env['PATH']}"
    arm(box, 600)
    guarded(**NEVER)
    watching(box)
    (tmp_path / "fast").touch()
    time.sleep(1)
    assert box.calls("off") == []


def test_broken_deadline_file_changes_nothing(guarded, box):
    armed = arm(box, 3)
    guarded(**NEVER)
    watching(box)
    (box.home / "deadline").write_text("soon\n")
    (box.home / "lifetime_end").unlink()
    until(lambda: box.calls("off"))
    assert (box.home / "off.calls").stat().st_mtime > armed["deadline"] - 0.5


def test_extended_deadline_holds(guarded, box):
    arm(box, 3600, MUSICGEN_DEADLINE_S="1800")
    guarded(**NEVER)
    near = int(time.time()) + 5
    (box.home / "deadline").write_text(f"{near}\n")
    time.sleep(0.3)  # the watchdog reads it
    box.json("deadline.sh", "extend", "600")
    time.sleep(max(0, near - time.time()) + 0.5)
    assert box.calls("off") == []


def test_deadline_is_never_past_the_lifetime(box):
    armed = arm(box, 1000, MUSICGEN_DEADLINE_S="400")
    assert armed["lifetime_end"] - armed["deadline"] == 600
    first = box.json("deadline.sh", "extend", "100")
    second = box.json("deadline.sh", "extend", "7200")
    assert first["deadline"] == armed["deadline"] + 100 and first["clipped"] is False
    assert second["deadline"] == armed["lifetime_end"] and second["clipped"] is True


@pytest.mark.parametrize(("platform", "remedy"), [("ec2", "rent a new machine"), ("runpod", "fab run")])
def test_deadline_at_the_end_of_the_lifetime_cannot_be_extended(box, platform, remedy):
    before = arm(box, 1000)
    done = box.sh("deadline.sh", "extend", "60", MUSICGEN_PLATFORM=platform)
    assert done.returncode == 1 and "end of the lifetime" in done.stderr and remedy in done.stderr
    assert box.json("deadline.sh", "show")["deadline"] == before["deadline"]


def test_hand_written_deadline_past_the_lifetime_does_not_hold(guarded, box):
    arm(box, 1)
    (box.home / "deadline").write_text("9999999999\n")
    guarded(**NEVER)
    until(lambda: box.calls("off"))


def test_arming_again_buys_no_second_lifetime(box):
    first = arm(box, 1000)
    assert arm(box, 9000)["deadline"] == first["deadline"]
    (box.home / "deadline").unlink()
    assert arm(box, 9000)["lifetime_end"] == first["lifetime_end"]


def test_renewing_arms_once_and_a_lifetime_that_is_over_begins_anew(box):
    first = box.json("deadline.sh", "renew", "1000")
    assert 990 <= first["left_s"] <= 1000
    assert box.json("deadline.sh", "renew", "9000")["deadline"] == first["deadline"]
    for name in ("deadline", "lifetime_end"):
        (box.home / name).write_text("1000000000\n")
    assert box.json("deadline.sh", "renew", "500")["left_s"] > 400


def test_renewing_keeps_the_lifetime_that_the_platform_gives(box):
    assert box.json("deadline.sh", "renew", "9000", MUSICGEN_LIFETIME_S="60")["left_s"] <= 60


def after_a_restart(box):
    """The files of a box that was armed in an earlier boot; nothing else here knows of it."""
    (box.home / "armed").write_text(f"earlier {(box.home / 'armed').read_text().partition(' ')[2]}")


def test_restarts_of_a_container_that_lose_the_disk_never_move_its_end(box):
    end = int(time.time()) + 1000
    for _ in range(5):
        assert box.json("deadline.sh", "arm", MUSICGEN_LIFETIME_END=str(end))["lifetime_end"] == end
        for name in ("deadline", "lifetime_end", "armed"):
            (box.home / name).unlink()


def test_end_of_a_slow_clock_is_no_longer_lifetime(box):
    far = str(int(time.time()) + 90000)
    assert 990 <= arm(box, 1000, MUSICGEN_LIFETIME_END=far)["left_s"] <= 1000


def test_new_end_of_the_platform_holds_where_the_old_one_lies_on_a_volume(box):
    now = int(time.time())
    box.json("deadline.sh", "arm", MUSICGEN_LIFETIME_END=str(now + 500))
    assert box.json("deadline.sh", "arm", MUSICGEN_LIFETIME_END=str(now + 900))["deadline"] == now + 900


@pytest.mark.parametrize("kept", ["on a volume", "on the disk that is lost"])
def test_box_that_starts_after_its_end_has_ten_minutes_and_no_more(box, kept):
    past = {"MUSICGEN_LIFETIME_END": str(int(time.time()) - 5000)}
    if kept == "on a volume":
        for name in ("deadline", "lifetime_end"):
            (box.home / name).write_text("1000000000\n")
        past = {"MUSICGEN_LIFETIME_S": "7200"}
    first = box.json("deadline.sh", "arm", **past)
    assert 590 <= first["left_s"] <= 600 and first["lifetime_over"]
    (box.home / "lifetime_end").write_text("1000000000\n")  # they have passed, and it is still on
    (box.home / "deadline").write_text("1000000000\n")
    assert box.json("deadline.sh", "arm", **past)["left_s"] < 0
    after_a_restart(box)
    assert 590 <= box.json("deadline.sh", "arm", **past)["left_s"] <= 600


@pytest.mark.parametrize("command", ["extend", "renew"])
def test_in_the_ten_minutes_a_new_lifetime_can_begin(box, command):
    past = {"MUSICGEN_LIFETIME_END": str(int(time.time()) - 5000)}
    box.json("deadline.sh", "arm", **past)
    answer = box.json("deadline.sh", command, "7200", **past)
    assert answer["left_s"] > 7100 and not answer["lifetime_over"]
    assert box.json("deadline.sh", "arm", **past)["lifetime_end"] == answer["lifetime_end"]


def test_box_that_starts_after_its_deadline_has_ten_minutes_of_its_lifetime(box):
    end = arm(box, 5000)["lifetime_end"]
    (box.home / "deadline").write_text("1000000000\n")
    after_a_restart(box)
    again = arm(box, 5000)
    assert 590 <= again["left_s"] <= 600 and again["lifetime_end"] == end


def test_watchdog_of_a_box_after_its_end_says_so_and_does_not_end_it_at_once(box):
    box.settings(MUSICGEN_STOP_HOOK=str(box.hook("off")))
    box.json("watchdog.sh", "start", MUSICGEN_LIFETIME_END="1000000000", **QUICK)
    log = box.home / "watchdog.log"
    until(lambda: log.exists() and "its lifetime is over, and it switches off at" in log.read_text())
    time.sleep(0.5)
    assert box.calls("off") == []


def test_watchdog_arms_the_end_that_the_platform_gives(box):
    end = int(time.time()) + 5000
    Path(box.env["MUSICGEN_PLATFORM_ENV"]).write_text(f"MUSICGEN_LIFETIME_END={end}\0")
    box.json("watchdog.sh", "start", **QUICK)
    watching(box)
    assert box.json("watchdog.sh", "status")["lifetime_end"] == end


def test_end_that_is_no_time_is_in_the_watchdogs_log(box):
    box.json("watchdog.sh", "start", MUSICGEN_LIFETIME_END="tomorrow", **QUICK)
    until(lambda: "MUSICGEN_LIFETIME_END=tomorrow is not" in (box.home / "watchdog.log").read_text())


def test_renewing_keeps_the_end_that_the_platform_gives(box):
    end = int(time.time()) + 9000
    assert box.json("deadline.sh", "renew", "60", MUSICGEN_LIFETIME_END=str(end))["deadline"] == end


@pytest.mark.parametrize(("hook", "off"), [("", False), ("/no/such/hook", False), ("here", True)])
def test_status_tells_whether_anything_turns_the_box_off(box, hook, off):
    box.settings(MUSICGEN_STOP_HOOK=str(box.hook()) if hook == "here" else hook)
    assert box.json("watchdog.sh", "status")["turns_off"] is off


def test_nothing_armed_is_nothing_to_extend(box):
    assert box.json("deadline.sh", "show")["deadline"] is None
    assert box.sh("deadline.sh", "extend", "60").returncode == 1


def test_killed_watchdog_leaves_nothing_that_holds_its_place(guarded):
    box = guarded(**NEVER)
    pid = box.json("watchdog.sh", "status")["pid"]
    os.kill(pid, signal.SIGTERM)
    until(lambda: not Path(f"/proc/{pid}").exists())
    assert box.json("watchdog.sh", "start", **QUICK)["running"]


def test_end_that_is_past_at_boot_is_never_written_as_the_end(box, tmp_path):
    """The watchdog and the last resort of a pod read it at any moment, and would switch the box off."""
    mv = tmp_path / "bin" / "mv"
    mv.parent.mkdir()
    mv.write_text(f'#!/bin/sh\ncat "$2" >> {tmp_path}/written\nexec /bin/mv "$@"\n')
    mv.chmod(0o755)
    began = int(time.time())
    path = f"{mv.parent}:{box.env['PATH']}"
    box.json("deadline.sh", "arm", MUSICGEN_LIFETIME_END=str(began - 3600), PATH=path)
    written = [int(line) for line in (tmp_path / "written").read_text().splitlines() if line.isdigit()]
    assert written and min(written) > began
