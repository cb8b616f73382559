"""The lease on a set: renewed it is held, and it is taken over by the observer's own clock alone."""

import os
import subprocess
import sys

import pytest

from worker.models.lease import FILE, Lease, held

TTL_S = 60.0


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def lease(tmp_path, clock):
    """A lease of another holder at each call."""
    return lambda: Lease(tmp_path, TTL_S, clock)


def test_lease_that_is_held_is_not_taken(lease):
    assert lease().take() and not lease().take()


def test_lease_that_was_given_back_is_free(lease):
    first = lease()
    first.take()
    first.give_back()
    assert lease().take()


def test_lease_that_does_not_change_is_taken_over_after_its_time(lease, clock):
    lease().take()
    other = lease()
    assert not other.take()
    clock.now += TTL_S - 1
    assert not other.take()
    clock.now += 1
    assert other.take()


def test_lease_that_is_renewed_is_not_taken_over(lease, clock):
    holder, other = lease(), lease()
    holder.take()
    for _ in range(5):
        assert not other.take()
        clock.now += TTL_S - 1
        assert holder.renew()
    assert not other.take() and other.is_alive


def test_holder_whose_lease_was_taken_over_learns_it_and_leaves_it_alone(lease, clock):
    holder, other = lease(), lease()
    holder.take()
    other.take()
    clock.now += TTL_S
    other.take()
    assert not holder.renew()
    holder.give_back()
    assert other.renew()


def test_lease_of_a_dead_process_of_this_machine_is_taken_at_once(lease, tmp_path):
    taking = (
        "import pathlib, sys; from worker.models.lease import Lease; Lease(pathlib.Path(sys.argv[1])).take()"
    )
    subprocess.run([sys.executable, "-c", taking, tmp_path], check=True)
    assert (tmp_path / FILE).exists()
    if os.name != "nt":
        assert lease().take()


def test_damaged_lease_is_taken_over_after_its_time(lease, clock, tmp_path):
    (tmp_path / FILE).write_text("{")
    other = lease()
    assert not other.take()
    clock.now += TTL_S
    assert other.take()


def test_block_that_waits_ends_when_there_is_nothing_to_wait_for(lease):
    lease().take()
    said = []
    with held(lease(), said.append, is_over=lambda: bool(said)) as is_ours:
        assert not is_ours
    assert f"process {os.getpid()} on " in said[0]
