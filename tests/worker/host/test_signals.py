"""worker/host/signals.py: signals to real processes."""

import os
import signal
import threading
import time

import pytest

from tests.worker.host.listened import ENDPOINT, OFF, until
from worker.host import signals
from worker.host.signals import listening

posix_only = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")


WAITS = """
from worker.host.signals import listening
with listening({"AWS_EC2_METADATA_DISABLED": "true"}) as interruption:
    print("ready", flush=True)
    woken = interruption.wait(60)
    print(woken, interruption.no_new_songs, interruption.notice)
"""


GOES_ON = """
import time
from worker.host.signals import listening
try:
    with listening({"AWS_EC2_METADATA_DISABLED": "true"}):
        print("ready", flush=True)
        try:
            while True:
                time.sleep(0.01)
        finally:
            print("cleaned")
except KeyboardInterrupt:
    print("stopped")
"""


@posix_only
@pytest.mark.parametrize(("number", "name"), [(signal.SIGINT, "Ctrl-C"), (signal.SIGTERM, "SIGTERM")])
def test_first_signal_is_a_notice_and_raises_nothing(child, number, name):
    process = child(WAITS)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(number)
    out, err = process.communicate(timeout=120)
    assert out == f"True True Notice(reason='{name}', kind='signal', deadline=None)\n"
    assert err == f"stopping: {name}; again to stop at once\n"
    assert process.returncode == 0


@posix_only
@pytest.mark.parametrize("first", ["SIGINT", "SIGHUP"])
def test_terminal_that_is_closed_while_a_run_saves_changes_nothing(child, first):
    process = child(GOES_ON)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(getattr(signal, first))
    assert process.stderr.readline().startswith("stopping: ")
    for _ in range(2):
        time.sleep(signals._SAME_SIGNAL_S + 0.1)
        process.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert out == "cleaned\nstopped\n"


@posix_only
@pytest.mark.parametrize(
    ("first", "second"), [(signal.SIGINT, signal.SIGTERM), (signal.SIGTERM, signal.SIGINT)]
)
def test_second_signal_ends_at_once_and_cleans_up(child, first, second):
    process = child(GOES_ON)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(first)
    assert process.stderr.readline().startswith("stopping: ")
    time.sleep(signals._SAME_SIGNAL_S + 0.1)
    assert process.poll() is None
    process.send_signal(second)
    out, err = process.communicate(timeout=120)
    assert (out, err, process.returncode) == ("cleaned\nstopped\n", "", 0)


@posix_only
def test_signal_is_acknowledged_before_the_run_looks(child):
    process = child(GOES_ON)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == "stopping: Ctrl-C; again to stop at once\n"
    assert process.poll() is None


def test_stop_that_arrives_twice_is_one_stop():
    with listening(OFF) as interruption:
        signal.raise_signal(signal.SIGTERM)
        signal.raise_signal(signal.SIGTERM)
        assert interruption.notice.reason == "SIGTERM"


@pytest.fixture
def handlers():
    """The handlers of this process's signals; they are the same again afterwards."""
    numbers = (signal.SIGINT, signal.SIGTERM)
    before = [signal.getsignal(number) for number in numbers]
    yield lambda: [signal.getsignal(number) for number in numbers]
    for number, handler in zip(numbers, before, strict=True):
        signal.signal(number, handler)


def test_ignored_signal_is_heard_too(handlers):
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    with listening(OFF) as interruption:
        signal.raise_signal(signal.SIGINT)
        assert interruption.notice.reason == "Ctrl-C"
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@posix_only
def test_closed_terminal_is_a_notice_except_under_nohup():
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with listening(OFF) as interruption:
            signal.raise_signal(signal.SIGHUP)
            assert interruption.notice.reason == "the terminal is gone"
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with listening(OFF) as interruption:
            signal.raise_signal(signal.SIGHUP)
            assert interruption.notice is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_handlers_are_given_back_however_the_block_ends(handlers):
    before = handlers()
    with listening(OFF):
        assert handlers() != before
    assert handlers() == before
    with pytest.raises(ValueError), listening(OFF):
        raise ValueError
    assert handlers() == before


def test_other_threads_leave_the_handlers_alone(handlers):
    def watch():
        with listening(OFF) as interruption:
            seen.append((handlers(), interruption.notice))

    seen, before = [], handlers()
    thread = threading.Thread(target=watch)
    thread.start()
    thread.join()
    assert seen == [(before, None)]


def test_line_printed_just_before_the_block_ends_is_not_lost():
    said = []
    with listening(OFF, say=lambda line: (time.sleep(0.1), said.append(line))):
        signal.raise_signal(signal.SIGTERM)
    assert said == ["stopping: SIGTERM; again to stop at once"]


def test_closed_stderr_does_not_end_the_run(metadata):
    tried = []

    def closed(line):
        tried.append(line)
        raise BrokenPipeError

    with listening({ENDPOINT: metadata.url}, poll_s=0.02, say=closed) as interruption:
        metadata.rebalance()
        until(lambda: interruption.drain_reason)
        metadata.interrupt()
        assert interruption.wait(60)
        until(lambda: len(tried) == 2)


@posix_only
def test_signal_during_a_spot_notice_leaves_no_time(child, metadata):
    metadata.interrupt()
    process = child(
        """
import time
from worker.host.signals import listening
with listening(poll_s=0.05) as interruption:
    interruption.wait(30)
    print("noticed", flush=True)
    while interruption.notice.deadline:
        time.sleep(0.01)
    print(interruption.notice.kind, interruption.notice.reason)
""",
        **{ENDPOINT: metadata.url, "AWS_EC2_METADATA_DISABLED": "false"},
    )
    assert process.stdout.readline() == "noticed\n"
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=120)
    assert out.startswith("spot SIGTERM, and EC2 takes this spot machine back at ")
