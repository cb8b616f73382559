"""ops/ssh/ready.py: a box that has just started is ready when a command runs on it, and not before."""

import getpass
import os

import pytest

from ops import boxes, host_keys
from ops.boxes import Known
from ops.settings import Settings
from ops.ssh import ready
from ops.ssh.tasks import box_of
from worker.errors import BadInput


@pytest.fixture
def known(box, tmp_path, monkeypatch):
    """The box as a pod that was just created."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.delenv("SSH_AUTH_SOCK", raising=False)
    key_file = str(box.key_file)
    return Known("pod0000000", "ssh", box.host, box.port, user=getpass.getuser(), key_file=key_file)


def why_not(known):
    return ready.why_not(box_of(known, Settings.load()))


def test_login_that_works_has_no_reason(box, known):
    host_keys.started(known, box.log)
    assert why_not(known) == ""
    assert (boxes.folder_of(known.id) / "known_hosts").exists()


def test_box_that_does_not_listen_yet_is_not_ready(box, known):
    box.stop()
    assert "nothing listens" in why_not(known)


def test_box_without_a_working_gpu_is_not_ready(box, known):
    (box.bin / "nvidia-smi").write_text("#!/bin/sh\necho 'no devices were found' >&2\nexit 6\n")
    assert "no devices were found" in why_not(known)


def test_timer_that_runs_proves_that_the_pod_ends_and_nothing_else_does(box, known):
    host_keys.started(known, box.log)

    def why_unarmed():
        return ready.why_unarmed(box_of(known, Settings.load()))

    assert "no timer runs there" in why_unarmed()
    timer = box.box_home / "boot" / "timer"
    timer.parent.mkdir(parents=True)
    timer.write_text("4194305\n")  # more than a process id can be
    assert "no timer runs there" in why_unarmed()
    timer.write_text(f"{os.getpid()}\n")
    assert why_unarmed() == ""
    box.stop()
    assert "nothing listens" in why_unarmed()


def test_foreign_key_at_the_address_is_refused(box, known):
    host_keys.started(known, box.log)
    box.rekey()
    assert "is none of those that the box's own log names" in why_not(known)


def test_refused_key_is_an_error(box, known):
    (box.folder / "authorized_keys").write_text("")
    with pytest.raises(BadInput, match="refused your SSH key"):
        why_not(known)


def test_key_that_is_not_there_is_refused_without_a_connection(known, monkeypatch):
    monkeypatch.setenv("RUNPOD_SSH_KEY", "/nowhere/key")
    nobody = Known("new", "runpod", "192.0.2.1")
    with pytest.raises(BadInput, match="there is no SSH key"):
        ready.refuse_unusable_key(box_of(nobody, Settings.load()))
