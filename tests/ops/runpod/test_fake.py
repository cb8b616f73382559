"""tests/fakes/runpod.py: it refuses what RunPod's document does not describe, and its pods live."""

import contextlib
import json
import urllib.error
import urllib.request

import pytest

from tests.fakes import runpod as fake


@pytest.fixture
def served():
    with fake.serving() as runpod:
        yield runpod


def call(runpod, method, path, body=None, key=fake.KEY, agent="test"):
    """(status, answer) of one request."""
    headers = {"Authorization": f"Bearer {key}", "User-Agent": agent, "Content-Type": "application/json"}
    data = None if body is None else json.dumps(body).encode()
    request = urllib.request.Request(runpod.url + path, data, headers, method=method)
    try:
        with urllib.request.urlopen(request) as answer:
            content = answer.read()
            return answer.status, json.loads(content) if content else None
    except urllib.error.HTTPError as error:
        content = error.read()
        return error.code, json.loads(content) if content.startswith(b"{") else content.decode()


def test_whole_life_of_a_pod_is_as_the_document_describes_it(served, request_of):
    _, pod = call(served, "POST", "/v2/pods", request_of())
    at = f"/v2/pods/{pod['id']}"
    seen = [pod["status"], *(call(served, "GET", at)[1]["status"] for _ in range(3))]
    assert seen == ["PROVISIONING", "STARTING", "RUNNING", "RUNNING"]
    first = call(served, "GET", at)[1]["ssh"]["direct"]
    stopped = call(served, "POST", f"{at}/action", {"action": "stop"})[1]
    assert (stopped["status"], stopped["cost"], stopped["ssh"]["direct"]) == ("EXITED", 0.0, None)
    call(served, "PATCH", at, {"env": {"A": "1"}})
    call(served, "POST", f"{at}/action", {"action": "start"})
    again = call(served, "GET", at)[1]["ssh"]["direct"]
    assert again["port"] != first["port"]
    assert call(served, "DELETE", at) == (204, None)
    assert call(served, "GET", at)[0] == 404
    assert call(served, "GET", "/v2/pods")[1] == {"pods": []}
    assert served.violations == []


@pytest.mark.parametrize(
    "more",
    [{"interruptible": True}, {"terminateAfter": "2026-11-22T00:00:00Z"}, {"ports": "22/tcp"}, {"disk": 0}],
)
def test_field_that_the_document_lacks_is_refused_and_noted(served, request_of, more):
    status, answer = call(served, "POST", "/v2/pods", request_of() | more)
    assert status == 422 and next(iter(more)) in str(answer["errors"])
    assert served.violations and served.pods == {}


@pytest.mark.parametrize("path", ["/v2/pods?nextToken=a", "/v2/catalog/gpus?cloud=ALL", "/v1/pods"])
def test_path_and_query_that_the_document_lacks_are_noted(served, path):
    assert call(served, "GET", path)[0] in (404, 422)
    assert len(served.violations) == 1


def test_answer_that_the_document_does_not_describe_is_noted(served):
    served.gpus["NVIDIA A40"]["bid"] = 0.2
    call(served, "GET", "/v2/catalog/gpus")
    assert "bid" in served.violations[0]


def test_each_field_of_the_overlay_has_a_source():
    entries = json.loads((fake.HERE / "runpod_overlay.json").read_text("utf-8"))
    assert entries and all(entry["source"] for entry in entries)


def test_container_begins_anew_at_each_start(served, request_of):
    lives = []

    @contextlib.contextmanager
    def container(pod):
        lives.append(f"start {pod.n_starts}")
        yield "127.0.0.1", 2200 + pod.n_starts
        lives.append("end")

    served.containers = container
    _, pod = call(served, "POST", "/v2/pods", request_of())
    for _ in range(2):
        call(served, "GET", f"/v2/pods/{pod['id']}")
    served.restart_container(pod["id"])
    assert served.pods[pod["id"]].environ()["RUNPOD_TCP_PORT_22"] == "2202"
    call(served, "DELETE", f"/v2/pods/{pod['id']}")
    assert lives == ["start 1", "end", "start 2", "end"]


def test_pod_s_own_key_stops_that_pod_and_nothing_else(served, request_of):
    one, other = (call(served, "POST", "/v2/pods", request_of(f"musicgen-{n}"))[1]["id"] for n in (1, 2))
    key = served.pods[one].key
    assert call(served, "GET", f"/v2/pods/{one}", key=key)[0] == 403
    assert call(served, "POST", f"/v2/pods/{other}/action", {"action": "stop"}, key=key)[0] == 403
    assert call(served, "POST", f"/v2/pods/{one}/action", {"action": "stop"}, key=key)[0] == 200
    assert [pod.id for pod in served.billed()] == [other]


def test_program_that_does_not_name_itself_is_turned_away(served):
    assert call(served, "GET", "/v2/pods", agent="Python-urllib/3.11") == (
        403,
        "<html>error code: 1010</html>",
    )


def test_older_api_takes_no_entrypoint(served, request_of):
    served.exec_form = False
    status, answer = call(served, "POST", "/v2/pods", request_of(entrypoint=["sh"]))
    assert (status, answer["errors"]) == (422, ["$: additional properties 'entrypoint' not allowed"])
    assert call(served, "POST", "/v2/pods", request_of(args="sh"))[0] == 201
