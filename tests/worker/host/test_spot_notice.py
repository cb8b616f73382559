"""worker/host/spot_notice.py: EC2's notices from a stand-in over HTTP."""

import http.server
import json
import os
import socket
import threading
import time
import urllib.request
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta

import boto3
import pytest

from tests.fakes import imds
from tests.worker.host.listened import ENDPOINT, OFF, polling, until, watched
from worker.errors import BadInput
from worker.host import spot_notice
from worker.host.notice import Notice
from worker.host.signals import listening
from worker.host.spot_notice import MARGIN_S, parse_notice


def test_spot_notice_ends_the_run_a_margin_before_the_machine_goes(metadata):
    with watched(metadata.url) as (interruption, said):
        assert not interruption.wait(0.2)
        metadata.interrupt(seconds=100)
        assert interruption.wait(60)
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
        assert interruption.wait(60)
    assert said == [f"no new songs: {interruption.drain_reason}", f"stopping: {interruption.notice.reason}"]


def test_expired_token_is_renewed(metadata):
    with watched(metadata.url) as (interruption, _):
        until(lambda: len(metadata.requests) > 3)
        metadata.expire_tokens()
        metadata.interrupt()
        assert interruption.wait(60)


def test_one_token_serves_many_polls(metadata):
    with watched(metadata.url):
        until(lambda: len(metadata.requests) > 9)
    assert [method for method, _ in metadata.requests].count("PUT") == 1


def test_ec2_machine_without_an_answer_for_a_while_is_still_polled(metadata):
    with watched(metadata.url) as (interruption, _):
        until(lambda: len(metadata.requests) > 3)
        metadata.failing = True
        n_before = len(metadata.requests)
        until(lambda: len(metadata.requests) > n_before + 3 * spot_notice._TRIES)
        metadata.failing = False
        metadata.interrupt()
        assert interruption.wait(60)


def test_polling_ends_with_the_block(metadata):
    with watched(metadata.url):
        until(lambda: metadata.requests)
        assert polling()
    until(lambda: not polling())


def test_disabled_metadata_is_never_polled(metadata):
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
            assert interruption.wait(60)
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
    """A web server that has no metadata tokens."""
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), http.server.BaseHTTPRequestHandler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    server.server_close()
    thread.join()


@pytest.mark.parametrize("elsewhere", [nothing, silence, another])
def test_machine_that_is_not_ec2s_is_soon_no_longer_polled(elsewhere, monkeypatch):
    monkeypatch.setattr(spot_notice, "_TIMEOUT_S", 0.1)
    with elsewhere() as url, watched(url) as (interruption, said):
        until(lambda: not polling())
        assert interruption.notice is None and said == []


@pytest.mark.parametrize("endpoint", ["nonsense", "ftp://host", "http://", "http://host:port", "http://[::1"])
def test_endpoint_that_is_not_an_http_address_is_bad_input(endpoint):
    with pytest.raises(BadInput, match=r"AWS_EC2_METADATA_SERVICE_ENDPOINT.*; correct or unset it"):
        listening({ENDPOINT: endpoint}).__enter__()
    with listening({ENDPOINT: endpoint, **OFF}) as interruption:
        assert interruption.notice is None


NOW = datetime(2026, 11, 22, 19, 50, 59, tzinfo=UTC)


def noticed(left_s, action="terminate"):
    at = NOW + timedelta(seconds=left_s)
    return parse_notice(json.dumps({"action": action, "time": f"{at:%Y-%m-%dT%H:%M:%SZ}"}), NOW, now_s=1000.0)


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
def test_text_that_is_not_a_notice_ends_nothing(text):
    assert parse_notice(text, NOW, 0.0) is None


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
        assert interruption.wait(60)
