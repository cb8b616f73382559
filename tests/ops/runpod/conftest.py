"""A RunPod account over HTTP, and a user whose settings know only it."""

import os
import subprocess
from contextlib import nullcontext

import pytest

from ops.runpod import http, prepare
from ops.runpod.api import RunPod
from ops.runpod.http import Clock
from ops.settings import Settings
from tests.fakes import runpod as fake
from tests.fakes.inv import typed_in


class Told(list):
    """What was told, joined by `str`. `on_line` is called with each line."""

    on_line = staticmethod(lambda line: None)

    def __call__(self, line):
        self.append(line)
        self.on_line(line)

    def __str__(self):
        return "\n".join(self)


class StillClock(Clock):
    """Time that passes only when somebody sleeps. `slept`: each sleep in seconds."""

    def __init__(self):
        slept = []
        super().__init__(sleep=slept.append, monotonic=lambda: sum(slept))
        object.__setattr__(self, "slept", slept)


@pytest.fixture
def account(tmp_path, monkeypatch):
    """The account. What it was asked has to be what RunPod's document describes."""
    monkeypatch.chdir(tmp_path)
    for name in [n for n in os.environ if n.startswith(("MUSICGEN_", "RUNPOD_", "HOURLY_COST"))]:
        monkeypatch.delenv(name)
    with fake.serving() as served:
        monkeypatch.setenv("MUSICGEN_AUDIT_LOG", str(tmp_path / "audit.jsonl"))
        monkeypatch.setenv("RUNPOD_API_KEY", served.key)
        monkeypatch.setenv("RUNPOD_API_URL", served.url)
        yield served
        assert served.violations == []


@pytest.fixture
def told():
    return Told()


@pytest.fixture
def clock():
    return StillClock()


@pytest.fixture
def inv(account, clock, tmp_path, monkeypatch):
    """The real `inv`, in this process, of a user who has only this account; no time passes while it waits.

    It never shows the key, whatever the debug output.
    """
    monkeypatch.setattr(http, "Clock", lambda: clock)
    run = typed_in(tmp_path)

    def checked(*arguments, typed=None):
        done = run(*arguments, typed=typed)
        assert account.key not in done.out + done.err
        return done

    return checked


@pytest.fixture
def us(account, told, clock):
    """The account as this program sees it; no time passes while it waits."""
    return RunPod.of(Settings.load(), "test", told, clock)


@pytest.fixture
def request_of():
    """A request for a pod; what is given is added."""

    def body(name="musicgen-1", gpu="NVIDIA A40", **more):
        asked = {"id": gpu, "count": 1, "minCudaVersion": "12.9", "minRamPerGpu": 32}
        return {
            "name": name,
            "image": "runpod/pytorch:1.0.3-cu1290-torch291-ubuntu2204",
            "gpu": asked,
            "cloud": "SECURE",
            "disk": 100,
            "ports": ["22/tcp"],
            "env": {"PUBLIC_KEY": "ssh-ed25519 AAAA me"},
        } | more

    return body


@pytest.fixture
def running(us, request_of):
    """Create pods of these names; each runs."""

    def create(*names, **more):
        made = [us.create_pod(request_of(name, **more)) for name in names]
        for _ in range(2):
            us.pods()
        return [pod.id for pod in made]

    return create


@pytest.fixture
def ssh_key(tmp_path, monkeypatch):
    """The user's SSH key, which the settings name."""
    file = tmp_path / "id_ed25519"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "me", "-f", file], check=True)
    monkeypatch.setenv("RUNPOD_SSH_KEY", str(file))
    return file


@pytest.fixture
def listening(account):
    """Each container names its host keys in its log, and has an address. -> their fingerprints."""
    fingerprints = []

    def start(pod):
        fingerprints.append(f"SHA256:{len(fingerprints):043d}")
        listed = f"256 {fingerprints[-1]} root@pod (ED25519)"
        pod.log("container", "Pod Started", "SSH host keys:", listed, "Start script(s) finished")
        return nullcontext(("203.0.113.7", 40000 + len(fingerprints)))

    account.containers = start
    return fingerprints


@pytest.fixture
def plan(account, us, ssh_key, monkeypatch):
    """A plan with three offers below $0.90: A40, A6000 and L40S; options are added."""

    def make(**options):
        monkeypatch.setenv("MUSICGEN_MAX_PRICE", "0.90")
        settings = Settings.load()
        made, _ = prepare.prepare(us, settings, prepare.checked(settings, prepare.PodOptions(**options)))
        account.calls.clear()
        return made

    return make
