"""Waiting for a store that does not answer."""

import sys
import threading
import time

import pytest

from worker.errors import Denied, Unreachable, UserError
from worker.store import retry
from worker.store.retry import Retry, TimedOut, answer


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


def test_what_works_is_done_once_and_silently(retrying, notes):
    assert retrying(failing(0)) == "result"
    assert notes == []


def test_it_is_tried_until_it_works_and_reported_once(retrying, notes):
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


def test_denial_is_waited_out_too(retrying, notes):
    assert retrying(failing(5, Denied)) == "result"
    assert notes == ["unreachable", "reachable"]


class Clock:
    """A minute passes with each action that it gives time to."""

    now_s = 1000.0

    def __call__(self):
        return self.now_s

    def slow(self, *errors):
        left = iter(errors)

        def act():
            self.now_s += 60
            for error in left:
                raise error("no; wait")
            return "result"

        return act


def test_denial_is_waited_for_five_minutes_and_an_outage_for_thirty(notes):
    clock = Clock()
    retrying = Retry(lambda event, text: notes.append(text), clock=clock)
    assert retrying(clock.slow(*[Denied] * 5)) == "result"
    with pytest.raises(Denied):
        retrying(clock.slow(*[Denied] * 6))
    assert retrying(clock.slow(*[Unreachable] * 30)) == "result"
    with pytest.raises(Unreachable):
        retrying(clock.slow(*[Unreachable] * 31))
    began = [text for text in notes if "trying again" in text]
    assert began == [f"no; wait (trying again for {minutes} min)" for minutes in (5, 5, 30, 30)]


def test_denial_has_five_minutes_of_its_own():
    clock = Clock()
    retrying = Retry(lambda event, text: None, clock=clock)
    outage, denial = [Unreachable] * 10, [Denied] * 5
    assert retrying(clock.slow(*outage, *denial, *outage[:2], *denial)) == "result"
    with pytest.raises(Denied):
        retrying(clock.slow(*outage, *denial, Denied))


def test_denial_at_the_end_of_an_outage_does_not_prolong_it():
    clock = Clock()
    retrying = Retry(lambda event, text: None, clock=clock)
    with pytest.raises(Denied):
        retrying(clock.slow(*[Unreachable] * 29, *[Denied] * 2))


# --- waiting for one answer


def test_answer_in_time_is_given_and_an_error_is_raised():
    assert answer(failing(0), lambda: True) == "result"
    with pytest.raises(Unreachable):
        answer(failing(1), lambda: True)


def test_answer_that_may_not_be_waited_for_is_timed_out():
    over = threading.Event()
    try:
        with pytest.raises(TimedOut):
            answer(over.wait, lambda: False)
    finally:
        over.set()


def test_answer_of_an_action_that_would_end_its_thread_is_raised_too():
    with pytest.raises(SystemExit):
        answer(lambda: sys.exit(3), lambda: True)
