"""Identities: a restarted worker gets the one of its dead predecessor; no two live workers share one."""

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from tests.parts import need
from worker.host.identity import take_identity

posix_only = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
OUTPUT = "s3://bucket/songs"

TAKE = """
import sys
from pathlib import Path
from worker.host.identity import take_identity
identity = take_identity(Path(sys.argv[1]), sys.argv[2])
print(identity.name, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def taking(tmp_path):
    """Start processes that take an identity in tmp_path/home and live until they are killed."""
    started = []

    def take(*before, home=tmp_path / "home"):
        process = subprocess.Popen(
            [*before, sys.executable, "-c", TAKE, str(home), OUTPUT],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process, process.stdout.readline().strip()

    yield take
    for process in started:
        process.kill()
        process.communicate()


def test_live_workers_have_different_identities(tmp_path):
    identities = [take_identity(tmp_path, OUTPUT) for _ in range(5)]
    assert len({identity.name for identity in identities}) == 5
    for identity in identities:
        identity.leave()


def test_identity_that_was_left_is_got_again(tmp_path):
    first, second = take_identity(tmp_path, OUTPUT), take_identity(tmp_path, OUTPUT)
    first.leave()
    third = take_identity(tmp_path, OUTPUT)
    assert third.name == first.name != second.name
    second.leave()
    third.leave()


@posix_only
def test_identity_of_a_killed_process_is_got_again(tmp_path, taking):
    process, name = taking()
    beside = take_identity(tmp_path / "home", OUTPUT)
    assert beside.name != name
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = take_identity(tmp_path / "home", OUTPUT)
    assert again.name == name
    again.leave()
    beside.leave()


def test_worker_for_another_output_does_not_change_the_identities(tmp_path):
    elsewhere, before = take_identity(tmp_path, OUTPUT + "/other"), take_identity(tmp_path, OUTPUT)
    before.leave()
    elsewhere.leave()
    after = take_identity(tmp_path, OUTPUT)
    assert after.name == before.name != elsewhere.name
    after.leave()


def test_number_that_was_half_written_is_drawn_again(tmp_path):
    first = take_identity(tmp_path, OUTPUT)
    first.leave()
    (number,) = tmp_path.rglob("0.id")
    number.write_bytes(b"abc")
    second = take_identity(tmp_path, OUTPUT)
    second.leave()
    assert second.name != first.name
    assert len(number.read_bytes()) == 32


def test_home_that_cannot_be_used_gives_an_identity_that_no_worker_gets_again(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    names = {take_identity(tmp_path / "file", OUTPUT).name for _ in range(3)}
    assert len(names) == 3


def test_containers_from_one_image_on_one_machine_have_different_identities(tmp_path, taking):
    own_processes = ["unshare", "--pid", "--fork", "--kill-child"]
    can = (
        sys.platform == "linux"
        and subprocess.run([*own_processes, "true"], capture_output=True).returncode == 0
    )
    need("the right to make a process namespace", can)
    take_identity(tmp_path / "home", OUTPUT).leave()
    shutil.copytree(tmp_path / "home", tmp_path / "copy")
    names = {
        taking()[1],
        taking(*own_processes)[1],
        taking(*own_processes, home=tmp_path / "copy")[1],
    }
    assert len(names) == 3


def test_retired_identity_leaves_no_files(tmp_path):
    first, second = take_identity(tmp_path, OUTPUT), take_identity(tmp_path, OUTPUT)
    first.retire()
    assert [path.name for path in sorted(tmp_path.rglob("*")) if path.is_file()] == ["1.id", "1.lock"]
    second.retire()
    assert not list((tmp_path / "seats").iterdir())


def test_identity_of_another_output_that_no_worker_took_for_a_week_is_deleted(tmp_path):
    for output, age_d in (("old", 8), ("young", 6)):
        take_identity(tmp_path, output).leave()
        for path in tmp_path.rglob("*.lock"):
            if path.stat().st_mtime > time.time() - 86400:
                os.utime(path, (time.time() - age_d * 86400,) * 2)
    live = take_identity(tmp_path, "live")
    (path,) = (path for path in tmp_path.rglob("*.lock") if path.stat().st_mtime > time.time() - 86400)
    os.utime(path, (0, 0))
    take_identity(tmp_path, OUTPUT).retire()
    assert len(list(tmp_path.rglob("*.lock"))) == 2, "the young one and the live one"
    live.retire()
