"""ops/runpod/errors.py: what an error of RunPod's API means, in one line with a remedy and an exit code."""

import json
import re

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from ops.runpod import errors
from worker.errors import UserError

PODS = "/v2/pods"


def line_of(status):
    body = b'{"title": "x", "status": 1, "detail": "its reason.", "errors": ["$: one", "$: two"]}'
    return str(errors.refused(status, "application/problem+json", body, "create a pod"))


@pytest.mark.parametrize("status", [*errors.ERRORS, 500, 503, 302, 418])
def test_each_error_is_one_line_with_a_remedy(status):
    assert re.fullmatch(r"[^\n{}]+; [^\n{}]+", line_of(status))


@pytest.mark.parametrize(
    ("status", "exit_code", "words"),
    [
        (400, 1, "its reason"),
        (401, 2, "correct RUNPOD_API_KEY"),
        (402, 1, "no money"),
        (403, 1, "does not allow this API key to list pods"),
        (404, 1, "check the id"),
        (409, 1, "present state"),
        (410, 1, "upgrade"),
        (422, 1, "list pods: its reason"),
        (429, 1, "wait a minute"),
        (500, 1, "run it again in a minute"),
        (503, 1, "503"),
    ],
)
def test_answer_of_a_real_call_has_its_sentence_and_exit_code(account, us, status, exit_code, words):
    account.fault("GET", PODS, status, "its reason", times=9)
    with pytest.raises(UserError) as caught:
        us.pods()
    assert (caught.value.code, caught.value.status) == (exit_code, status)
    assert words in str(caught.value)


def test_violations_of_a_request_are_given_verbatim(account, us, request_of):
    with pytest.raises(UserError) as caught:
        us.create_pod(request_of(interruptible=True))
    assert "Unevaluated properties are not allowed ('interruptible' was unexpected)" in str(caught.value)
    account.violations.clear()


@pytest.mark.parametrize(
    ("kind", "status", "words"),
    [
        ("html", 200, "a web page"),
        ("html", 403, "a web page"),
        ("html", 502, "run it again"),
        ("cut", 200, "the connection broke off"),
        ("drop", 200, "the connection broke off"),
        ("html", 302, "leads elsewhere"),
    ],
)
def test_answer_that_is_none_is_one_line(account, us, kind, status, words):
    account.fault("GET", PODS, status, kind=kind, times=9)
    with pytest.raises(UserError) as caught:
        us.pods()
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_answer_without_a_part_is_one_line(account, us, request_of, monkeypatch):
    us.create_pod(request_of())
    described = type(account)._described
    monkeypatch.setattr(type(account), "_described", lambda *a: described(*a) | {"id": None})
    with pytest.raises(UserError, match="lacks a part"):
        us.pods()
    account.violations.clear()


def test_nobody_at_the_address_is_one_line(us, account, monkeypatch):
    monkeypatch.setattr(us.http, "url", "http://127.0.0.1:1")
    with pytest.raises(UserError, match=r"cannot reach RunPod to list pods \(no connection\); check"):
        us.pods()


ANY_JSON = st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(),
    lambda inner: st.lists(inner) | st.dictionaries(st.sampled_from(["detail", "errors", "error"]), inner),
)


@example(b'{"detail": "\\u001b[2Jgone"}')
@given(st.binary() | ANY_JSON.map(lambda value: json.dumps(value).encode()))
def test_whatever_comes_as_an_error_has_words_of_one_line(body):
    said = errors.words(body)
    assert said == " ".join(said.split()) and len(said) <= 600 and "\x1b" not in said


def test_wrong_key_and_a_key_without_rights_differ(account, us):
    account.read_only = True
    with pytest.raises(UserError, match="does not allow this API key to create a network volume"):
        us.create_volume("weights", 50, "EU-RO-1")
    account.key = "another"
    with pytest.raises(UserError, match="does not know this API key") as caught:
        us.pods()
    assert caught.value.code == 2
