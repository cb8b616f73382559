"""Whoever creates a pod may be killed at any moment: from its start it has its end and what enforces it."""

import os
import signal
import sys
import time
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from ops.runpod import pods
from ops.runpod.pods import END
from tests.fakes.pod_start import Containers
from tests.remote.boxes import until

ROOT = Path(__file__).parents[3]
PODS = "/v2/pods"
pytestmark = pytest.mark.skipif(sys.platform == "win32", reason="sends SIGKILL, and runs sh")

# When the process is killed: at its nth request of this kind since the pod is there.
MOMENTS = {
    "before RunPod answers": ("POST", PODS, 1),
    "when it is listed": ("GET", PODS, 1),
    "when its log is read": ("GET", f"{PODS}/pod0000000/logs", 1),
    "while it waits": ("GET", PODS, 2),
}


@pytest.fixture
def killed(account, commands, ssh_key, tmp_path):
    """Run the real `inv pod.create --yes` until it is killed at this moment."""

    def run(method, path, nth):
        seen, process = [], []

        def respond(call, *rest, before=account.respond):
            answer = before(call, *rest)
            if account.pods and (call.method, call.path) == (method, path):
                seen.append(call)
                if len(seen) == nth:
                    os.kill(process[0], signal.SIGKILL)
            return answer

        account.respond = respond
        env = dict(os.environ) | {"HOME": str(tmp_path)}
        argv = ("inv", "--search-root", str(ROOT), "pod.create", "--yes", "--lifetime", "1h")
        return commands(*argv, cwd=tmp_path, env=env, started=process.append)

    return run


@pytest.mark.parametrize("moment", MOMENTS)
def test_pod_ends_itself_wherever_its_creator_was_killed(account, us, killed, tmp_path, moment):
    began = time.time()
    containers = Containers(account, tmp_path / "pods")
    account.life = ["PROVISIONING", "STARTING", "STARTING", "RUNNING"]
    account.containers = containers
    assert killed(*MOMENTS[moment]).returncode == -signal.SIGKILL
    (pod,) = account.billed()
    end_s = int(pod.request["env"][END])
    assert began + 3500 < end_s < time.time() + 3700
    seen = us.pod(pod.id)  # inv pod.reap finds it, should all else fail
    forgotten = datetime.fromtimestamp(end_s, UTC) + pods.FORGOTTEN
    assert pods.is_ours(seen)
    assert [pods.older_than(None, forgotten + timedelta(seconds=s))(seen) for s in (0, 1)] == [False, True]
    while us.pod(pod.id).status != "RUNNING":  # a look takes it one step on
        pass
    (start,) = containers.starts
    start.reach_deadline()
    assert start.read("lifetime_end") == pod.request["env"][END]
    until(lambda: account.billed() == [])
    assert account.sent("POST", f"{PODS}/{pod.id}/action") == [{"action": "stop"}]
