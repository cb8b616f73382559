"""A pod's starts, with real SSH servers: new ports and host keys are followed, foreign keys refused."""

import getpass
import subprocess
from contextlib import contextmanager

import pytest

from ops import boxes
from tests.fakes import box
from tests.fakes.pod_box import containers


@pytest.fixture
def public(tmp_path, monkeypatch):
    """The user's public key, whose private one is set."""
    key = tmp_path / "user_key"
    subprocess.run(["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(key)], check=True)
    monkeypatch.setenv("RUNPOD_SSH_KEY", str(key))
    monkeypatch.setenv("HOME", str(tmp_path))  # no ~/.ssh of the developer's
    return (tmp_path / "user_key.pub").read_text("utf-8").strip()


@pytest.fixture
def pod(account, us, inv, public, request_of, tmp_path):
    """A pod that runs, with an SSH server, and that the user has logged in to once."""
    account.containers, account.user = containers(account, tmp_path / "pods"), getpass.getuser()
    env = {"PUBLIC_KEY": public, "HOURLY_COST_USD": "0.4"}
    made = us.create_pod(request_of(env=env))
    for _ in range(2):
        us.pods()
    assert inv("pod.ssh", "--show").code == 0
    return account.pods[made.id]


def port(done):
    words = done.out.split()
    return int(words[words.index("-p") + 1])


def test_first_contact_is_pinned_for_the_pod_and_again_is_silent(inv, pod):
    done = inv("pod.ssh", "--show")
    assert (done.code, done.err, port(done)) == (0, "", pod.address[1])
    assert f"{pod.id}/known_hosts" in done.out and "StrictHostKeyChecking=yes" in done.out


def test_resume_on_another_port_with_a_new_host_key_works_without_a_question(inv, pod):
    before = pod.address
    pins = (boxes.folder_of(pod.id) / "known_hosts").read_text()
    assert inv("pod.stop", "--yes").code == 0
    done = inv("pod.resume", "--yes")
    assert done.code == 0, done.err
    assert f"{pod.id} has new host keys since this start; its own log names them" in done.err
    assert "which its own log names: SHA256:" in done.err
    assert pod.address != before and boxes.current().port == pod.address[1]
    assert (boxes.folder_of(pod.id) / "known_hosts").read_text() != pins
    again = inv("pod.ssh", "--show")
    assert (again.code, again.err, port(again)) == (0, "", pod.address[1])


def test_foreign_key_at_the_same_address_is_refused(inv, pod, public, tmp_path):
    there = pod.address
    pod.container.close()
    with box.serving(tmp_path / "foreign") as foreign:
        foreign.stop()
        foreign.port = there[1]
        with (foreign.folder / "authorized_keys").open("a") as keys:
            keys.write(f"{public}\n")
        foreign.start()
        pod.address = there
        done = inv("pod.ssh", "--show")
        seen = foreign.folder / "commands.log"
        assert done.code == 1 and "has CHANGED" in done.err and done.out == ""
        assert not seen.exists()


def test_key_that_is_not_in_the_log_of_the_new_start_is_refused_and_the_pod_is_stopped(
    inv, account, pod, tmp_path
):
    inv("pod.stop", "--yes")
    real = containers(account, tmp_path / "pods")

    @contextmanager
    def with_another_key_in_its_log(started):
        with real(started) as address:
            started.logs["container"] = [
                (at, line.replace("SHA256:", "SHA256:x")[:60] if "SHA256:" in line else line)
                for at, line in started.logs["container"]
            ]
            named = f"256 SHA256:{'A' * 43} root@pod (ED25519)"
            started.log("container", "SSH host keys:", named)
            yield address

    account.containers = with_another_key_in_its_log
    done = inv("pod.resume", "--yes")
    assert done.code == 1
    assert f"is none of those that the box's own log names (SHA256:{'A' * 43})" in done.err
    assert account.billed() == []


def test_pod_that_restarted_by_itself_is_not_trusted_until_it_is_started_again(inv, account, pod):
    account.restart_container(pod.id)
    done = inv("pod.ssh", "--show")
    assert done.code == 1 and "has CHANGED" in done.err
    assert inv("pod.stop", "--yes").code == 0
    assert inv("pod.resume", "--yes").code == 0
    assert inv("pod.ssh", "--show").code == 0


def test_pod_without_a_login_is_stopped_again(inv, account, pod, monkeypatch):
    inv("pod.stop", "--yes")
    account.pods[pod.id].request["env"]["PUBLIC_KEY"] = ""
    done = inv("pod.resume", "--yes")
    assert done.code == 2 and "refused your SSH key" in done.err
    assert account.billed() == []


def test_full_machine_is_replaced_by_a_new_pod_on_the_same_volume(
    inv, account, us, public, request_of, tmp_path
):
    account.containers, account.user = containers(account, tmp_path / "pods"), getpass.getuser()
    mounts = {"network": [{"volumeId": account.add_volume("songs", 100), "path": "/workspace"}]}
    old = us.create_pod(request_of(env={"PUBLIC_KEY": public, "HOURLY_COST_USD": "0.4"}, mounts=mounts))
    us.stop(old.id)
    account.host_is_full = True
    done = inv("pod.resume", "--lifetime", "3h", "--yes")
    assert done.code == 0, done.err
    (new,) = us.pods()
    assert new.id != old.id and new.volume_id == "vol0000001" and boxes.current().id == new.id
    assert f"{new.id} has taken the place of {old.id}, which is gone" in done.err
    assert inv("pod.ssh", "--show").code == 0
