"""ops/runpod/http.py: one request to RunPod's API, its key, its retries and its clock."""

import logging
import os
import time
from datetime import timedelta
from http.server import BaseHTTPRequestHandler

import pytest
import urllib3
from hypothesis import given
from hypothesis import strategies as st

from ops.runpod import http
from ops.runpod.api import RunPod
from ops.runpod.errors import ApiError
from ops.runpod.http import Clock, Http
from ops.settings import Settings, rows
from tests.fakes.s3 import over_http
from worker.errors import BadInput, UserError

PODS = "/v2/pods"


def asked(account, method="GET"):
    return sum(call.method == method for call in account.calls)


# --- retries


def test_limited_call_waits_as_long_as_it_is_told(account, us, clock):
    account.fault("GET", PODS, 429, Retry_After="12")
    assert us.pods() == []
    assert clock.slept == [12]


def test_limited_call_without_a_wait_waits_five_seconds(account, us, clock):
    account.fault("GET", PODS, 429)
    us.pods()
    assert clock.slept == [5]


def test_wait_of_an_hour_is_not_waited_for(account, us, clock):
    account.fault("GET", PODS, 429, Retry_After="3600")
    with pytest.raises(UserError, match="RunPod limits these calls"):
        us.pods()
    assert clock.slept == []


@pytest.mark.parametrize("kind", ["problem", "html", "cut", "drop"])
def test_fault_of_a_question_is_asked_again(account, us, clock, kind):
    account.fault("GET", PODS, 503, kind=kind, times=2)
    assert us.pods() == []
    assert clock.slept == [2, 4]


def test_lasting_fault_ends(account, us):
    account.fault("GET", PODS, 503, times=99)
    with pytest.raises(UserError):
        us.pods()
    assert asked(account) == 4


@pytest.mark.parametrize("status", [400, 401, 402, 403, 404, 409, 410, 422])
def test_refusal_is_not_asked_again(account, us, status):
    account.fault("GET", PODS, status)
    with pytest.raises(UserError):
        us.pods()
    assert asked(account) == 1


def test_looks_are_five_seconds_apart_and_end_at_the_limit(clock):
    assert list(clock.looks(12)) == [0, 5, 10, 12]


# --- what may have been done without an answer


class BreaksTls(BaseHTTPRequestHandler):
    """Takes a whole request, and answers with what is no TLS."""

    def do_POST(self):
        self.rfile.read(int(self.headers["Content-Length"]))
        os.write(self.connection.fileno(), b"HTTP/1.1 200 OK\r\n" * 10)
        self.close_connection = True

    def log_message(self, *_):
        pass


@pytest.mark.parametrize(
    ("trusted", "words"), [(True, "the encryption failed"), (False, "certificate is not accepted")]
)
def test_tls_fault_may_have_acted_only_after_the_request(tmp_path, monkeypatch, trusted, words):
    certificate = tmp_path / "here.pem"
    with over_http(BreaksTls, certificate) as url:
        if trusted:
            monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with pytest.raises(ApiError, match=words) as caught:
            Http("key", url).json("POST", PODS, "create a pod", body={"name": "x"}, again=False)
    assert caught.value.may_have_acted is trusted


def test_answer_that_a_proxy_loses_makes_no_second_pod(account, us, request_of):
    us.http._pool = urllib3.ProxyManager(account.url)
    account.fault("POST", PODS, kind="drop", acts=True)
    assert us.create_pod(request_of()).id == "pod0000000"
    assert len(account.sent("POST", PODS)) == 1 and len(account.pods) == 1


# --- the key


def test_key_is_in_no_repr_error_or_log(account, us, caplog, request_of):
    caplog.set_level(logging.DEBUG)
    account.fault("POST", PODS, 400, f"bad key {account.key[:3]}")
    with pytest.raises(UserError) as caught:
        us.create_pod(request_of())
    shown = f"{us!r} {us.http!r} {vars(caught.value)} {caught.value.__context__!r} {caplog.text}"
    assert account.key not in shown


KEY_OF_ANY_FORM = "PLANTED0KEY1OF2NO3FORM"


@pytest.fixture(params=["rpa_PLANTED0KEY0OF0THE0USUAL0FORM", KEY_OF_ANY_FORM])
def key(account, request, monkeypatch):
    """The account's key, of the usual form and of none."""
    account.key = request.param
    monkeypatch.setenv("RUNPOD_API_KEY", request.param)
    return request.param


@pytest.mark.parametrize("before", ["", "x" * 580], ids=["short", "shortened"])
def test_key_that_an_answer_repeats_is_not_shown(account, key, us, before):
    account.fault("GET", PODS, 403, f"{before} key {key} lacks rights")
    with pytest.raises(ApiError) as caught:
        us.pods()
    assert "PLANTED" not in f"{caught.value} {caught.value.detail}" and "key ***" in caught.value.detail


@pytest.mark.parametrize("source", ["system", "container"])
def test_key_that_a_log_repeats_is_not_shown(account, key, us, request_of, source):
    pod = us.create_pod(request_of())
    account.pods[pod.id].log(source, f"RUNPOD_API_KEY={key} is set")
    assert us.log(pod.id, source)[-1].text == "RUNPOD_API_KEY=*** is set"


def test_key_of_a_pod_in_its_log_is_not_shown(account, us, request_of):
    pod = us.create_pod(request_of())
    account.pods[pod.id].log("container", "rpa_PLANTED0KEY0OF0THE0POD")
    assert us.log(pod.id, "container")[-1].text == "***"


@pytest.mark.parametrize("source", ["system", "container"])
@pytest.mark.parametrize("name", [row.name for row in rows() if row.secret])
def test_no_secret_setting_is_shown_of_a_log(account, told, clock, request_of, monkeypatch, name, source):
    if name != "RUNPOD_API_KEY":
        monkeypatch.setenv(name, "planted-secret/1")
    us = RunPod.of(Settings.load(), "test", told, clock)
    pod = us.create_pod(request_of())
    account.pods[pod.id].log(source, f"starting with {os.environ[name]} as given")
    assert us.log(pod.id, source)[-1].text == "starting with *** as given"


def test_key_is_not_sent_along_a_redirect(account, us):
    account.fault("GET", PODS, 307, Location=f"{account.url}/elsewhere")
    with pytest.raises(UserError, match="leads elsewhere") as caught:
        us.pods()
    assert caught.value.code == 2 and asked(account) == 1


@pytest.mark.parametrize(
    ("url", "words"),
    [
        ("http://api.runpod.io", "unencrypted"),
        ("https://api.runpod.io/v2", "remove that"),
        ("https://api.runpod.io/v2/", "remove that"),
        ("api.runpod.io", "not an address"),
        ("https://user:secret@api.runpod.io", "not an address"),
        ("https://api.runpod.io:port", "not an address"),
        ("ftp://api.runpod.io", "not an address"),
        ("", "not an address"),
    ],
)
def test_wrong_address_is_bad_input_and_not_repeated(url, words):
    with pytest.raises(BadInput, match=words) as caught:
        Http("key", url)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("key", ["two words", "line\nbreak", "clé"])
def test_key_that_cannot_be_one_is_bad_input_and_not_repeated(key):
    with pytest.raises(BadInput, match="copy it again") as caught:
        Http(key, "https://api.runpod.io")
    assert key not in str(caught.value)


def test_every_request_names_this_program(account, us):
    us.pods()
    assert {call.headers["user-agent"] for call in account.calls} == {"musicgen-batch-worker"}


# --- time


def test_runpod_s_clock_is_known_after_an_answer(account, us):
    assert us.http.clock_ahead_s is None
    account.clock_ahead = timedelta(hours=3)
    us.pods()
    assert us.http.clock_ahead_s == pytest.approx(3 * 3600, abs=60)


def test_log_that_stays_open_is_read_as_far_as_it_is(account, us, request_of, monkeypatch):
    monkeypatch.setattr("ops.runpod.http._QUIET_S", 0.2)
    account.stream_open = True
    pod = us.create_pod(request_of())
    started = time.monotonic()
    assert [line.text for line in us.log(pod.id, "system")][-1] == "create pod network"
    assert time.monotonic() - started < 60


def test_log_s_refusal_that_never_comes_whole_is_one_line(account, us, request_of, monkeypatch):
    monkeypatch.setattr("ops.runpod.http._QUIET_S", 0.2)
    pod = us.create_pod(request_of())
    account.fault("GET", f"{PODS}/{pod.id}/logs", 500, Content_Length="9999")
    with pytest.raises(ApiError, match="RunPod did not answer"):
        us.log(pod.id, "system")


LINES = st.text(st.characters(exclude_characters="\r\n", codec="utf-8"))


@given(st.lists(st.tuples(LINES, st.lists(LINES, min_size=1))), st.booleans())
def test_every_whole_event_of_a_stream_is_read(events, cut):
    lines = [":comment"]
    for event_id, parts in events:
        lines += [f"id: {event_id}", *(f"data: {part}" for part in parts), ""]
    lines += ["id: half", "data: half"] * cut
    assert list(http._events(iter(lines))) == [(event_id, "\n".join(parts)) for event_id, parts in events]


def test_clock_of_its_own_is_the_machine_s():
    started = time.monotonic()
    assert started <= Clock().monotonic()
