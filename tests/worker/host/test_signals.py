"""What ends a run: signals to real processes, EC2's notices from a stand-in over HTTP."""

import http.server
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import urllib.request
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path

import boto3
import pytest

from tests.fakes import imds
from worker.errors import BadInput
from worker.host import signals as interrupt
from worker.host.signals import MARGIN_S, Interruption, Notice, spot_notice, watching

ROOT = Path(__file__).parents[3]
ENDPOINT = "AWS_EC2_METADATA_SERVICE_ENDPOINT"
OFF = {"AWS_EC2_METADATA_DISABLED": "true"}

posix_only = pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")


@pytest.fixture
def child():
    """Starts Python processes that run a script with our modules at hand; they end with the test."""
    started = []

    def start(script, *arguments, **env):
        process = subprocess.Popen(
            [sys.executable, "-c", script, *arguments],
            env={**os.environ, "PYTHONPATH": str(ROOT), **env},
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        started.append(process)
        return process

    yield start
    for process in started:
        process.kill()
        process.communicate()


@pytest.fixture
def metadata():
    with imds.serving() as machine:
        yield machine


@contextmanager
def watched(url, **env):
    """An interruption that asks EC2's stand-in at `url` often, and what it said."""
    said = []
    with watching({ENDPOINT: url, **env}, poll_s=0.02, say=said.append) as interruption:
        yield interruption, said


def until(true, limit_s=20.0):
    """Wait until this is true; fail if that takes too long."""
    last_s = time.monotonic() + limit_s
    while not true():
        assert time.monotonic() < last_s, "took too long"
        time.sleep(0.01)


def polling():
    """The threads that ask EC2 at this moment."""
    return [thread for thread in threading.enumerate() if thread.name == "ec2-notices"]


# --- signals, in processes of their own

WAITS = """
from worker.host.signals import watching
with watching({"AWS_EC2_METADATA_DISABLED": "true"}) as interruption:
    print("ready", flush=True)
    woken = interruption.wait(60)
    print(woken, interruption.no_new_songs, interruption.notice)
"""

GOES_ON = """
import time
from worker.host.signals import watching
try:
    with watching({"AWS_EC2_METADATA_DISABLED": "true"}):
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
    out, err = process.communicate(timeout=30)
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
        time.sleep(interrupt._SAME_SIGNAL_S + 0.1)
        process.send_signal(signal.SIGHUP)
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    out, _ = process.communicate(timeout=30)
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
    time.sleep(interrupt._SAME_SIGNAL_S + 0.1)
    assert process.poll() is None
    process.send_signal(second)
    out, err = process.communicate(timeout=30)
    assert (out, err, process.returncode) == ("cleaned\nstopped\n", "", 0)


@posix_only
def test_signal_is_acknowledged_before_the_run_looks(child):
    process = child(GOES_ON)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    assert process.stderr.readline() == "stopping: Ctrl-C; again to stop at once\n"
    assert process.poll() is None


def test_stop_that_arrives_twice_is_one_stop():
    with watching(OFF) as interruption:
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
    with watching(OFF) as interruption:
        signal.raise_signal(signal.SIGINT)
        assert interruption.notice.reason == "Ctrl-C"
    assert signal.getsignal(signal.SIGINT) is signal.SIG_IGN


@posix_only
def test_terminal_that_is_gone_is_a_notice_unless_nohup_says_otherwise():
    before = signal.signal(signal.SIGHUP, signal.SIG_DFL)
    try:
        with watching(OFF) as interruption:
            signal.raise_signal(signal.SIGHUP)
            assert interruption.notice.reason == "the terminal is gone"
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        with watching(OFF) as interruption:
            signal.raise_signal(signal.SIGHUP)
            assert interruption.notice is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_handlers_are_given_back_however_the_block_ends(handlers):
    before = handlers()
    with watching(OFF):
        assert handlers() != before
    assert handlers() == before
    with pytest.raises(ValueError), watching(OFF):
        raise ValueError
    assert handlers() == before


def test_other_threads_leave_the_handlers_alone(handlers):
    def watch():
        with watching(OFF) as interruption:
            seen.append((handlers(), interruption.notice))

    seen, before = [], handlers()
    thread = threading.Thread(target=watch)
    thread.start()
    thread.join()
    assert seen == [(before, None)]


def test_line_said_just_before_the_block_ends_is_heard():
    said = []
    with watching(OFF, say=lambda line: (time.sleep(0.1), said.append(line))):
        signal.raise_signal(signal.SIGTERM)
    assert said == ["stopping: SIGTERM; again to stop at once"]


def test_nobody_listening_does_not_end_the_run(metadata):
    tried = []

    def closed(line):
        tried.append(line)
        raise BrokenPipeError

    with watching({ENDPOINT: metadata.url}, poll_s=0.02, say=closed) as interruption:
        metadata.rebalance()
        until(lambda: interruption.drain_reason)
        metadata.interrupt()
        assert interruption.wait(20)
        until(lambda: len(tried) == 2)


# --- what the run looks at


def test_nobody_interrupts_a_run_that_nobody_watches():
    interruption = Interruption()
    assert not interruption.wait(0.01)
    assert (interruption.notice, interruption.no_new_songs, interruption.drain_reason) == (None, False, None)


def test_wait_ends_early_on_a_notice():
    interruption = Interruption()
    notice = Notice("enough", "signal")
    timer = threading.Timer(0.05, interruption.end, [notice])
    timer.start()
    assert interruption.wait(60)
    assert interruption.notice == notice
    timer.join()


def test_drain_begins_no_song_and_lets_the_run_go_on():
    interruption = Interruption()
    interruption.drain("soon")
    assert interruption.no_new_songs and interruption.drain_reason == "soon"
    assert interruption.notice is None and not interruption.wait(0.01)


@pytest.mark.parametrize("signal_first", [True, False])
def test_signal_leaves_no_time_and_the_spot_notice_stays_known(signal_first):
    asked, spot = Notice("SIGTERM", "signal"), Notice("EC2 takes it", "spot", deadline=5.0)
    interruption = Interruption()
    for notice in (asked, spot) if signal_first else (spot, asked):
        interruption.end(notice)
    assert interruption.notice == Notice("SIGTERM, and EC2 takes it", "spot", deadline=None)


# --- EC2's notices


def test_spot_notice_ends_the_run_a_margin_before_the_machine_goes(metadata):
    with watched(metadata.url) as (interruption, said):
        assert not interruption.wait(0.2)
        metadata.interrupt(seconds=100)
        assert interruption.wait(20)
        left_s = interruption.notice.deadline - time.monotonic()
        at = json.loads(metadata.paths["spot/instance-action"])["time"]
    assert 100 - MARGIN_S - 25 < left_s <= 100 - MARGIN_S
    assert interruption.notice.kind == "spot" and interruption.no_new_songs
    assert interruption.notice.reason == f"EC2 takes this spot machine back at {at}"
    assert said == [f"stopping: {interruption.notice.reason}"]


def test_rebalance_drains_and_a_notice_still_follows(metadata):
    with watched(metadata.url) as (interruption, said):
        metadata.rebalance()
        until(lambda: interruption.no_new_songs)
        n_before = len(metadata.requests)
        until(lambda: len(metadata.requests) > n_before + 9)
        assert interruption.notice is None and len(said) == 1
        metadata.interrupt()
        assert interruption.wait(20)
    assert said == [f"no new songs: {interruption.drain_reason}", f"stopping: {interruption.notice.reason}"]


def test_expired_token_is_renewed(metadata):
    with watched(metadata.url) as (interruption, _):
        until(lambda: len(metadata.requests) > 3)
        metadata.expire_tokens()
        metadata.interrupt()
        assert interruption.wait(20)


def test_one_token_serves_many_polls(metadata):
    with watched(metadata.url):
        until(lambda: len(metadata.requests) > 9)
    assert [method for method, _ in metadata.requests].count("PUT") == 1


def test_machine_of_ec2_that_gives_no_answer_for_a_while_is_asked_on(metadata):
    with watched(metadata.url) as (interruption, _):
        until(lambda: len(metadata.requests) > 3)
        metadata.failing = True
        n_before = len(metadata.requests)
        until(lambda: len(metadata.requests) > n_before + 3 * interrupt._TRIES)
        metadata.failing = False
        metadata.interrupt()
        assert interruption.wait(20)


def test_polling_ends_with_the_block(metadata):
    with watched(metadata.url):
        until(lambda: metadata.requests)
        assert polling()
    until(lambda: not polling())


def test_disabled_metadata_is_never_asked(metadata):
    with watched(metadata.url, **OFF) as (interruption, _):
        metadata.interrupt()
        assert not interruption.wait(0.2)
    assert metadata.requests == []


def test_no_proxy_is_used(metadata, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as trap:
        proxy = "http://{}:{}".format(*trap.getsockname())
        for name in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.setenv(name, proxy)
            monkeypatch.setenv(name.upper(), proxy)
        monkeypatch.delenv("no_proxy", raising=False)
        monkeypatch.delenv("NO_PROXY", raising=False)
        metadata.interrupt()
        with watched(metadata.url) as (interruption, _):
            assert interruption.wait(20)
        trap.settimeout(0)
        with pytest.raises(BlockingIOError):  # nobody called
            trap.accept()


@contextmanager
def silence():
    """An address that takes connections and never answers."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield "http://{}:{}".format(*server.getsockname())


@contextmanager
def nothing():
    """An address where nobody listens."""
    with silence() as url:
        pass
    yield url


@contextmanager
def another():
    """A web server that knows of no tokens."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("elsewhere", [nothing, silence, another])
def test_machine_that_is_none_of_ec2s_is_soon_left_alone(elsewhere, monkeypatch):
    monkeypatch.setattr(interrupt, "_TIMEOUT_S", 0.1)
    with elsewhere() as url, watched(url) as (interruption, said):
        until(lambda: not polling())
        assert interruption.notice is None and said == []


@pytest.mark.parametrize("endpoint", ["nonsense", "ftp://host", "http://", "http://host:port", "http://[::1"])
def test_endpoint_that_is_none_is_bad_input(endpoint):
    with pytest.raises(BadInput, match=r"AWS_EC2_METADATA_SERVICE_ENDPOINT.*; correct or unset it"):
        watching({ENDPOINT: endpoint}).__enter__()
    with watching({ENDPOINT: endpoint, **OFF}) as interruption:
        assert interruption.notice is None


@posix_only
def test_signal_during_a_spot_notice_leaves_no_time(child, metadata):
    metadata.interrupt()
    process = child(
        """
import time
from worker.host.signals import watching
with watching(poll_s=0.05) as interruption:
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
    out, _ = process.communicate(timeout=30)
    assert out.startswith("spot SIGTERM, and EC2 takes this spot machine back at ")


# --- the notice's text

NOW = datetime(2026, 11, 22, 19, 50, 59, tzinfo=UTC)


def noticed(left_s, action="terminate"):
    at = NOW + timedelta(seconds=left_s)
    return spot_notice(json.dumps({"action": action, "time": f"{at:%Y-%m-%dT%H:%M:%SZ}"}), NOW, now_s=1000.0)


@pytest.mark.parametrize("action", ["terminate", "stop", "hibernate"])
def test_every_action_ends_the_run(action):
    assert noticed(90, action) == Notice(
        "EC2 takes this spot machine back at 2026-11-22T19:52:29Z", "spot", 1000 + 90 - MARGIN_S
    )


@pytest.mark.parametrize(("left_s", "counted_s"), [(7200, 120), (-7200, 0)])
def test_wrong_clock_makes_neither_more_than_two_minutes_nor_a_past(left_s, counted_s):
    assert noticed(left_s).deadline == 1000 + counted_s - MARGIN_S


@pytest.mark.parametrize(
    "text",
    ["", "<html>", "[]", "5", "{}", '{"time": 5}', '{"time": "soon"}', '{"time": "2026-11-22T19:50:59"}'],
)
def test_text_that_is_no_notice_ends_nothing(text):
    assert spot_notice(text, NOW, 0.0) is None


# --- the stand-in


def test_boto3_takes_the_roles_credentials_from_the_stand_in(monkeypatch):
    for name in os.environ:
        if name.startswith("AWS_"):
            monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    given = {"AccessKeyId": "ASIAOTHER", "SecretAccessKey": "secret", "Token": "token"}
    with imds.serving(credentials=given, role="some-role") as machine:
        monkeypatch.setenv(ENDPOINT, machine.url)
        found = boto3.session.Session().get_credentials()
        assert found.method == "iam-role"
        assert tuple(found.get_frozen_credentials())[:3] == ("ASIAOTHER", "secret", "token")


def test_stand_in_runs_as_a_process_too(child, tmp_path):
    url_file = tmp_path / "url"
    child("import runpy; runpy.run_module('tests.fakes.imds', run_name='__main__')", str(url_file))
    until(url_file.exists)
    url = url_file.read_text("ascii")
    with watched(url) as (interruption, _):
        urllib.request.urlopen(urllib.request.Request(f"{url}/interrupt/120", method="POST")).close()
        assert interruption.wait(20)
