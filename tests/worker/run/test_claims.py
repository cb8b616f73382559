"""Claims: each song made once by any number of workers, and resumed when one of them dies."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack
from pathlib import Path

import pytest

from tests.fakes import s3
from worker.errors import Unreachable, UserError
from worker.host.identity import take_identity
from worker.run import claims as module
from worker.run.claims import LONE_KEY, Claims, claim_key
from worker.store.lease import Claimant
from worker.store.open import open_store

posix_only = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
folder_is_enough = pytest.mark.parametrize("store", ["folder"], indirect=True)

# A machine under load may stall a living holder for two thirds of this, a lone one for a third.
TTL_S = 2.0
LONE_TTL_S = 3.0
LONG_S = 600.0  # what happens within a test did not wait for it
SONG, OTHER = "rain_5c0ffee0", "storm_0badcafe"
PROBE = "claims/.probe-0123456789abcdef"
SONGS = [f"song_{number:08x}" for number in range(8)]

WORK = """
import sys
from pathlib import Path
from worker.run.claims import Claims
from worker.store.lease import Claimant
from worker.store.open import open_store
place, box, ttl_s, *stems = sys.argv[1:]
with Claims(open_store(place), "child", ttl_s=float(ttl_s), box=Path(box)) as claims:
    print(*[stem for stem in stems if claims.take(stem)], flush=True)
    for _ in sys.stdin:
        print(*sorted(claims.held), flush=True)
"""


class Child:
    """A worker in a process of its own."""

    def __init__(self, *arguments):
        self.process = subprocess.Popen(
            [sys.executable, "-c", WORK, *map(str, arguments)],
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[3])},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def hears(self):
        """The stems it has: at first those that it could take, later those that it holds still."""
        return self.process.stdout.readline().split()

    def asked(self):
        self.process.stdin.write("\n")
        self.process.stdin.flush()
        return self.hears()

    def end(self, how=signal.SIGTERM):
        self.process.send_signal(how)
        self.process.communicate()


@pytest.fixture
def child(store, tmp_path):
    """Start workers on `store`: by their box and what they are to take."""
    with ExitStack() as stack:

        def start(box, *stems, ttl_s=TTL_S):
            worker = Child(store.location, tmp_path / box, ttl_s, *stems)
            stack.callback(worker.end)
            return worker

        yield start


@pytest.fixture
def enter(tmp_path):
    """Workers of this process on a store, each at home on the box that it names."""
    with ExitStack() as stack:

        def enter(store, box, ttl_s=TTL_S, **options):
            worker = Claims(store, box, ttl_s=ttl_s, box=tmp_path / box, **options)
            return stack.enter_context(worker)

        yield enter


def wait_until(true, limit_s=20.0):
    until = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.02)


def patiently_taken(claims, stem, limit_s=20.0):
    """Try as a worker does; the seconds until it worked, None if it never did."""
    began = time.monotonic()
    while time.monotonic() - began < limit_s:
        if claims.take(stem):
            return time.monotonic() - began
        time.sleep(min(0.05, claims.try_again_in_s([stem])))
    return None


# --- one at a time


def test_song_is_taken_once_and_free_when_released(store, enter):
    ours, theirs = enter(store, "here"), enter(store, "there")
    assert ours.take(SONG)
    assert not theirs.take(SONG)
    assert theirs.take(OTHER)
    assert (ours.held, theirs.held) == ({SONG}, {OTHER})
    ours.release(SONG)
    assert ours.held == set()
    assert theirs.take(SONG)


def test_releasing_what_is_anothers_leaves_it(store, enter):
    ours, theirs = enter(store, "here"), enter(store, "there")
    ours.take(SONG)
    theirs.take(SONG)
    theirs.release(SONG)
    theirs.release("never_00000000")
    assert not theirs.take(SONG)
    assert claim_key(SONG) in store.list()


def test_each_song_goes_to_one_of_several_threads(store, enter):
    workers = [enter(store, f"box {number}", ttl_s=LONG_S) for number in range(4)]
    with ThreadPoolExecutor(4) as threads:
        taken = threads.map(lambda worker: [stem for stem in SONGS if worker.take(stem)], workers)
    assert Counter(stem for stems in taken for stem in stems) == Counter(SONGS)


def test_each_song_goes_to_one_of_several_processes_of_a_box(store, child):
    workers = [child("here", *SONGS, ttl_s=LONG_S) for _ in range(2)]
    assert Counter(stem for worker in workers for stem in worker.hears()) == Counter(SONGS)


def test_leaving_gives_everything_back(store, enter, tmp_path):
    with Claims(store, "run", box=tmp_path / "here") as claims:
        claims.take(SONG)
        claims.take(OTHER)
    assert store.list() == {}
    assert claims.held == set()


@folder_is_enough
def test_leaving_does_not_wait_for_a_store_that_hangs(store, monkeypatch, tmp_path):
    hung = threading.Event()
    with Claims(store, "run", box=tmp_path / "here", leave_s=0.2) as claims:
        claims.take(SONG)
        claims.take(OTHER)
        monkeypatch.setattr(store, "delete", lambda key: hung.wait(20))
        began = time.monotonic()
    assert time.monotonic() - began < 5
    assert claims.held == set()
    hung.set()


@folder_is_enough
def test_how_long_to_wait_before_trying_again(store, enter):
    now = 0.0
    holder = enter(store, "here", ttl_s=LONG_S)
    observer = enter(store, "there", ttl_s=LONG_S, clock=lambda: now)
    assert observer.try_again_in_s([SONG]) is None
    holder.take(SONG)
    observer.take(SONG)
    assert observer.try_again_in_s([SONG, OTHER]) == LONG_S / 3
    now = LONG_S - 1
    assert observer.try_again_in_s([SONG, OTHER]) == 1
    assert observer.try_again_in_s([OTHER]) is None
    now = 2 * LONG_S
    assert observer.try_again_in_s([SONG]) == 0
    holder.release(SONG)
    observer.take(SONG)
    assert observer.try_again_in_s([SONG]) is None


# --- renewal


@folder_is_enough
def test_living_holder_keeps_its_song(store, enter):
    holder, observer = enter(store, "here"), enter(store, "there")
    holder.take(SONG)
    assert patiently_taken(observer, SONG, limit_s=1.3 * TTL_S) is None
    assert holder.held == {SONG}


@folder_is_enough
def test_request_that_hangs_costs_no_other_claim(store, enter, monkeypatch):
    def hang(key, *given):
        return ended.wait(20) and None if key == claim_key(SONG) else replace(key, *given)

    ended, replace = threading.Event(), store.replace
    holder, observer = enter(store, "here"), enter(store, "there")
    holder.take(SONG)
    holder.take(OTHER)
    monkeypatch.setattr(store, "replace", hang)
    assert patiently_taken(observer, OTHER, limit_s=1.3 * TTL_S) is None
    ended.set()


@folder_is_enough
def test_renewal_outlives_any_error(store, enter, monkeypatch):
    holder = enter(store, "here", ttl_s=0.3)
    holder.take(SONG)
    failed = Counter()

    def fail(*_):
        failed["times"] += 1
        raise (Unreachable("no answer; wait") if failed["times"] % 2 else RuntimeError("a bug"))

    with monkeypatch.context() as patch:
        patch.setattr(store, "replace", fail)
        wait_until(lambda: failed["times"] > 6 and not holder._leases[SONG].in_time)
        assert holder.held == {SONG}
    wait_until(lambda: holder._leases[SONG].in_time)


@folder_is_enough
def test_claim_out_of_time_is_asked_for_before_it_counts(store, enter, monkeypatch):
    monkeypatch.setattr(module, "_RENEWERS", 0)
    holder = enter(store, "here", ttl_s=0.1)
    holder.take(SONG)
    time.sleep(0.2)
    assert holder.take(SONG)  # nobody came meanwhile
    observer = enter(store, "there", ttl_s=0.1)
    observer.take(SONG)
    time.sleep(0.2)
    assert observer.take(SONG)
    assert not holder.take(SONG)
    assert holder.held == set()


# --- death, sleep and restart


@posix_only
def test_song_of_a_killed_worker_goes_to_one_of_the_others_in_time(store, child, enter):
    dead = child("here", SONG)
    assert dead.hears() == [SONG]
    others = [enter(store, f"box {number}") for number in range(3)]
    won = threading.Event()

    def try_until_someone_has_it(worker):
        began = time.monotonic()
        while not won.is_set():
            if worker.take(SONG):
                won.set()
                return time.monotonic() - began
            time.sleep(0.05)
        return None

    dead.end(signal.SIGKILL)
    with ThreadPoolExecutor(3) as threads:
        after_s = list(threads.map(try_until_someone_has_it, others))
    (won_s,) = [seconds for seconds in after_s if seconds is not None]
    assert won_s >= TTL_S
    assert [worker.take(SONG) for worker in others].count(True) == 1


@posix_only
@folder_is_enough
def test_worker_that_slept_learns_that_it_lost_its_song(store, child, enter):
    sleeper = child("here", SONG, OTHER)
    assert sleeper.hears() == [SONG, OTHER]
    os.kill(sleeper.process.pid, signal.SIGSTOP)
    try:
        assert patiently_taken(enter(store, "there"), SONG)
    finally:
        os.kill(sleeper.process.pid, signal.SIGCONT)
    wait_until(lambda: sleeper.asked() == [OTHER])


@posix_only
@folder_is_enough
def test_worker_restarted_on_its_box_goes_on_at_once(store, child, enter):
    killed = child("here", SONG, ttl_s=LONG_S)
    assert killed.hears() == [SONG]
    killed.end(signal.SIGKILL)
    assert not enter(store, "there", ttl_s=LONG_S).take(SONG)
    assert enter(store, "here", ttl_s=LONG_S).take(SONG)


@folder_is_enough
def test_worker_that_leaves_before_it_takes_over_costs_the_next_one_no_time(store, enter, tmp_path):
    dead = take_identity(tmp_path / "here", store.location)
    dead.leave()
    store.write(f"claims/{SONG}.json", Claimant(dead.name, "killed").signature())
    with Claims(store, "interrupted", box=tmp_path / "here"):
        pass
    assert enter(store, "here", ttl_s=LONG_S).take(SONG)


@posix_only
@folder_is_enough
def test_live_worker_on_the_same_box_loses_nothing_to_a_restarted_one(store, child, enter):
    killed = child("here", SONG, ttl_s=LONG_S)
    assert killed.hears() == [SONG]
    living = child("here", OTHER, ttl_s=LONG_S)
    assert living.hears() == [OTHER]
    beside = enter(store, "here", ttl_s=LONG_S)
    assert not any(beside.take(stem) for stem in (SONG, OTHER))
    killed.end(signal.SIGKILL)
    restarted = enter(store, "here", ttl_s=LONG_S)
    assert restarted.take(SONG)
    assert not restarted.take(OTHER)
    assert living.asked() == [OTHER]


# --- a store that ignores conditions


@pytest.fixture
def ignoring(s3_url, monkeypatch):
    """A store in an S3 look-alike that drops conditions, and takes no second try."""
    location = f"s3://{s3.fresh_bucket(s3_url)}/songs"
    with s3.ignoring_conditions(s3_url) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
        yield open_store(location)


def test_store_that_honours_conditions_is_known(store):
    assert store.honours_conditions(PROBE)
    assert store.list() == {}


def test_probe_of_a_killed_worker_goes_with_the_next_one_in_its_seat(store, enter, tmp_path):
    seat = take_identity(tmp_path / "here", store.location)
    seat.leave()
    store.write(f"claims/.probe-{seat.digest}", b"left")
    enter(store, "here")
    assert store.list("claims/") == {}


@folder_is_enough
def test_store_that_forgets_is_no_store(store, monkeypatch):
    monkeypatch.setattr(store, "create", lambda key, content: "etag")
    with pytest.raises(UserError, match="does not give back what was written"):
        store.honours_conditions(PROBE)


@pytest.mark.parametrize("ignored", [("If-None-Match",), ("If-Match",), ("If-None-Match", "If-Match")])
def test_store_that_ignores_a_condition_is_known(s3_url, monkeypatch, ignored):
    location = f"s3://{s3.fresh_bucket(s3_url)}"
    with s3.ignoring_conditions(s3_url, ignored) as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        store = open_store(location)
        assert not store.honours_conditions(PROBE)
        assert store.list() == {}


def test_lone_worker_goes_on_and_says_so(ignoring, tmp_path):
    said = []
    with Claims(ignoring, "run", ttl_s=TTL_S, box=tmp_path / "here", say=said.append) as alone:
        (line,) = said
        assert line.startswith(f"{ignoring.location} ignores conditional writes: ")
        assert alone.take(SONG)
        assert alone.held == {SONG}
        time.sleep(TTL_S / 2)  # as long as its word holds
        assert alone.held == {SONG}
        alone.release(SONG)
        assert set(ignoring.list()) == {LONE_KEY}
    assert ignoring.list() == {}


def test_second_worker_is_refused_where_one_must_be_alone(ignoring, enter):
    first = enter(ignoring, "here", ttl_s=LONE_TTL_S)
    first.take(SONG)
    with pytest.raises(UserError, match="only one worker at a time may use it, and another one is at work"):
        enter(ignoring, "there", ttl_s=LONE_TTL_S)
    assert first.held == {SONG}
    assert first.take(OTHER)


def test_of_workers_that_start_together_one_stays(ignoring, enter):
    def start(number):
        try:
            return enter(ignoring, f"box {number}", ttl_s=LONE_TTL_S)
        except UserError:
            return None

    with ThreadPoolExecutor(4) as threads:
        entered = [claims for claims in threads.map(start, range(4)) if claims]
    (alone,) = entered
    assert alone.take(SONG)


def test_who_wrote_over_a_start_at_the_same_time_is_the_one_that_stays(ignoring, enter):
    def write_over():
        wait_until(lambda: LONE_KEY in ignoring.list())
        ignoring.write(LONE_KEY, b"of one that had looked before")

    other = threading.Thread(target=write_over)
    other.start()
    with pytest.raises(UserError, match="another one is at work"):
        enter(ignoring, "here", ttl_s=LONE_TTL_S)
    other.join()
    assert ignoring.read(LONE_KEY) == b"of one that had looked before"


def test_lone_worker_follows_a_dead_one_and_takes_its_songs_at_once(ignoring, enter):
    ignoring.write(LONE_KEY, b"of one that died")
    ignoring.write(claim_key(SONG), b"its last song")
    alone = enter(ignoring, "there", ttl_s=TTL_S)
    assert alone.take(SONG)


def test_lone_worker_that_was_stalled_stops_for_the_one_that_came(ignoring, enter, monkeypatch):
    monkeypatch.setattr(module, "_LONE_TTL_S", 0.8)
    with monkeypatch.context() as patch:
        patch.setattr(module, "_RENEWERS", 0)
        stalled = enter(ignoring, "here", ttl_s=LONG_S)
    stalled.take(SONG)
    stalled.take(OTHER)
    newcomer = enter(ignoring, "there", ttl_s=LONG_S)
    assert newcomer.take(SONG)
    stalled.release(SONG)
    with pytest.raises(UserError, match=r"came to .* while this one was stalled; run it again"):
        stalled.take("new_00000000")
    assert stalled.held == set()
    assert claim_key(SONG) in ignoring.list()


def test_lone_worker_without_network_is_not_told_that_another_came(ignoring, enter, monkeypatch):
    monkeypatch.setattr(module, "_RENEWERS", 0)
    alone = enter(ignoring, "here", ttl_s=0.2)

    def unreachable(*_):
        raise Unreachable("no answer; wait")

    with monkeypatch.context() as patch:
        patch.setattr(ignoring, "write", unreachable)
        time.sleep(0.1)
        with pytest.raises(Unreachable):
            alone.take(SONG)
    assert alone.take(SONG)
