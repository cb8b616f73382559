"""A lease: one holder, by the observer's clock alone, whatever is damaged, late or lost."""

import random
import tempfile

import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from tests.fakes import s3
from worker.errors import Unreachable, UserError
from worker.store.lease import Claimant, Holder, Lease, Unconditional, elapsed_s, holder_of
from worker.store.open import open_store

# What is a matter of time alone need not be tried on S3 too.
folder_is_enough = pytest.mark.parametrize("store", ["folder"], indirect=True)

TTL_S = 120.0
KEY = "claims/rain_5c0ffee0.json"


class Clock:
    """Time that a test moves. Each machine's clock shows another hour."""

    def __init__(self, shown=0.0):
        self.now = 0.0
        self._shown = shown

    def __call__(self):
        return self.now + self._shown

    def elsewhere(self, shown):
        return lambda: self.now + shown


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def lease_of(store, clock):
    """Make a worker's lease by its seat; every worker is a new one, with a clock of its own."""
    return lambda seat, **options: Lease(
        store, KEY, TTL_S, Claimant(seat, "run"), clock.elsewhere(random.uniform(-1e6, 1e6)), **options
    )


def test_one_holds_and_the_other_does_not(lease_of):
    ours, theirs = lease_of("here"), lease_of("there")
    assert ours.take()
    assert not theirs.take()
    assert (ours.held, theirs.held) == (True, False)


@folder_is_enough
def test_taking_again_what_is_held_asks_nobody(lease_of, store):
    ours = lease_of("here")
    ours.take()
    before = store.read(KEY)
    assert ours.take()
    assert store.read(KEY) == before


def test_given_back_it_is_free_at_once(lease_of, store):
    ours, theirs = lease_of("here"), lease_of("there")
    ours.take()
    theirs.take()
    ours.give_back()
    assert store.list() == {}
    assert not ours.held
    assert theirs.take()


def test_unchanged_for_its_time_it_is_taken_over(lease_of, clock):
    dead, observer = lease_of("here"), lease_of("there")
    dead.take()
    assert not observer.take()
    clock.now += TTL_S - 0.01
    assert not observer.take()
    clock.now += 0.01
    assert observer.take()
    assert not dead.renew()
    assert not dead.held


@folder_is_enough
def test_time_counts_from_the_first_sighting_only(lease_of, clock):
    dead, observer = lease_of("here"), lease_of("there")
    dead.take()
    clock.now += 100 * TTL_S  # nobody looked: it may have been renewed a moment ago
    assert not observer.take()


@folder_is_enough
def test_renewed_it_is_never_taken_over(lease_of, clock):
    holder, observer = lease_of("here"), lease_of("there")
    holder.take()
    for _ in range(20):
        assert not observer.take()
        clock.now += TTL_S / 3
        assert holder.renew()
    assert holder.in_time


@folder_is_enough
def test_given_back_and_taken_again_it_looks_new(lease_of, clock):
    holder, observer = lease_of("here"), lease_of("there")
    holder.take()
    assert not observer.take()
    clock.now += TTL_S - 1
    holder.give_back()
    holder.take()
    clock.now += 1
    assert not observer.take()
    assert holder.in_time


def test_of_many_observers_one_takes_over(lease_of, clock):
    lease_of("here").take()
    observers = [lease_of(f"there {number}") for number in range(5)]
    assert not any(observer.take() for observer in observers)
    clock.now += TTL_S
    assert [observer.take() for observer in observers] == [True, False, False, False, False]


@folder_is_enough
def test_holder_out_of_time_is_out_before_it_asks(lease_of, clock):
    holder = lease_of("here")
    holder.take()
    clock.now += TTL_S
    assert holder.held
    assert not holder.in_time


@folder_is_enough
@pytest.mark.parametrize("call", ["create", "replace"])
def test_time_counts_from_before_the_request(lease_of, store, clock, monkeypatch, call):
    def slow(*given):
        clock.now += TTL_S
        return real(*given)

    holder = lease_of("here")
    if call == "replace":
        holder.take()
    real = getattr(store, call)
    monkeypatch.setattr(store, call, slow)
    assert holder.take() if call == "create" else holder.renew()
    assert not holder.in_time


@folder_is_enough
def test_late_holder_goes_on_if_nobody_came(lease_of, clock):
    holder = lease_of("here")
    holder.take()
    clock.now += 10 * TTL_S
    assert holder.renew()
    assert holder.in_time


@folder_is_enough
def test_late_holder_that_takes_again_learns_that_it_lost(lease_of, clock):
    late, observer = lease_of("here"), lease_of("there")
    late.take()
    observer.take()
    clock.now += TTL_S
    assert observer.take()
    assert not late.take()
    assert not late.held


def test_late_holder_does_not_delete_what_another_took_over(lease_of, clock, store):
    late, observer = lease_of("here"), lease_of("there")
    late.take()
    observer.take()
    clock.now += TTL_S
    observer.take()
    late.give_back()
    assert holder_of(store.read(KEY)).seat == "there"
    assert observer.renew()


@folder_is_enough
def test_lost_when_it_is_gone(lease_of, store):
    holder = lease_of("here")
    holder.take()
    store.delete(KEY)
    assert not holder.renew()
    assert not holder.held


@folder_is_enough
def test_next_in_the_same_seat_need_not_wait(lease_of):
    dead, restarted = lease_of("here"), lease_of("here")
    dead.take()
    assert restarted.take()


@folder_is_enough
def test_who_is_alone_need_not_wait(lease_of):
    lease_of("here").take()
    assert lease_of("there", at_once=True).take()


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xff\x00",
        b"[]",
        b"{}",
        b"null",
        b'{"seat": 1, "worker": null}',
        b'{"seat": ["here"], "worker": {}}',
        b"[" * 100_000,
    ],
)
def test_damaged_lease_is_that_of_someone_unknown(content):
    assert holder_of(content) == Holder(None, None)


def test_damaged_lease_is_taken_over_in_time(lease_of, clock, store):
    store.write(KEY, b"\x00garbage")
    observer = lease_of("there")
    assert not observer.take()
    clock.now += TTL_S
    assert observer.take()
    assert holder_of(store.read(KEY)).seat == "there"


def test_conditions_looked_at_by_hand_are_enough_for_one(lease_of, clock, store):
    by_hand = Unconditional(store)
    first = Lease(by_hand, KEY, TTL_S, Claimant("here", "run"), clock)
    second = Lease(by_hand, KEY, TTL_S, Claimant("there", "run"), clock)
    assert first.take()
    assert not second.take()
    assert first.renew()
    clock.now += TTL_S
    assert not second.take()
    clock.now += TTL_S
    assert second.take()
    assert not first.renew()
    second.give_back()
    assert store.list() == {}


def test_clock_goes_on(lease_of):
    before = elapsed_s()
    assert elapsed_s() >= before > 0


def test_create_whose_answer_was_lost_is_found_to_be_ours(s3_url, monkeypatch, clock):
    location = f"s3://{s3.fresh_bucket(s3_url)}"
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    with s3.failing_once(s3_url, "PUT") as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        lease = Lease(open_store(location), KEY, TTL_S, Claimant("here", "run"), clock)
        with pytest.raises(UserError):
            lease.take()
        assert lease.take()


@folder_is_enough
def test_renewal_whose_answer_was_lost_is_found_to_be_ours(lease_of, store, monkeypatch):
    def lose_the_answer(*given):
        assert replace(*given)
        raise Unreachable("no answer; wait")

    replace = store.replace
    lease = lease_of("here")
    lease.take()
    with monkeypatch.context() as patch:
        patch.setattr(store, "replace", lose_the_answer)
        with pytest.raises(Unreachable):
            lease.renew()
    assert lease.renew()


class Workers(RuleBasedStateMachine):
    """Workers that take, renew, stall, die and come back, in any order, at any pace."""

    def __init__(self):
        super().__init__()
        self.folder = tempfile.TemporaryDirectory()
        self.store = open_store(self.folder.name)
        self.clock = Clock()
        self.leases = [self.new(seat) for seat in range(3)]

    def teardown(self):
        self.folder.cleanup()

    def new(self, seat):
        clock = self.clock.elsewhere(1e6 * seat)
        return Lease(self.store, KEY, TTL_S, Claimant(str(seat), "run"), clock)

    seats = st.integers(0, 2)

    @rule(seat=seats)
    def take(self, seat):
        assert self.leases[seat].take() == self.leases[seat].in_time

    @rule(seat=seats)
    def renew(self, seat):
        was_in_time = self.leases[seat].in_time
        assert self.leases[seat].renew() >= was_in_time  # who was in time cannot have lost it

    @rule(seat=seats)
    def give_back(self, seat):
        self.leases[seat].give_back()

    @rule(seat=seats)
    def die_and_restart(self, seat):
        self.leases[seat] = self.new(seat)

    @rule(passed_s=st.sampled_from([1.0, TTL_S / 3, TTL_S / 2, TTL_S - 1, TTL_S, 3 * TTL_S]))
    def wait(self, passed_s):
        self.clock.now += passed_s

    @rule(garbage=st.binary(max_size=4))
    def damage(self, garbage):
        if not any(lease.in_time for lease in self.leases):
            self.store.write(KEY, garbage)

    @invariant()
    def one_is_in_time_at_most(self):
        assert [lease.in_time for lease in self.leases].count(True) <= 1


Workers.TestCase.settings = settings(max_examples=25, stateful_step_count=30, deadline=None)
test_at_any_time_one_worker_may_think_it_holds = Workers.TestCase
