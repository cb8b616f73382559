"""remote/stop_pod.py: the GPU of a pod is not paid for any more, or it is said that it still is."""

import ast
import os
import re
import signal
import subprocess
import sys
import time
from contextlib import contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.fakes import runpod as fake
from tests.remote.boxes import REPOSITORY

SCRIPT = REPOSITORY / "remote" / "stop_pod.py"
ACTION = "/v2/pods/pod0000000/action"
QUICK = ("--settle-s", "0.2", "--pause-s", "0.05")


@pytest.fixture
def runpod():
    """A RunPod with one pod that runs."""
    with fake.serving(life=["RUNNING"]) as served:
        served.respond(
            fake.Call(
                "POST",
                "/v2/pods",
                {},
                {"name": "musicgen-1", "image": "i", "gpu": {"id": "NVIDIA A40"}},
                {"content-type": "application/json"},
            ),
            f"Bearer {served.key}",
            b'{"name": "musicgen-1", "image": "i", "gpu": {"id": "NVIDIA A40"}}',
        )
        yield served


class Hook:
    """The script as a real process on the pod. `runpodctl`: what it was given, a line each."""

    def __init__(self, folder, runpod):
        self.folder, self.runpod = folder, runpod
        self.run_log = folder / "root" / "state" / "20261122T000000Z-aaaa" / "log"
        self.console = folder / "console"
        self.run_log.parent.mkdir(parents=True)
        (folder / "root" / "state" / "current").symlink_to(self.run_log.parent)
        (folder / "bin").mkdir()
        self.run_log.write_text("working\n", "utf-8")
        self.console.touch()
        self.variables = runpod.pods["pod0000000"].environ() | {"RUNPOD_API_URL": runpod.url}
        self.process = None

    def has_runpodctl(self, code):
        """A stand-in on PATH that ends so; it notes its arguments and whether it got the key."""
        program = self.folder / "bin" / "runpodctl"
        key = self.variables["RUNPOD_API_KEY"]
        program.write_text(
            f'#!/bin/sh\necho "$* key=$([ "$RUNPOD_API_KEY" = {key} ] && echo yes)" >> "$0.log"\n'
            f'echo "{key}"\n{code}\n',
            "utf-8",
        )
        program.chmod(0o755)

    @property
    def runpodctl(self):
        log = self.folder / "bin" / "runpodctl.log"
        return log.read_text("utf-8").splitlines() if log.exists() else []

    def start(self, *arguments, command=(sys.executable, str(SCRIPT), *QUICK), **more):
        environ = self.folder / "environ"
        environ.write_bytes(b"\0".join(f"{n}={v}".encode() for n, v in self.variables.items()) + b"\0")
        env = {
            "PATH": f"{self.folder / 'bin'}:/usr/bin:/bin",
            "MUSICGEN_BOX_ROOT": str(self.folder / "root"),
            "MUSICGEN_POD_ENVIRON": str(environ),
            "MUSICGEN_POD_CONSOLE": str(self.console),
        }
        self.process = subprocess.Popen(
            [*command, *arguments],
            env=env | more,
            start_new_session=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
        )
        return self.process

    def kill(self):
        """End whatever was started, as the end of a container does."""
        for stat in Path("/proc").glob("[0-9]*/stat"):
            with suppress(OSError):
                session = int(stat.read_text().rpartition(")")[2].split()[3])
                if self.process and session == self.process.pid:
                    os.kill(int(stat.parent.name), signal.SIGKILL)

    def __call__(self, *arguments, **more):
        """Run it to its end; no key may be in what it says."""
        out, err = (part.decode() for part in self.start(*arguments, **more).communicate(timeout=120))
        said = out + err + self.run_log.read_text("utf-8") + self.console.read_text("utf-8")
        assert self.variables.get("RUNPOD_API_KEY", self.runpod.key) not in said
        return subprocess.CompletedProcess(arguments, self.process.returncode, out, err)


@pytest.fixture
def hook(tmp_path, runpod):
    made = Hook(tmp_path, runpod)
    yield made
    made.kill()


@contextmanager
def dying_with(hook):
    """A container whose end is the end of the hook, as on a pod."""

    @contextmanager
    def container(pod):
        yield "127.0.0.1", 2201
        hook.kill()

    hook.runpod.containers = container
    hook.runpod.restart_container("pod0000000")
    yield


def test_pod_s_own_key_stops_it_and_the_hook_goes_with_its_container(hook, runpod):
    with dying_with(hook):
        done = hook("--settle-s", "60")
    assert done.returncode == -signal.SIGKILL and "STILL BILLING" not in done.stderr
    assert runpod.sent("POST", ACTION) == [{"action": "stop"}] and runpod.billed() == []
    assert runpod.violations == []


def test_stop_hook_of_the_box_runs_it_and_gives_it_what_it_needs(hook, runpod, tmp_path):
    own = {
        "HOME": str(tmp_path),
        "MUSICGEN_PLATFORM_ENV": str(tmp_path / "environ"),
        "MUSICGEN_STOP_HOOK": "remote/stop_pod.py",
        "MUSICGEN_WORKSPACE": str(tmp_path / "workspace"),
    }
    script = REPOSITORY / "remote" / "stop_hook.sh"
    with dying_with(hook):
        done = hook(command=("bash", str(script), "the list is done"), **own)
    assert done.returncode == -signal.SIGKILL and "(the list is done)" in done.stdout
    assert runpod.billed() == []


def test_fault_is_tried_again_within_the_limit(hook, runpod):
    runpod.fault("POST", ACTION, 503, times=2)
    runpod.fault("POST", ACTION, 502, kind="html")
    with dying_with(hook):
        done = hook("--settle-s", "60")
    assert done.returncode == -signal.SIGKILL
    assert [line.split(" ", 1)[1] for line in done.stdout.splitlines()[::2]] == [
        "RunPod's API: 503",
        "RunPod's API: 503",
        "RunPod's API: 502",
    ]


def test_runpodctl_is_asked_where_the_api_fails_with_the_key_in_its_environment(hook, runpod):
    runpod.fault("POST", ACTION, 503, times=99)
    hook.has_runpodctl("kill -9 $PPID")
    assert hook().returncode == -signal.SIGKILL
    assert hook.runpodctl == ["pod stop pod0000000 key=yes"]


def test_older_runpodctl_is_asked_in_its_own_words(hook, runpod):
    runpod.fault("POST", ACTION, 410, times=99)
    hook.has_runpodctl('[ "$1" = stop ] || exit 1\nkill -9 $PPID')
    assert hook().returncode == -signal.SIGKILL
    assert [line.split(" key")[0] for line in hook.runpodctl] == [
        "pod stop pod0000000",
        "stop pod pod0000000",
    ]


def test_accepted_is_not_stopped(hook, runpod):
    runpod.deaf = True
    hook.has_runpodctl("exit 0")
    done = hook("--limit-s", "1")
    assert done.returncode == 1 and "RunPod's API: accepted" in done.stdout
    assert len(runpod.sent("POST", ACTION)) > 1 and len(hook.runpodctl) > 1


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        *((status, "problem") for status in (302, 401, 403, 404, 409, 410, 500)),
        *((status, "html") for status in (200, 403, 502)),
        (200, "drop"),
    ],
)
def test_what_still_bills_is_said_in_the_run_s_log_and_on_the_console(hook, runpod, status, kind):
    runpod.fault("POST", ACTION, status, kind=kind, times=999, Location=f"{runpod.url}/elsewhere")
    done = hook("--limit-s", "0.3")
    assert done.returncode == 1
    for text in (done.stderr, hook.run_log.read_text("utf-8"), hook.console.read_text("utf-8")):
        last = text.splitlines()[-1]
        assert "STILL BILLING: pod pod0000000 was not stopped within 0.3 s (RunPod's API: " in last
        assert last.endswith("runpodctl: not installed); stop it in RunPod's console")
    assert {call.path for call in runpod.calls} == {ACTION}


def test_limited_call_is_asked_again_only_at_the_limit(hook, runpod):
    runpod.fault("POST", ACTION, 429, times=999, Retry_After="9")
    hook("--limit-s", "0.5")
    assert len(runpod.sent("POST", ACTION)) == 2


def test_limit_is_kept_although_nobody_answers(hook):
    started = time.monotonic()
    hook.variables["RUNPOD_API_URL"] = "http://127.0.0.1:1"
    assert hook("--limit-s", "0.5").returncode == 1
    assert time.monotonic() - started < 60


@pytest.mark.parametrize("limit_s", [30.0, 280.0])
def test_limit_is_kept_although_every_form_of_runpodctl_hangs(monkeypatch, limit_s):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import stop_pod

    passed = []
    clock = {"monotonic": lambda: sum(passed), "sleep": passed.append}
    monkeypatch.setattr(stop_pod, "time", SimpleNamespace(**vars(time) | clock))

    def hang(arguments, *, timeout, **_):
        passed.append(timeout)
        raise subprocess.TimeoutExpired(arguments, timeout)

    monkeypatch.setattr(stop_pod, "subprocess", SimpleNamespace(**vars(subprocess) | {"run": hang}))
    monkeypatch.setattr(stop_pod, "shutil", SimpleNamespace(which=str))
    unencrypted = stop_pod.Pod("pod0000000", "key", "http://api.example.com")  # refused without a request
    assert "TimeoutExpired" in stop_pod.stop(unencrypted, limit_s, 45.0, 15.0)
    assert sum(passed) <= limit_s + 3  # stop_hook.sh ends it 20 s after the default limit


def test_default_limit_is_within_that_of_the_stop_hook(monkeypatch):
    monkeypatch.syspath_prepend(str(SCRIPT.parent))
    import stop_pod

    (limit_s,) = re.findall(r"^timeout (\d+) ", (SCRIPT.parent / "stop_hook.sh").read_text("utf-8"), re.M)
    assert int(limit_s) > stop_pod.LIMIT_S + 3  # the last try has a second each for three questions


def test_key_never_leaves_unencrypted(hook, runpod):
    hook.variables["RUNPOD_API_URL"] = "http://api.example.invalid"
    done = hook("--limit-s", "0.1")
    assert done.returncode == 1 and "unencrypted" in done.stdout and runpod.calls == []


@pytest.mark.parametrize("name", ["RUNPOD_POD_ID", "RUNPOD_API_KEY"])
def test_what_is_not_a_pod_is_2_and_said(hook, name):
    del hook.variables[name]
    done = hook()
    assert done.returncode == 2 and "STILL BILLING: this is no pod" in done.stderr


def test_variables_of_its_own_do_where_there_is_no_first_process(hook, runpod):
    own = {name: value for name, value in hook.variables.items() if name.startswith("RUNPOD_")}
    runpod.deaf = True
    done = hook("--limit-s", "0.1", **own, MUSICGEN_POD_ENVIRON="/nowhere")
    assert done.returncode == 1 and len(runpod.sent("POST", ACTION)) == 1


def test_console_that_nobody_reads_holds_nothing_up(hook, tmp_path):
    os.mkfifo(tmp_path / "pipe")
    hook.variables["RUNPOD_API_URL"] = "http://127.0.0.1:1"
    assert hook("--limit-s", "0.1", MUSICGEN_POD_CONSOLE=str(tmp_path / "pipe")).returncode == 1


def test_it_needs_python_3_8_and_nothing_else():
    source = SCRIPT.read_text("utf-8")
    tree = ast.parse(source, feature_version=(3, 8))
    imported = {
        (node.module if isinstance(node, ast.ImportFrom) else alias.name).split(".")[0]
        for node in ast.walk(tree)
        if isinstance(node, ast.Import | ast.ImportFrom)
        for alias in node.names
    }
    assert imported <= sys.stdlib_module_names
    later = {"removeprefix", "removesuffix", "zip_strict", "UTC"}  # methods and names since 3.9
    assert later & {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)} == set()


def test_it_can_be_executed_as_a_stop_hook():
    assert os.access(SCRIPT, os.X_OK)
    listed = subprocess.run(
        ["git", "ls-files", "--stage", "remote/stop_pod.py"], cwd=REPOSITORY, capture_output=True, text=True
    ).stdout
    assert listed == "" or listed.startswith("100755")
