"""remote/pod_start.sh: a pod ends at its end, whatever else of it works, and a restart never moves that."""

import json
import re
import shutil
import subprocess
import time
from datetime import UTC, datetime
from pathlib import Path

import pytest

from ops.runpod import container
from ops.runpod.pods import END
from tests.fakes import runpod as fake
from tests.fakes.pod_start import Containers
from tests.parts import need
from tests.remote.boxes import until

ACTION = "/v2/pods/pod0000000/action"
# Also on a machine so slow that a lifetime of a second is over when the pod starts.
SOON = {"MUSICGEN_END_MARGIN_S": "0", "MUSICGEN_END_GRACE_S": "1"}


@pytest.fixture
def runpod():
    with fake.serving(life=["RUNNING"]) as served:
        yield served
        assert served.violations == []


@pytest.fixture
def pod(runpod, tmp_path):
    """Create a pod whose lifetime ends in so many seconds, and start its container."""
    need("flock of util-linux", shutil.which("flock") is not None)

    def create(left_s, *, form=container.exec_form, image=None, path=None, **variables):
        runpod.containers = containers = Containers(runpod, tmp_path, variables)
        containers.image = containers.image if image is None else image
        containers.path = path or containers.path
        request = {
            "name": "musicgen-1",
            "image": "i",
            "gpu": {"id": "NVIDIA A40"},
            "env": {END: str(int(time.time()) + left_s)},
            **form(container.start_script()),
        }
        call = fake.Call("POST", "/v2/pods", {}, request, {"content-type": "application/json"})
        status, answer = runpod.respond(call, f"Bearer {runpod.key}", json.dumps(request).encode())
        assert status == 201, answer
        return containers.starts

    return create


def programs_without(folder, *names):
    """A PATH on which these programs are missing."""
    folder.mkdir()
    for place in ("/usr/local/bin", "/usr/bin", "/bin"):
        for program in Path(place).iterdir():
            link = folder / program.name
            if program.name not in names and not link.is_symlink():
                link.symlink_to(program)
    return str(folder)


def test_image_s_own_start_takes_over_the_first_process(pod):
    (start,) = pod(3600)
    until(lambda: "start.sh of the image" in start.console)
    assert Path(f"/proc/{start.process.pid}/cmdline").read_bytes().split(b"\0")[:2] == [b"sleep", b"600"]


@pytest.mark.parametrize("form", [container.exec_form, container.shell_form], ids=["exec form", "args"])
def test_log_says_when_the_pod_ends_and_its_timer_runs(pod, form, runpod):
    (start,) = pod(3600, form=form)
    until(lambda: start.read("boot/timer") and container.ARMED in start.console)
    end = datetime.fromtimestamp(int(runpod.pods["pod0000000"].request["env"][END]), UTC)
    assert f"{container.ARMED}{end:%Y-%m-%dT%H:%M:%SZ}\n" in start.console
    assert Path(f"/proc/{start.read('boot/timer')}").exists()


def test_end_is_a_number_where_the_image_s_date_cannot_write_another_time(pod, runpod, tmp_path):
    path = programs_without(tmp_path / "bin", "date", "bash")
    date = tmp_path / "bin" / "date"
    date.write_text('#!/bin/sh\n[ "$1" = +%s ] || exit 1\nexec /bin/date +%s\n', "utf-8")
    date.chmod(0o755)
    (start,) = pod(3600, path=path)
    until(lambda: container.ARMED in start.console)
    assert f"{container.ARMED}{runpod.pods['pod0000000'].request['env'][END]}\n" in start.console


def test_image_that_does_its_own_thing_says_nothing_of_an_end(pod, runpod):
    runpod.obeys = set()
    (start,) = pod(3600)
    until(lambda: "start.sh of the image" in start.console)
    assert container.ARMED not in start.console and not start.home.exists()


@pytest.mark.parametrize("form", [container.exec_form, container.shell_form], ids=["exec form", "args"])
def test_watchdog_knows_the_end_before_anybody_logs_in(pod, form, runpod):
    (start,) = pod(3600, form=form)
    until(lambda: "watching; the deadline is" in start.console)
    assert start.read("lifetime_end") == runpod.pods["pod0000000"].request["env"][END]


def test_pod_stops_itself_at_its_end(pod, runpod):
    (start,) = pod(3600)
    start.reach_deadline()
    until(lambda: runpod.billed() == [])
    assert runpod.sent("POST", ACTION) == [{"action": "stop"}]
    assert "now this box switches off: its deadline is" in start.read("watchdog.log")


# RunPod's own program, which does what it is asked to.
RUNPODCTL = """#!/usr/bin/env python3
import os, sys, urllib.request
if sys.argv[1:3] != ["pod", "stop"]:
    sys.exit(1)
headers = {"Authorization": "Bearer " + os.environ["RUNPOD_API_KEY"], "User-Agent": "ctl"}
headers["Content-Type"] = "application/json"
url = os.environ["RUNPOD_API_URL"] + "/v2/pods/" + sys.argv[3] + "/action"
urllib.request.urlopen(urllib.request.Request(url, b'{"action": "stop"}', headers))
"""


@pytest.mark.parametrize("lacks", ["bash", "flock", "base64"])
def test_pod_stops_itself_where_the_watchdog_cannot_run(pod, runpod, tmp_path, lacks):
    path = programs_without(tmp_path / "bin", lacks)
    ctl = tmp_path / "bin" / "runpodctl"
    ctl.unlink(missing_ok=True)
    ctl.write_text(RUNPODCTL, "utf-8")  # without base64 there is no stop_pod.py either
    ctl.chmod(0o755)
    (start,) = pod(1, path=path, **SOON)
    until(lambda: runpod.billed() == [])
    assert "the lifetime of this pod is over; stopping it" in start.console


def test_program_that_hangs_does_not_keep_the_last_resort_from_its_other_form(pod, runpod, tmp_path):
    path = programs_without(tmp_path / "bin", "base64", "timeout")
    ctl = tmp_path / "bin" / "runpodctl"
    ctl.unlink(missing_ok=True)
    hangs = RUNPODCTL.replace("    sys.exit(1)", "    import time; time.sleep(600)")
    ctl.write_text(hangs.replace('["pod", "stop"]', '["stop", "pod"]'), "utf-8")
    ctl.chmod(0o755)
    pod(1, path=path, MUSICGEN_END_TRY_S="1", **SOON)
    until(lambda: runpod.billed() == [])


def test_five_restarts_never_move_the_end(pod, runpod):
    starts = pod(3600)
    for _ in range(5):
        until(lambda: starts[-1].read("armed"))
        runpod.restart_container("pod0000000")
    until(lambda: starts[-1].read("armed"))
    end = runpod.pods["pod0000000"].request["env"][END]
    assert len(starts) == 6 and {start.read("lifetime_end") for start in starts} == {end}


def test_pod_that_starts_after_its_end_gets_ten_minutes(pod, runpod):
    (start,) = pod(-3600)
    until(lambda: "its lifetime is over, and it switches off at" in start.console)
    assert 500 < int(start.read("deadline")) - time.time() <= 600
    assert runpod.billed()


def test_pod_that_starts_after_its_end_stops_although_its_command_fails(pod, runpod):
    (start,) = pod(-3600, image="#!/bin/sh\necho failed\nexit 1\n")
    until(lambda: "failed" in start.console)
    # RunPod would start another container, and that would have its own ten minutes.
    with pytest.raises(subprocess.TimeoutExpired):
        start.process.wait(1)
    until(lambda: start.read("deadline"))
    (start.home / "deadline").write_text(f"{int(time.time()) - 1}\n", "utf-8")
    until(lambda: runpod.billed() == [])


def test_last_resort_comes_after_the_ten_minutes_of_a_pod_that_starts_after_its_end(pod, runpod, tmp_path):
    options = {"path": programs_without(tmp_path / "bin", "bash"), "MUSICGEN_END_MARGIN_S": "0"}
    (start,) = pod(-3600, MUSICGEN_END_GRACE_S="2", **options)
    until(lambda: "start.sh of the image" in start.console)
    assert "stopping it" not in start.console.partition("start.sh of the image")[0]
    until(lambda: runpod.billed() == [])


def test_last_resort_waits_for_a_lifetime_that_was_begun_anew(pod, runpod, tmp_path):
    (start,) = pod(3600, MUSICGEN_END_MARGIN_S="0", path=programs_without(tmp_path / "bin", "bash"))
    until(lambda: start.home.is_dir())
    (start.home / "lifetime_end").write_text(f"{int(time.time()) + 7200}\n")
    time.sleep(0.5)
    assert "stopping it" not in start.console
    (start.home / "lifetime_end").write_text(f"{int(time.time()) - 1}\n")
    until(lambda: runpod.billed() == [])


def test_image_without_a_start_of_its_own_is_said_and_still_ends(pod, runpod):
    (start,) = pod(3600, image="")
    until(lambda: "error: this image has no " in start.console)
    assert start.process.poll() is None
    start.reach_deadline()
    until(lambda: runpod.billed() == [])


def test_hook_of_the_user_s_own_is_that_of_the_deployed_release(pod):
    (start,) = pod(3600, MUSICGEN_STOP_HOOK="remote/own_hook")
    hook = start.folder / "workspace" / "current" / "remote" / "own_hook"
    hook.parent.mkdir(parents=True)
    hook.write_text(f"#!/bin/sh\ntouch {start.folder}/called\n", "utf-8")
    hook.chmod(0o755)
    start.reach_deadline()
    until((start.folder / "called").exists)


def test_key_is_in_no_line_and_no_argument(pod, runpod):
    (start,) = pod(3600)
    start.reach_deadline()
    until(lambda: runpod.billed() == [])
    assert runpod.pods["pod0000000"].key not in start.console + start.read("watchdog.log")


def test_script_survives_a_shell_s_quoting_and_is_small():
    script = container.start_script()
    assert "'" not in script and len(script) < 30_000  # of the 100 kB that a request may have
    assert not re.search(r"^\s*#", script, re.M)


def test_every_script_that_the_watchdog_runs_is_sent():
    remote = Path(__file__).parents[2] / "remote"
    sent = set(container.SCRIPTS)
    named = set()
    for script in sent:
        named |= set(re.findall(r"(?<![\w-])([a-z_]+\.(?:sh|py))", (remote / script).read_text("utf-8")))
    there = {path.name for path in remote.iterdir()}
    # A run is started from a deployed release only, and what a comment or a message names is not run.
    not_run = {"job.sh", "train.py", "install.sh", "busy.sh", "image.sh", "bootstrap.sh", "check.py"}
    assert (named & there) - sent <= not_run
