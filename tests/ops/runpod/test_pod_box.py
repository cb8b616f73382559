"""tests/fakes/pod_box.py: a fake pod is a machine that one can log in to, new at each start."""

import subprocess

import pytest

from tests.fakes.pod_box import containers


@pytest.fixture
def login(tmp_path):
    """Run a command on a pod with the user's own key, which a pod is given at its creation."""
    key = tmp_path / "id_ed25519"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", key], check=True)

    def run(pod, command):
        host, port = pod.address
        told = [
            "-o",
            "StrictHostKeyChecking=no",
            "-o",
            "UserKnownHostsFile=/dev/null",
            "-o",
            "LogLevel=ERROR",
        ]
        return subprocess.run(
            ["ssh", "-F", "none", "-i", key, "-p", str(port), *told, host, command],
            capture_output=True,
            text=True,
            stdin=subprocess.DEVNULL,
        ).stdout

    run.public = (tmp_path / "id_ed25519.pub").read_text("utf-8").strip()
    return run


def test_restart_wipes_the_home_and_keeps_the_volume(account, us, login, request_of, tmp_path):
    account.containers = containers(account, tmp_path / "pods")
    account.life = ["RUNNING"]
    mounts = {"network": [{"volumeId": account.add_volume(), "path": "/workspace"}]}
    made = us.create_pod(request_of(env={"PUBLIC_KEY": login.public}, mounts=mounts))
    pod = account.pods[made.id]
    first = pod.address
    write = 'mkdir -p "$MUSICGEN_BOX_ROOT" && touch ~/on-disk "$MUSICGEN_BOX_ROOT/on-volume"'
    login(pod, write)
    show = 'ls ~ "$MUSICGEN_BOX_ROOT"; tr "\\0" "\\n" < "$MUSICGEN_POD_ENVIRON" | grep POD_ID'
    assert {"on-disk", "on-volume", f"RUNPOD_POD_ID={made.id}"} <= set(login(pod, show).split())
    account.restart_container(made.id)
    seen = login(pod, show).split()
    assert "on-volume" in seen and "on-disk" not in seen
    assert us.pod(made.id).address.port == pod.address[1] != first[1]
    named = [line.text for line in us.log(made.id, "container") if "SHA256:" in line.text]
    assert len(named) == 2 and named[0] != named[1]
