"""From an API key to songs: a pod is created, makes the list and is stopped, as a user does it."""

import getpass
import json
import os
import re
import shutil
from datetime import timedelta

import pytest

from ops import boxes
from tests.fakes import box as fake_box
from tests.fakes.pod_box import containers
from tests.parts import need

ROOT = fake_box.ROOT


@pytest.fixture
def user(account, commands, ssh_key, tmp_path, tmp_path_factory, monkeypatch):
    """Type a command in a folder of the user's that has a list and settings; it must succeed."""
    need("OpenSSH's server", fake_box.SSHD is not None)
    need("uv", shutil.which("uv") is not None)
    account.user = getpass.getuser()
    # What runs in the pod has this machine's memory, which may be less than a pod's.
    folder = tmp_path_factory.mktemp("p")  # the path of tmux's socket has at most 107 characters
    # The pod does not stop itself before it is looked at.
    more = {"MUSICGEN_FLOORS_GB": "", "MUSICGEN_STOP_GRACE_S": "600"}
    account.containers = containers(account, folder, fake_box.FakeBox.bring_torch, **more)
    here = tmp_path / "user"
    here.mkdir()
    monkeypatch.chdir(here)
    (here / "prompts.txt").write_text("rain ; 1 ; rain\nsun ; 2 ; sun\n")
    (here / ".env").write_text(
        f"RUNPOD_API_KEY={account.key}\nRUNPOD_SSH_KEY={ssh_key}\nMUSICGEN_MODEL=rehearsal\n"
    )
    ours = re.compile("AWS_|MUSICGEN_|RUNPOD_(?!API_URL)|HF_|HOURLY_COST_USD|SSH_AUTH_SOCK|UV_|PIP_")
    env = {name: value for name, value in os.environ.items() if not ours.match(name)}
    env |= {"HOME": str(here), "MUSICGEN_AUDIT_LOG": str(here / "audit"), "AWS_EC2_METADATA_DISABLED": "true"}

    def run(program, *arguments):
        done = commands(program, "--search-root", str(ROOT), *arguments, cwd=here, env=env)
        out, err = done.stdout.decode(), done.stderr.decode()
        assert done.returncode == 0, out + err
        assert account.key not in out + err
        return out + err

    return run


def test_songs_are_made_on_a_pod_that_is_created_and_stopped(user, account):
    # Beside others, as it would wait a minute for an older one to be listed.
    said = user("inv", "pod.create", "--another", "--yes")
    box = boxes.current()
    assert f"{box.id}  {box.user}@127.0.0.1:{box.port}" in said
    assert "1 pod, $0.40 per hour" in user("inv", "status")
    assert f"pinned the host key of [127.0.0.1]:{box.port}, which its own log names" in said
    assert "host key" not in user("fab", "up")
    said = user("fab", "logs")
    assert "rain" in said and "sun" in said
    pod = account.pods[box.id]
    pod.created_at, pod.started_at = (at - timedelta(hours=5) for at in (pod.created_at, pod.started_at))
    said = user("inv", "status")
    assert "1 pod, $0.40 per hour" in said
    assert 2.0 <= float(re.search(r"per hour, \$([0-9.]+) so far", said)[1]) < 2.2
    assert f"{box.id} is stopped" in user("inv", "pod.stop", "--yes")
    assert account.billed() == []
    account.add_bill(box.id, pod.created_at, 0.40)
    assert "none of which runs, at least $0.40 so far" in user("inv", "status")
    assert len(account.sent("POST", "/v2/pods")) == 1


def test_json_of_a_new_pod_is_all_of_stdout(inv, account, ssh_key, tmp_path, monkeypatch):
    need("OpenSSH's server", fake_box.SSHD is not None)
    monkeypatch.setenv("HOME", str(tmp_path))
    account.user = getpass.getuser()
    account.containers = containers(account, tmp_path / "pods")
    (made,) = json.loads(inv("pod.create", "--yes", "--json").out)
    box = boxes.current()
    assert (made["id"], made["gpu"], made["per_hour_usd"]) == (box.id, "NVIDIA A40", 0.40)
    assert (made["box"]["host"], made["box"]["port"]) == (box.host, box.port)
