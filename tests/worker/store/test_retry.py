"""Waiting for a store that does not answer."""

import threading
import time

import pytest

from worker.errors import Unreachable, UserError
from worker.store import retry
from worker.store.retry import Retry


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(retry, "_PAUSES_S", (0.01,))


@pytest.fixture
def notes():
    return []


@pytest.fixture
def retrying(notes):
    return Retry(lambda event, text: notes.append(event), limit_s=0.2)


def failing(n_times, error=Unreachable):
    left = iter(range(n_times))

    def act():
        for _ in left:
            raise error("no answer; check the network")
        return "result"

    return act


def test_what_works_is_done_once_and_nothing_is_said(retrying, notes):
    assert retrying(failing(0)) == "result"
    assert notes == []


def test_it_is_tried_until_it_works_and_said_once(retrying, notes):
    assert retrying(failing(5)) == "result"
    assert notes == ["unreachable", "reachable"]


def test_other_errors_are_not_waited_for(retrying, notes):
    with pytest.raises(UserError):
        retrying(failing(1, UserError))
    assert notes == []


def test_trying_again_ends(retrying):
    began = time.monotonic()
    with pytest.raises(Unreachable):
        retrying(failing(10**9))
    assert time.monotonic() - began >= 0.2


def test_giving_up_ends_a_wait_at_once(notes):
    retrying = Retry(lambda event, text: notes.append(event), limit_s=60)
    threading.Timer(0.05, retrying.give_up).start()
    with pytest.raises(Unreachable):
        retrying(failing(10**9))
