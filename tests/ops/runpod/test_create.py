"""ops/runpod/create.py and ready.py: one pod that takes a login, within its price, or nothing to pay for."""

import json
import os
import shlex
import signal
import sys
import threading
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops import boxes, interrupts
from ops.runpod import create, creation, ready
from ops.runpod.api import RunPod
from ops.runpod.calls import LIST_LAG_S
from ops.runpod.container import ARMED
from ops.runpod.create import carry_out
from ops.runpod.pods import END
from ops.runpod.ready import SshChecks
from ops.runpod.types import Pod
from ops.settings import Settings
from tests.fakes.pod_start import Containers
from tests.ops.runpod.conftest import StillClock
from tests.remote.boxes import until
from worker.errors import BadInput, UserError

PODS = "/v2/pods"


def yes(box):
    """A login that works."""
    return ""


def no_timer(box):
    return "no timer runs there"


CHECKS = SshChecks(yes, no_timer)


@pytest.fixture
def made(us, plan, told, listening):
    """Create a pod; -> what came of it."""

    def run(login=yes, timer=no_timer, another=False, **options):
        return carry_out(us, plan(**options), SshChecks(login, timer), told, another=another)

    return run


@pytest.fixture
def once(account, told):
    """Change the account as soon as something is told: `once("given up", life=[...])`."""

    def arm(words, **knobs):
        def change(line):
            if words in line:
                for name, value in knobs.items():
                    setattr(account, name, value)

        told.on_line = change

    return arm


def alive(account):
    return [pod.id for pod in account.billed()]


# --- a pod


def test_new_pod_is_the_current_box_with_its_price_and_host_keys(made, account, listening, ssh_key):
    asked = []
    created = made(lambda box: asked.append(box) or "")
    box = boxes.current()
    assert box == created.box == asked[-1]
    assert (box.id, box.kind, box.host, box.port, box.user) == (
        "pod0000000",
        "runpod",
        "203.0.113.7",
        40001,
        "root",
    )
    assert (box.hourly_usd, box.volume, box.key_file) == (0.40, None, str(ssh_key))
    assert box.created_at == account.pods["pod0000000"].created_at.strftime("%Y-%m-%dT%H:%M:%SZ")
    expected = boxes.folder_of(box.id) / "known_hosts.expected"
    assert expected.read_text("ascii").split() == listening


def test_intent_is_in_the_audit_log_before_the_pod_is_there(made, account, tmp_path):
    def respond(call, *rest, before=account.respond):
        if (call.method, call.path) == ("POST", PODS):
            lines = (tmp_path / "audit.jsonl").read_text("utf-8").splitlines()
            assert json.loads(lines[-1])["phase"] == "intent"
            assert json.loads(lines[-1])["request"]["name"] == call.body["name"]
        return before(call, *rest)

    account.respond = respond
    made()
    assert account.billed()


def test_login_is_tried_until_it_works(made, clock):
    answers = iter(["refused", "no banner", ""])
    assert made(lambda box: next(answers)).pod.id == "pod0000000"
    assert sum(clock.slept) >= 10


def test_what_runpod_s_log_says_is_shown_while_waiting(made, account, told):
    made()
    assert "  RunPod: create container runpod/pytorch:1.0.3-cu1290-torch291-ubuntu2204" in told
    assert told.count("  RunPod: create pod network") == 1


def test_log_s_control_characters_stay_away_from_the_terminal(made, account, told):
    entered = account.containers

    def start(pod):
        pod.log("system", "gone\x1b[2J\x07")
        return entered(pod)

    account.containers = start
    made()
    assert "  RunPod: gone [2J" in told


def test_without_host_keys_in_the_log_the_first_one_is_trusted_and_that_is_said(made, account, told, clock):
    account.containers = None
    created = made()
    assert not (boxes.folder_of(created.box.id) / "known_hosts.expected").exists()
    assert "its log names none: the first one seen is trusted" in str(told)
    assert sum(clock.slept) >= 30


@pytest.mark.parametrize("fault", [{"status": 503}, {"status": 429}, {"kind": "drop"}])
def test_host_keys_that_its_log_named_stay_trusted_where_a_later_look_at_it_fails(
    made, account, listening, told, fault
):
    answers = iter(["not yet", "not yet", ""])

    def login(box):
        account.fault("GET", f"{PODS}/.*/logs", times=2, **fault)
        expected = boxes.folder_of(box.id) / "known_hosts.expected"
        assert expected.exists() and expected.read_text("ascii").split() == listening
        return next(answers)

    made(login)
    assert "the first one seen is trusted" not in str(told)


def test_runpod_that_fails_for_a_moment_while_waiting_ends_nothing(made, account):
    def login(box):
        if not account.faults:
            account.fault("GET", PODS, 503, times=5)
            return "not yet"
        return ""

    assert made(login).pod.id in alive(account)


# --- offers that RunPod does not have


def test_next_offer_is_asked_for_where_one_is_gone(made, account, told):
    account.full = {"NVIDIA A40", "NVIDIA RTX A6000"}
    assert made().pod.gpu == "NVIDIA L40S"
    assert [body["gpu"]["id"] for body in account.sent("POST", PODS)] == [
        "NVIDIA A40",
        "NVIDIA RTX A6000",
        "NVIDIA L40S",
    ]
    assert (
        told.count("  refused: There are no longer any instances available with the requested specifications")
        == 2
    )


def test_gpu_that_the_account_may_not_have_is_passed_over(made, account):
    account.forbidden = {"NVIDIA A40"}
    assert made().pod.gpu == "NVIDIA RTX A6000"


def test_nothing_to_be_had_is_one_line_with_every_reason(made, account):
    account.full = set(account.gpus)
    account.forbidden = {"NVIDIA A40"}
    with pytest.raises(UserError) as raised:
        made()
    said = str(raised.value)
    assert "none of 3 offers became a pod, and nothing is running: " in said and "\n" not in said
    assert "cannot access this pool (NVIDIA A40, secure cloud)" in said and "no longer any instances" in said


def test_key_that_made_one_pod_has_the_right_and_every_reason_is_said(made, account):
    account.life, account.forbidden = ["ERROR"], {"NVIDIA RTX A6000", "NVIDIA L40S"}
    with pytest.raises(UserError, match=r"none of 3 offers became a pod.*RunPod reports ERROR .*this pool"):
        made()


@pytest.mark.parametrize(
    ("spoil", "n_asked", "code", "words"),
    [
        (lambda a: setattr(a, "balance_usd", 0), 1, 1, "no money left"),
        (lambda a: setattr(a, "read_only", True), 3, 1, "does not allow this API key"),
        (lambda a: a.fault("POST", PODS, 422, "image is not allowed", times=9), 1, 1, "image is not allowed"),
        (lambda a: a.fault("POST", PODS, 401, times=9), 1, 2, "does not know this API key"),
        (lambda a: a.fault("POST", PODS, 410, times=9), 1, 1, "upgrade this program"),
        (lambda a: a.fault("POST", PODS, 502, kind="html", times=9), 2, 1, "was not created"),
    ],
    ids=["no money", "key without rights", "wrong request", "wrong key", "retired", "broken"],
)
def test_refusal_that_no_other_offer_would_change_ends_the_loop(
    made, account, spoil, n_asked, code, words, told
):
    spoil(account)
    with pytest.raises(UserError, match=words) as raised:
        made()
    assert (raised.value.code, len(account.sent("POST", PODS)), alive(account)) == (code, n_asked, [])
    assert "\n" not in str(raised.value)


def test_api_without_entrypoint_and_cmd_gets_the_same_as_args(made, account, told):
    account.exec_form = False
    assert made().pod
    first, second = account.sent("POST", PODS)
    assert "args" not in first and not {"entrypoint", "cmd"} & second.keys()
    assert shlex.split(second["args"]) == [*first["entrypoint"], *first["cmd"]]
    assert first["name"] != second["name"]


# --- pods that are of no use

USELESS = {
    "RunPod reports ERROR": {"life": ["PROVISIONING", "ERROR"]},
    "RunPod reports EXITED": {"life": ["PROVISIONING", "STARTING", "EXITED"]},
    "it is still STARTING after 15 min": {"life": ["PROVISIONING", "STARTING"]},
    "it has had no SSH address for 2 min": {"has_address": False},
    "it costs $0.80 an hour, over the maximum of $0.60": {"price_factor": 2.0},
}
GOOD = {"life": ["PROVISIONING", "STARTING", "RUNNING"], "has_address": True, "price_factor": 1.0}


@pytest.mark.parametrize("reason", USELESS)
def test_useless_pod_is_terminated_before_the_next_one_is_created(made, account, once, told, reason):
    for name, value in USELESS[reason].items():
        setattr(account, name, value)
    once("is given up", **GOOD)
    assert made(max_price_usd=0.60).pod.id == "pod0000001"
    assert f"pod0000000 is given up: {reason}" in str(told)
    assert alive(account) == ["pod0000001"] and boxes.load("pod0000000") is None
    posts = [n for n, call in enumerate(account.calls) if (call.method, call.path) == ("POST", PODS)]
    deleted = [n for n, call in enumerate(account.calls) if call.method == "DELETE"]
    assert posts[0] < deleted[0] < posts[1]


@pytest.mark.parametrize("cost", [None, 0.0, -0.4])
def test_pod_whose_price_is_not_known_is_not_within_any_maximum(made, account, told, cost):
    def respond(call, *rest, before=account.respond):
        status, answer = before(call, *rest)
        for pod in answer.get("pods", []) if isinstance(answer, dict) else []:
            if pod["id"] == "pod0000000":
                pod["cost"] = cost
        return status, answer

    account.respond = respond
    assert made().pod.id == "pod0000001"
    assert "pod0000000 is given up: RunPod does not say what it costs" in str(told)


def test_driver_that_is_too_old_is_given_up_at_once(made, account, once, told, clock):
    account.life = ["STARTING"]
    once("is given up", **GOOD)
    before = account.respond

    def respond(call, *rest):
        if call.path.endswith("/logs") and call.path.startswith(f"{PODS}/pod0000000"):
            account.pods["pod0000000"].log(
                "system", "unsatisfied condition: cuda>=12.9, please update your driver"
            )
        return before(call, *rest)

    account.respond = respond
    assert made().pod.id == "pod0000001"
    assert "its driver is too old for the image's CUDA" in str(told)


def test_no_login_is_given_up_and_says_why_it_failed(made, account, told):
    def login(box):
        return "" if box.id == "pod0000001" else "it closed the connection"

    assert made(login).pod.id == "pod0000001"
    assert "pod0000000 is given up: no login within 5 min 0 s (it closed the connection)" in str(told)
    assert "  its container: Start script(s) finished" in told


def test_three_useless_pods_are_enough(made, account):
    account.life = ["ERROR"]
    account.gpus["NVIDIA L40"] = account.gpus["NVIDIA L40S"] | {"id": "NVIDIA L40"}
    with pytest.raises(
        UserError, match="none of 3 offers became a pod, and nothing is running: RunPod reports"
    ):
        made()
    assert len(account.pods) == creation.MOST_PODS and alive(account) == []


def test_key_that_the_pod_refuses_ends_it_and_tries_no_other(made, account):
    def login(box):
        raise BadInput("it refused your SSH key; name the right key: RUNPOD_SSH_KEY")

    with pytest.raises(BadInput):
        made(login)
    assert len(account.pods) == 1 and alive(account) == []


def test_pod_that_somebody_terminates_meanwhile_is_given_up(made, account, told, us):
    def login(box):
        if box.id == "pod0000000":
            us.terminate(box.id)
            return "gone"
        return ""

    assert made(login).pod.id == "pod0000001"
    assert "RunPod does not know it any more" in str(told)


# --- the proof that it will end


def test_image_that_ignores_the_entrypoint_is_asked_for_with_args(made, account, told, clock):
    account.obeys = {"args"}
    created = made()
    assert created.pod.id == "pod0000001" and alive(account) == ["pod0000001"]
    first, second = account.sent("POST", PODS)
    assert first["gpu"] == second["gpu"] and "entrypoint" in first and "args" in second
    assert "pod0000000 is given up: its image did not run our start script, so nothing would end it" in str(
        told
    )
    assert sum(clock.slept) < 2 * ready.ARMED_S + LIST_LAG_S


def test_image_that_ignores_both_is_refused_in_one_line_and_nothing_is_left(made, account):
    account.obeys = set()
    with pytest.raises(
        UserError, match=r"no pod was created: the image runpod/pytorch.* set RUNPOD_IMAGE to"
    ):
        made()
    assert len(account.pods) == 2 and alive(account) == []


def test_image_that_ignores_args_where_the_api_knows_nothing_else_is_refused(made, account):
    account.exec_form, account.obeys = False, set()
    with pytest.raises(UserError, match="set RUNPOD_IMAGE to an image of RunPod"):
        made()
    assert len(account.pods) == 1 and alive(account) == []


def test_login_that_works_is_not_enough(made, account, listening, told):
    account.obeys = set()
    asked = []
    with pytest.raises(UserError):
        made(lambda box: asked.append(box.id) or "")
    assert {"pod0000000", "pod0000001"} == set(asked)


@pytest.mark.parametrize("log", ["cannot be read", "is empty"])
def test_timer_is_looked_for_over_ssh_where_the_log_tells_nothing(made, account, told, log):
    if log == "is empty":
        account.containers, account.obeys = None, set()
    account.fault("GET", f"{PODS}/.*/logs", 500, times=10**6 if log == "cannot be read" else 0)
    seen = []
    assert made(timer=lambda box: seen.append(box.id) or "").pod.id == "pod0000000"
    assert seen == ["pod0000000"]
    assert "  its log does not say that it will end; its timer, seen over SSH, does" in told


def test_pod_whose_log_cannot_be_read_and_that_has_no_timer_is_not_trusted(made, account, told):
    account.fault("GET", f"{PODS}/.*/logs", 500, times=10**6)
    with pytest.raises(UserError, match="set RUNPOD_IMAGE"):
        made()
    assert alive(account) == [] and "nothing would end it (no timer runs there)" in str(told)


@pytest.mark.skipif(sys.platform == "win32", reason="runs sh")
@pytest.mark.parametrize("obeys", ["entrypoint", "args", "nothing"])
def test_proof_is_what_the_start_script_really_prints(made, account, tmp_path, obeys):
    account.containers, account.obeys = (started := Containers(account, tmp_path / "pods")), {obeys}

    def logs(call, pod_id, before=account._logs):
        if call.query["source"] == "container":
            runs = account.runs_request(account.pods[pod_id])
            until(lambda: (ARMED if runs else "start.sh of the image") in started.starts[-1].console)
            account.pods[pod_id].logs["container"].clear()
            account.pods[pod_id].log("container", *started.starts[-1].console.splitlines())
        return before(call, pod_id)

    account._logs = logs
    if obeys == "nothing":
        with pytest.raises(UserError, match="set RUNPOD_IMAGE"):
            made()
    else:
        assert made().pod.id == ("pod0000000" if obeys == "entrypoint" else "pod0000001")


def test_line_that_comes_late_is_waited_for(made, account, clock):
    account.obeys = set()

    def respond(call, *rest, before=account.respond):
        if call.path.endswith("/logs") and sum(clock.slept) > ready.ARMED_S / 2:
            account.pods["pod0000000"].log("container", f"{ARMED}2026-11-22T19:50:59Z")
        return before(call, *rest)

    account.respond = respond
    assert made().pod.id == "pod0000000"


# --- lost answers


@pytest.mark.parametrize("kind", ["problem", "drop", "cut", "html"])
def test_pod_whose_answer_was_lost_is_found_and_used(made, account, kind):
    account.list_lag = 3
    account.fault("POST", PODS, 502, kind=kind, acts=True)
    assert made().pod.id == "pod0000000" and alive(account) == ["pod0000000"]


def test_request_that_was_lost_is_asked_again_once_it_is_known_that_nothing_was_created(made, account, clock):
    account.fault("POST", PODS, 502)
    assert made().pod.id == "pod0000000" and len(account.pods) == 1
    assert sum(clock.slept) >= 60


@pytest.fixture
def fails_until(account, clock):
    """From the first pod on, lists fail until so many seconds have passed."""

    def arm(limit_s):
        def respond(call, *rest, before=account.respond):
            if account.pods and (call.method, call.path) == ("GET", PODS) and sum(clock.slept) < limit_s:
                return 503, {"title": "Fault", "status": 503, "detail": "down"}
            return before(call, *rest)

        account.fault("POST", PODS, 502, acts=True)
        account.respond = respond

    return arm


def test_pod_that_may_be_there_and_cannot_be_seen_is_named(made, account, told, fails_until):
    fails_until(10**6)
    with pytest.raises(UserError, match=r"not known whether musicgen-musicgen-.* was created"):
        made()
    (name,) = [pod.name for pod in account.billed()]
    assert f"WARNING: {name} may still be running, and STILL BILLING" in str(told)


def test_pod_that_is_seen_only_later_is_terminated(made, account, told, fails_until):
    fails_until(90)
    with pytest.raises(UserError, match="not known"):
        made()
    assert len(account.pods) == 1 and alive(account) == [] and "WARNING" not in str(told)


# --- nobody listens any more


@pytest.fixture
def closed(told):
    """From this call on, telling fails."""

    def close():
        told.on_line = lambda line: (_ for _ in ()).throw(BrokenPipeError())

    return close


def test_lost_answer_that_cannot_be_told_leaves_nothing(made, account, closed):
    def respond(call, *rest, before=account.respond):
        if (call.method, call.path) == ("POST", PODS):
            closed()
        return before(call, *rest)

    account.respond = respond
    account.fault("POST", PODS, 502, acts=True)
    with pytest.raises(BrokenPipeError):
        made()
    assert len(account.pods) == 1 and alive(account) == []


def test_error_of_ours_after_the_request_leaves_nothing(made, account, us, monkeypatch):
    monkeypatch.setattr(us._calls, "made", lambda *_: (_ for _ in ()).throw(RuntimeError("a bug")))
    account.fault("POST", PODS, 502, acts=True)
    with pytest.raises(RuntimeError):
        made()
    assert len(account.pods) == 1 and alive(account) == []


def test_end_that_fails_at_first_and_cannot_be_told_is_asked_again(made, account, closed):
    def login(box):
        closed()
        account.fault("DELETE", f"{PODS}/pod0000000", 503, times=4)
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError):
        made(login)
    assert len(account.pods) == 1 and alive(account) == []


# --- interrupts


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT to this process")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("moment", ["RunPod creates it", "it is listed", "the log is read", "the login"])
def test_interrupt_at_any_moment_leaves_nothing(made, account, moment, number):
    hits = {
        "RunPod creates it": lambda call: (call.method, call.path) == ("POST", PODS),
        "it is listed": lambda call: account.pods and (call.method, call.path) == ("GET", PODS),
        "the log is read": lambda call: call.path.endswith("/logs"),
        "the login": lambda call: False,
    }
    pressed = []

    def press():
        if not pressed:
            pressed.append(True)
            os.kill(os.getpid(), number)

    def respond(call, *rest, before=account.respond):
        if hits[moment](call):
            press()
        return before(call, *rest)

    def login(box):
        if moment == "the login":
            press()
        return ""

    account.respond = respond
    with pytest.raises(KeyboardInterrupt):
        made(login)
    assert pressed and len(account.pods) == 1 and alive(account) == []
    assert boxes.current() is None and boxes.load("pod0000000") is None


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT to this process")
@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("error", [KeyboardInterrupt, RuntimeError])
def test_interrupt_just_before_the_end_holds_it_leaves_nothing(made, account, monkeypatch, error, number):
    def login(box):
        raise error

    pressed = []

    def held(tell, waiting_for, held=interrupts.held):
        if waiting_for == "the end of the pod" and not pressed:
            pressed.append(True)
            os.kill(os.getpid(), number)
        return held(tell, waiting_for)

    monkeypatch.setattr(interrupts, "held", held)
    with pytest.raises(error):
        made(login)
    assert pressed and len(account.pods) == 1 and alive(account) == []


def test_any_error_after_the_creation_leaves_nothing(made, account):
    def login(box):
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError):
        made(login)
    assert len(account.pods) == 1 and alive(account) == []


def test_new_pod_that_runpod_does_not_show_yet_is_terminated_all_the_same(made, account, told):
    account.list_lag = 4

    def press(line):
        if line.startswith("created"):
            raise KeyboardInterrupt

    told.on_line = press
    with pytest.raises(KeyboardInterrupt):
        made()
    assert len(account.pods) == 1 and alive(account) == []


def test_pod_that_does_not_end_is_named(made, account, told):
    account.deaf = True
    with pytest.raises(RuntimeError):
        made(lambda box: (_ for _ in ()).throw(RuntimeError("a bug")))
    assert alive(account) == ["pod0000000"]
    assert "WARNING: pod0000000 may still be running, and STILL BILLING" in str(told)
    assert "inv pod.terminate" in str(told)


def test_folder_that_cannot_be_written_leaves_nothing(made, account, tmp_path):
    (tmp_path / ".boxes").write_text("a file", "utf-8")
    with pytest.raises(UserError, match="cannot write"):
        made()
    assert len(account.pods) == 1 and alive(account) == []


def test_pointer_that_cannot_be_read_keeps_no_pod_running(made, account, tmp_path):
    def login(box):
        (tmp_path / ".boxes" / "current").write_text("pod0000000", "utf-16")
        raise RuntimeError("a bug")

    with pytest.raises(RuntimeError):
        made(login)
    assert len(account.pods) == 1 and alive(account) == []


def test_error_of_ours_in_the_clean_up_names_the_pod(made, account, told, us, monkeypatch):
    def login(box):
        monkeypatch.setattr(us, "terminate", lambda pod_id: (_ for _ in ()).throw(OSError("a bug")))
        raise RuntimeError("another bug")

    with pytest.raises(RuntimeError):
        made(login)
    assert "WARNING: pod0000000 may still be running, and STILL BILLING" in str(told)


# --- several


def test_pod_that_is_there_already_is_shown_and_nothing_created(made, account, us, request_of):
    there = us.create_pod(request_of("musicgen-other"))
    us.create_pod(request_of("somebody-else-s"))
    assert [pod.id for pod in made().there] == [there.id] and len(account.sent("POST", PODS)) == 0


def test_stopped_pod_is_no_reason_not_to_create_one(made, us, request_of):
    us.stop(us.create_pod(request_of("musicgen-other")).id)
    assert made().pod.id == "pod0000001"


def test_another_is_created_beside_it(made, account, us, request_of):
    there = us.create_pod(request_of("musicgen-other"))
    created = made(another=True)
    assert sorted(alive(account)) == [there.id, created.pod.id]


@pytest.mark.parametrize("lag", [0, 6], ids=["at once", "although lists lag behind"])
def test_younger_of_two_is_terminated(made, account, told, us, request_of, lag):
    def somebody_else(line):
        if line.startswith("created pod0000000"):
            us.create_pod(request_of("musicgen-other"))
            account.pods["pod0000001"].created_at -= timedelta(seconds=5)
            account.pods["pod0000001"].lists_hidden = lag
            account.pods["pod0000000"].lists_hidden = lag + 1 if lag else 0

    told.on_line = somebody_else
    created = made()
    assert created.pod is None and [pod.id for pod in created.there] == ["pod0000001"] == alive(account)
    assert boxes.current() is None


def test_older_pod_that_is_listed_only_after_the_login_wins_all_the_same(made, account, told, us, request_of):
    def somebody_else(line):
        if line.startswith("created pod0000000"):
            us.create_pod(request_of("musicgen-other"))
            account.pods["pod0000001"].created_at -= timedelta(seconds=1)
            account.pods["pod0000001"].lists_hidden = 1  # that in which this one is ready

    told.on_line = somebody_else
    assert made().pod is None and alive(account) == ["pod0000001"]


def test_another_one_does_not_wait_for_lists(made, clock):
    assert made(another=True).pod and sum(clock.slept) < LIST_LAG_S


MOMENT = datetime(2026, 11, 22, 19, 50, 59, tzinfo=UTC)


@given(st.lists(st.tuples(st.integers(0, 90), st.integers(0, int(LIST_LAG_S))), min_size=1, max_size=6))
def test_of_any_creations_exactly_one_has_no_older_pod_in_its_last_list(creations):
    """Each is created at a second and listed some later; its last list is LIST_LAG_S after its creation."""
    made = [
        Pod.of(
            {"id": f"pod{n}", "name": "musicgen-1", "status": "RUNNING", "cost": 0.4}
            | {"createdAt": (MOMENT + timedelta(seconds=at_s)).isoformat()}
        )
        for n, (at_s, _) in enumerate(creations)
    ]

    def last_list(own_s):
        listed_s = [at_s + lag_s for at_s, lag_s in creations]
        return [pod for pod, at_s in zip(made, listed_s, strict=True) if at_s <= own_s + LIST_LAG_S]

    kept = [
        pod for pod, (at_s, _) in zip(made, creations, strict=True) if not create.older(pod, last_list(at_s))
    ]
    assert kept == [min(made, key=lambda pod: (pod.created_at, pod.id))]


# Of each pod: how many lists lack it, of those that come within the longest lag.
@pytest.mark.parametrize("lags", [(0, 0), (2, 2), (2, 0), (0, 2)])
def test_two_at_once_end_in_one_pod(account, plan, listening, lags):
    wanted, both = plan(), threading.Barrier(2, timeout=60)
    create = account._create

    def lagging(call):
        answer = create(call)
        made = account.pods[answer[1]["id"]]
        made.lists_hidden = lags[len(account.pods) - 1]
        return answer

    account._create = lagging
    results = []

    def run():
        def tell(line):
            if line.startswith("asking"):  # both have seen that there is none
                both.wait()

        clock = StillClock()
        ours = RunPod.of(Settings.load(), "test", tell, clock)
        results.append(carry_out(ours, wanted, CHECKS, tell))

    threads = [threading.Thread(target=run) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(account.pods) == 2 and len(alive(account)) == 1
    (winner,) = [result for result in results if result.pod]
    (other,) = [result for result in results if not result.pod]
    assert alive(account) == [winner.pod.id] == [pod.id for pod in other.there]


# --- the request


def test_lifetime_begins_at_the_request_and_not_at_the_plan(us, plan, told, listening, account):
    wanted = plan(lifetime=timedelta(hours=2))
    later = datetime.now(UTC) + timedelta(minutes=30)  # the user thought long
    created = carry_out(us, wanted, CHECKS, told, now=lambda: later)
    assert int(created.pod.env[END]) == int((later + timedelta(hours=2)).timestamp())


def test_price_that_differs_from_the_list_is_said(made, account, told):
    account.price_factor = 1.5
    assert made().pod.usd_per_hour == pytest.approx(0.60)
    assert "warning: it costs $0.60 an hour, and was listed at $0.40" in str(told)


def test_key_is_in_no_line(made, account, told, tmp_path):
    made()
    assert account.key not in str(told) + (tmp_path / "audit.jsonl").read_text("utf-8")


# --- as the user sees it

VOLUME = "RUNPOD_NETWORK_VOLUME_ID"


@pytest.mark.parametrize(
    ("knobs", "env", "code", "words"),
    [
        ({}, {"RUNPOD_API_KEY": ""}, 2, "RUNPOD_API_KEY is not set"),
        ({}, {"RUNPOD_API_KEY": "rpa_OF_NOBODY"}, 2, "RunPod does not know this API key"),
        ({"read_only": True}, {}, 1, "does not allow this API key to create a pod"),
        ({"balance_usd": 0}, {}, 1, "has no money left to create a pod"),
        ({}, {VOLUME: "vol9"}, 2, "no network volume vol9"),
        ({}, {VOLUME: "US-TX-3"}, 1, "no offer will do for musicgen at $0.40 an hour or less"),
        ({"clock_ahead": timedelta(hours=1)}, {}, 2, "this machine's clock is 60 min behind RunPod's"),
        ({"life": ["PROVISIONING"]}, {}, 1, "it is still PROVISIONING after 15 min 0 s (NVIDIA A40"),
        ({"has_address": False}, {}, 1, "it has had no SSH address for 2 min 0 s (NVIDIA A40"),
        ({"life": ["STARTING", "EXITED"]}, {}, 1, "nothing is running: RunPod reports EXITED (NVIDIA A40"),
        ({"full": {"NVIDIA A40"}}, {}, 1, "nothing is running: There are no longer any instances"),
    ],
)
def test_fault_is_one_line_with_its_exit_code_and_nothing_left(
    inv, account, listening, ssh_key, monkeypatch, knobs, env, code, words
):
    if env.get(VOLUME) == "US-TX-3":
        env = {VOLUME: account.add_volume(data_center="US-TX-3")}
    for name, value in env.items():
        monkeypatch.setenv(name, value)
    for name, value in knobs.items():
        setattr(account, name, value)
    done = inv("pod.create", "--yes")
    errors = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert done.code == code and len(errors) == 1 and words in errors[0], done.err
    assert alive(account) == [] and boxes.current() is None


def test_answers_that_break_off_end_it_before_anything_is_created(inv, account, ssh_key):
    account.fault("GET", PODS, kind="cut", times=99)
    done = inv("pod.create", "--yes")
    assert done.code == 1 and "broke off" in done.err and account.sent("POST", PODS) == []


@pytest.mark.skipif(sys.platform == "win32", reason="sends SIGINT to this process")
def test_interrupt_is_75_and_says_that_nothing_runs(inv, account, ssh_key):
    account.life = ["PROVISIONING"]

    def respond(call, *rest, before=account.respond):
        if call.path.endswith("/logs") and not pressed:
            pressed.append(os.kill(os.getpid(), signal.SIGINT))
        return before(call, *rest)

    pressed, account.respond = [], respond
    done = inv("pod.create", "--yes")
    assert done.code == 75 and alive(account) == []
    assert "ending pod0000000" in done.err and "nothing of it is running" in done.err
