"""Seats: got again by the next when the one before is dead, shared by no two live workers."""

import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tests.parts import need
from worker.host.identity import take_seat

posix_only = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
PLACE = "s3://bucket/songs"

SIT = """
import sys
from pathlib import Path
from worker.host.identity import take_seat
seat = take_seat(Path(sys.argv[1]), sys.argv[2])
print(seat.name, flush=True)
sys.stdin.read()
"""


@pytest.fixture
def sitting(tmp_path):
    """Start processes that take a seat in tmp_path/home and stay until they are killed."""
    started = []

    def sit(*before, home=tmp_path / "home"):
        process = subprocess.Popen(
            [*before, sys.executable, "-c", SIT, str(home), PLACE],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process, process.stdout.readline().strip()

    yield sit
    for process in started:
        process.kill()
        process.communicate()


def test_live_workers_have_different_seats(tmp_path):
    seats = [take_seat(tmp_path, PLACE) for _ in range(5)]
    assert len({seat.name for seat in seats}) == 5
    for seat in seats:
        seat.leave()


def test_seat_that_was_left_is_got_again(tmp_path):
    first, second = take_seat(tmp_path, PLACE), take_seat(tmp_path, PLACE)
    first.leave()
    third = take_seat(tmp_path, PLACE)
    assert third.name == first.name != second.name
    second.leave()
    third.leave()


@posix_only
def test_seat_of_a_killed_process_is_got_again(tmp_path, sitting):
    process, name = sitting()
    beside = take_seat(tmp_path / "home", PLACE)
    assert beside.name != name
    process.send_signal(signal.SIGKILL)
    process.wait()
    again = take_seat(tmp_path / "home", PLACE)
    assert again.name == name
    again.leave()
    beside.leave()


def test_worker_for_another_place_does_not_shift_the_seats(tmp_path):
    elsewhere, before = take_seat(tmp_path, PLACE + "/other"), take_seat(tmp_path, PLACE)
    before.leave()
    elsewhere.leave()
    after = take_seat(tmp_path, PLACE)
    assert after.name == before.name != elsewhere.name
    after.leave()


def test_number_that_was_half_written_is_made_anew(tmp_path):
    first = take_seat(tmp_path, PLACE)
    first.leave()
    (number,) = tmp_path.rglob("0.id")
    number.write_bytes(b"abc")
    second = take_seat(tmp_path, PLACE)
    second.leave()
    assert second.name != first.name
    assert len(number.read_bytes()) == 32


def test_home_that_cannot_be_used_gives_a_seat_that_nobody_gets_again(tmp_path):
    (tmp_path / "file").write_bytes(b"")
    names = {take_seat(tmp_path / "file", PLACE).name for _ in range(3)}
    assert len(names) == 3


def test_containers_from_one_image_on_one_machine_have_different_seats(tmp_path, sitting):
    own_processes = ["unshare", "--pid", "--fork", "--kill-child"]
    can = (
        sys.platform == "linux"
        and subprocess.run([*own_processes, "true"], capture_output=True).returncode == 0
    )
    need("the right to make a process namespace", can)
    take_seat(tmp_path / "home", PLACE).leave()
    shutil.copytree(tmp_path / "home", tmp_path / "copy")
    names = {
        sitting()[1],
        sitting(*own_processes)[1],
        sitting(*own_processes, home=tmp_path / "copy")[1],
    }
    assert len(names) == 3
