"""inv pod.list, stop, terminate, reap and ssh: what is shown, asked, done, proved and still billed."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from ops import boxes
from ops.runpod.bills import LISTED
from ops.runpod.ending import END_LIMIT_S
from ops.runpod.http import POLL_S
from tests.fakes.runpod import Call


def on(volume):
    return {"mounts": {"network": [{"volumeId": volume, "path": "/workspace"}]}}


def disk(size):
    return {"mounts": {"persistent": {"size": size, "path": "/workspace"}}}


def aged(account, pod, hours):
    account.pods[pod].created_at = datetime.now(UTC) - timedelta(hours=hours)


def states(account):
    return {pod.name: pod.status for pod in account.pods.values()}


# --- list


def test_list_is_what_status_shows_of_runpod(inv, running):
    running("musicgen-1", "of-somebody-else")
    done = inv("pod.list", "--json")
    assert done.code == 0 and [row["name"] for row in json.loads(done.out)] == ["musicgen-1"]
    assert done.err.startswith("1 pod, $0.40 per hour, ")


def test_list_with_an_overdue_pod_is_1(inv, running):
    running("musicgen-1", env={"MUSICGEN_LIFETIME_END": "1700000000"})
    done = inv("pod.list")
    assert done.code == 1 and "OVERDUE" in done.out.replace("\n", "")


@pytest.mark.parametrize("end", ["soon", "", "9" * 30])
def test_end_that_somebody_edited_is_not_known(inv, running, end):
    running("musicgen-1", env={"MUSICGEN_LIFETIME_END": end})
    (row,) = json.loads(inv("pod.list", "--json").out)
    assert row["ends_at"] is None and not row["overdue"]


# --- stop


def test_the_only_pod_is_stopped_and_what_is_still_billed_is_said(inv, account, running):
    (pod,) = running("musicgen-1", **on(account.add_volume("songs", 100)))
    done = inv("pod.stop", "--yes")
    assert done.code == 0 and states(account) == {"musicgen-1": "EXITED"}
    assert done.err == (
        f"{pod} is stopped; network volume vol0000001 costs $7.00 a month ({LISTED}) until: "
        "inv pod.volume-delete --volume vol0000001\n"
    )


def test_disk_of_a_stopped_pod_is_said_to_cost_twice_as_much(inv, running):
    running("musicgen-1", **disk(50))
    assert (
        f"its disk of 50 GB costs $10.00 a month while it is stopped ({LISTED}), twice as much"
        in inv("pod.stop", "--yes").err
    )


def test_pod_without_any_disk_of_its_own_costs_nothing_when_stopped(inv, running):
    running("musicgen-1")
    assert "nothing of it is billed while it is stopped" in inv("pod.stop", "--yes").err


def test_what_is_billed_is_said_without_its_price_where_volumes_cannot_be_listed(inv, account, running):
    running("musicgen-1", **on(account.add_volume()))
    account.fault("GET", "/v2/network-volumes", 403)
    done = inv("pod.stop", "--yes")
    assert done.code == 0 and "vol0000001 costs $0.07 per GB a month" in done.err


def test_stopping_what_is_stopped_succeeds(inv, us, running):
    (pod,) = running("musicgen-1")
    us.stop(pod)
    for arguments in ([], ["--pod", pod]):
        done = inv("pod.stop", "--yes", *arguments)
        assert done.code == 0 and ("no pod of this project runs" in done.err or "is stopped" in done.err)


def test_stop_of_nothing_names_storage_that_is_billed(inv, account):
    account.add_volume("musicgen-songs", 10)
    assert inv("pod.stop", "--yes").err == (
        "no pod of this project runs; storage costs $0.70 a month, although no pod runs "
        f"({LISTED}; see inv pod.volume-list)\n"
    )


def test_pod_that_stopped_itself_meanwhile_is_no_error(inv, account, running):
    (pod,) = running("musicgen-1")
    really = account._action

    def too_late(call, pod_id):
        account.pods[pod_id].life = ["EXITED"]
        return really(call, pod_id)

    account._action = too_late
    done = inv("pod.stop", "--yes")
    assert done.code == 0 and f"{pod} is stopped" in done.err


def test_404_alone_is_no_stop(inv, account, running):
    (pod,) = running("musicgen-1")
    account.fault("POST", f"/v2/pods/{pod}/action", 404)
    account.fault("GET", f"/v2/pods/{pod}", 404, times=2)
    done = inv("pod.stop", "--yes")
    assert done.code == 1 and "is still RUNNING" in done.err and "STILL BILLING" in done.err


def test_pod_that_failed_is_not_taken_for_stopped(inv, account, running):
    (pod,) = running("musicgen-1")
    account.pods[pod].life = ["ERROR"]
    done = inv("pod.stop", "--yes")
    assert done.code == 1 and f"{pod} is still ERROR" in done.err and "inv pod.terminate" in done.err


def test_pod_that_failed_may_be_billed_and_is_1(inv, account, running):
    (pod,) = running("musicgen-1")
    account.pods[pod].life = ["ERROR"]
    done = inv("pod.list")
    assert done.code == 1 and "none of which runs" not in done.err


def test_stop_that_is_accepted_and_not_done_is_1_and_still_billing(inv, account, running):
    (pod,) = running("musicgen-1")
    account.deaf = True
    done = inv("pod.stop", "--yes")
    assert done.code == 1
    assert f"error: {pod} is still RUNNING 2 min 0 s after its stop, and STILL BILLING; " in done.err


@pytest.mark.parametrize("fault", [{"status": 503}, {"kind": "drop"}])
def test_stop_whose_looks_fail_for_a_moment_is_seen_after_it(inv, account, running, fault):
    (pod,) = running("musicgen-1")
    account.fault("GET", f"/v2/pods/{pod}", times=9, **fault)
    done = inv("pod.stop", "--yes")
    assert done.code == 0 and f"{pod} is stopped" in done.err


@pytest.mark.parametrize("fault", [{"status": 503}, {"status": 429}, {"status": 403}, {"kind": "drop"}])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_stop_that_cannot_be_seen_is_1_and_may_be_billing(inv, account, running, fault, method):
    (pod,) = running("musicgen-1")
    account.fault(method, f"/v2/pods/{pod}.*", times=10**6, **fault)
    done = inv("pod.stop", "--yes")
    assert done.code == 1
    assert f"error: {pod} may be STILL BILLING: it was not seen to be stopped (" in done.err
    assert f"inv pod.terminate --pod {pod}" in done.err


def test_locked_pod_says_what_to_do(inv, account, running):
    (pod,) = running("musicgen-1")
    account.pods[pod].locked = True
    done = inv("pod.stop", "--yes")
    assert done.code == 1 and f"{pod} is locked" in done.err and states(account) == {"musicgen-1": "RUNNING"}


def test_which_of_two_has_to_be_said_by_id_or_name(inv, account, running):
    running("musicgen-1", "musicgen-2")
    done = inv("pod.stop", "--yes")
    assert done.code == 2 and "there are 2 pods: pod0000000 (RUNNING), pod0000001 (RUNNING)" in done.err
    assert inv("pod.stop", "--pod", "musicgen-2", "--yes").code == 0
    assert states(account) == {"musicgen-1": "RUNNING", "musicgen-2": "EXITED"}


@pytest.mark.parametrize("task", ["pod.stop", "pod.terminate"])
def test_nothing_is_ended_without_a_yes(inv, account, running, task):
    running("musicgen-1")
    assert inv(task).code == 3
    assert inv(task, typed="n\n").code == 3
    assert inv(task, "--dry-run").code == 0
    assert states(account) == {"musicgen-1": "RUNNING"}
    assert inv(task, typed="y\n").code == 0
    assert account.billed() == []


@pytest.mark.parametrize("task", ["pod.stop", "pod.terminate", "pod.resume", "pod.ssh"])
def test_pod_of_somebody_else_is_never_touched(inv, account, running, task):
    (pod,) = running("of-somebody-else")
    for named in (["--pod", pod], ["--pod", "of-somebody-else"]):
        done = inv(task, *named, *(["--yes"] if task != "pod.ssh" else []))
        assert done.code == 2 and "of this project" in done.err
    assert states(account) == {"of-somebody-else": "RUNNING"}


# --- terminate


def test_terminated_pod_is_gone_and_its_volume_is_said_to_stay(inv, account, running):
    running("musicgen-1", **on(account.add_volume("songs", 100)))
    done = inv("pod.terminate", "--yes")
    assert done.code == 0 and states(account) == {"musicgen-1": "TERMINATED"}
    assert "ended 1 pod; storage costs $7.00 a month, although no pod runs" in done.err


def test_all_ends_stopped_pods_too_and_no_other(inv, account, us, running):
    ids = running("musicgen-1", "musicgen-2", "of-somebody-else")
    us.stop(ids[0])
    assert inv("pod.terminate", "--all", "--yes").code == 0
    assert states(account) == {
        "musicgen-1": "TERMINATED",
        "musicgen-2": "TERMINATED",
        "of-somebody-else": "RUNNING",
    }


def test_all_of_none_succeeds(inv):
    done = inv("pod.terminate", "--all", "--yes")
    assert done.code == 0 and done.err == "no pod of this project is left\n"


def test_all_lists_until_none_is_left_three_times(inv, account, running, clock):
    running("musicgen-1")
    aged(account, "pod0000000", 1)
    before = len(account.calls)
    inv("pod.terminate", "--all", "--yes")
    lists = [call for call in account.calls[before:] if (call.method, call.path) == ("GET", "/v2/pods")]
    assert len(lists) == 1 + 1 + 3  # the plan, the one whose pod is ended, three with none


def test_all_believes_no_list_that_lacks_a_new_pod(inv, account, running):
    (pod,) = running("musicgen-1")
    account.pods[pod].lists_hidden = 2
    assert inv("pod.terminate", "--all", "--yes").code == 0
    assert states(account) == {"musicgen-1": "TERMINATED"}


# Of all pods, the first list comes before their end.
@pytest.mark.parametrize(("arguments", "before"), [(["--all"], 1), ([], 0)], ids=["all", "one"])
def test_one_empty_list_at_the_end_of_the_time_is_no_proof(inv, account, running, arguments, before):
    (pod,) = running("musicgen-1")
    account.delete_lag = int(END_LIMIT_S / POLL_S) - before  # the last look is the first without it
    done = inv("pod.terminate", *arguments, "--yes")
    assert done.code == 1
    assert f"error: {pod} may be left, and STILL BILLING: fewer than 3 lists in a row" in done.err


def test_pod_that_appears_between_two_lists_is_ended_too(inv, account, running, request_of):
    running("musicgen-1")
    really = account._delete

    def then_another(call, pod_id):
        account._delete = really
        account._create(Call("POST", "/v2/pods", {}, request_of("musicgen-2"), {}))
        return really(call, pod_id)

    account._delete = then_another
    assert inv("pod.terminate", "--all", "--yes").code == 0
    assert states(account) == {"musicgen-1": "TERMINATED", "musicgen-2": "TERMINATED"}


def test_pod_that_refuses_its_end_is_1_with_its_id_and_the_others_end(inv, account, running):
    running("musicgen-1", "musicgen-2")
    account.fault("DELETE", "/v2/pods/pod0000000", 403, times=999)
    done = inv("pod.terminate", "--all", "--yes")
    assert done.code == 1 and states(account) == {"musicgen-1": "RUNNING", "musicgen-2": "TERMINATED"}
    assert "error: pod0000000 did not end, and is STILL BILLING" in done.err
    assert done.err.count("warning: pod0000000: ") == 1


def test_one_and_all_is_refused(inv, account, running):
    running("musicgen-1")
    done = inv("pod.terminate", "--all", "--pod", "musicgen-1", "--yes")
    assert done.code == 2 and states(account) == {"musicgen-1": "RUNNING"}


def test_disk_that_goes_with_the_pod_is_in_the_question(inv, running):
    running("musicgen-1", **disk(50))
    assert "50 GB on its machine" in inv("pod.terminate", "--dry-run").out


# --- pods that cannot be read


@pytest.fixture
def unreadable(account, monkeypatch):
    """RunPod shows the pods of this name without the time of their creation."""

    def hide(name):
        described = type(account)._described

        def without(self, pod):
            found = described(self, pod)
            return found | {"createdAt": None} if pod.name == name else found

        monkeypatch.setattr(type(account), "_described", without)

    yield hide
    account.violations.clear()


@pytest.mark.parametrize(
    "task",
    [["pod.list"], ["pod.stop", "--yes"], ["pod.terminate", "--all", "--yes"]],
    ids=lambda task: task[0],
)
def test_pod_of_somebody_else_that_cannot_be_read_is_in_nobody_s_way(inv, running, unreadable, task):
    running("musicgen-1", "of-somebody-else")
    unreadable("of-somebody-else")
    done = inv(*task)
    assert done.code == 0 and "of-somebody-else" not in done.out + done.err


@pytest.mark.parametrize(("task", "state"), [("pod.stop", "EXITED"), ("pod.terminate", "TERMINATED")])
def test_pod_of_ours_that_cannot_be_read_is_named_and_ended(inv, account, running, unreadable, task, state):
    (pod,) = running("musicgen-1")
    unreadable("musicgen-1")
    done = inv(task, "--yes")
    assert done.code == 0 and states(account) == {"musicgen-1": state}
    assert f"warning: what RunPod says of pod {pod} (musicgen-1) cannot be read (createdAt)" in done.err


def test_list_with_a_pod_of_ours_that_cannot_be_read_is_1(inv, running, unreadable):
    running("musicgen-1")
    unreadable("musicgen-1")
    assert inv("pod.list").code == 1


# --- reap


def test_reap_ends_what_is_older_and_nothing_else(inv, account, us, running):
    ids = running("musicgen-1", "musicgen-2", "musicgen-3", "of-somebody-else")
    for pod in (ids[0], ids[1], ids[3]):
        aged(account, pod, 30)
    us.stop(ids[1])
    assert inv("pod.reap", "--older-than", "24h", "--yes").code == 0
    assert states(account) == {
        "musicgen-1": "TERMINATED",
        "musicgen-2": "TERMINATED",
        "musicgen-3": "RUNNING",
        "of-somebody-else": "RUNNING",
    }


def test_reap_without_an_age_ends_what_outlived_its_end(inv, account, us, running):
    late = {"env": {"MUSICGEN_LIFETIME_END": "1700000000"}}
    _, second = running("musicgen-1", "musicgen-2", **late)
    running("musicgen-3")
    us.stop(second)
    assert inv("pod.reap", "--yes").code == 0
    assert states(account) == {
        "musicgen-1": "TERMINATED",
        "musicgen-2": "EXITED",
        "musicgen-3": "RUNNING",
    }


def test_reap_leaves_and_names_a_pod_that_may_have_been_given_a_later_end(inv, account, running):
    end = int((datetime.now(UTC) - timedelta(hours=5)).timestamp())
    (pod,) = running("musicgen-1", env={"MUSICGEN_LIFETIME_END": str(end)})
    done = inv("pod.reap", "--yes")
    assert done.code == 0 and states(account) == {"musicgen-1": "RUNNING"}
    assert f"warning: {pod} is left: OVERDUE by 5 h" in done.err and "later end" in done.err
    assert f"inv pod.terminate --pod {pod}" in done.err


def test_reap_s_question_says_that_the_end_is_the_one_it_was_made_with(inv, running):
    running("musicgen-1", env={"MUSICGEN_LIFETIME_END": "1700000000"})
    (row,) = json.loads(inv("pod.reap", "--dry-run", "--json").out)
    assert row["end"].endswith("unless it was given a later end since")


def test_reap_ends_a_failed_pod_past_its_end(inv, account, running):
    (pod,) = running("musicgen-1", env={"MUSICGEN_LIFETIME_END": "1700000000"})
    account.pods[pod].life = ["ERROR"]
    assert inv("pod.reap", "--yes").code == 0 and states(account) == {"musicgen-1": "TERMINATED"}


def test_reap_of_nothing_succeeds_and_json_is_empty(inv, running):
    running("musicgen-1")
    done = inv("pod.reap", "--older-than", "1d", "--yes", "--json")
    assert (done.code, json.loads(done.out)) == (0, [])
    assert done.err == "no pod of this project is older than 24 h 0 min\n"


def test_age_that_is_none_is_2(inv):
    assert inv("pod.reap", "--older-than", "yesterday").code == 2


# --- ssh


def test_ssh_of_a_stopped_pod_says_how_to_start_it(inv, us, running):
    (pod,) = running("musicgen-1")
    us.stop(pod)
    done = inv("pod.ssh", "--pod", pod)
    assert (
        done.code == 1 and done.err == f"error: {pod} has no address, as it is exited; run: inv pod.resume\n"
    )
    assert boxes.current() is None


# --- faults, with all debug output: one line, the right exit code, no key (the fixture looks for it)

TASKS = [
    ["pod.list"],
    ["pod.stop", "--yes"],
    ["pod.terminate", "--yes"],
    ["pod.reap", "--yes"],
    ["pod.resume", "--yes"],
    ["pod.ssh"],
    ["pod.volume-list"],
    ["pod.volume-delete", "--volume", "v", "--yes"],
]


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task[0])
@pytest.mark.parametrize(
    ("key", "code", "words"),
    [
        ("", 2, "RUNPOD_API_KEY is not set"),
        ("rpa_OF_NOBODY", 2, "RunPod does not know this API key"),
    ],
)
def test_without_a_key_that_is_good_every_task_is_2(inv, monkeypatch, task, key, code, words):
    monkeypatch.setenv("RUNPOD_API_KEY", key)
    done = inv(*task)
    assert (done.code, done.out) == (code, "")
    (line,) = [line for line in done.err.splitlines() if line.startswith("error: ")]
    assert words in line


@pytest.mark.parametrize("fault", [{"status": 403}, {"kind": "cut"}, {"kind": "drop"}, {"kind": "html"}])
@pytest.mark.parametrize("task", TASKS[:6], ids=lambda task: task[0])
def test_list_that_is_refused_or_half_is_one_line_and_ends_nothing(inv, account, running, task, fault):
    running("musicgen-1")
    account.fault("GET", "/v2/pods", times=99, **fault)
    done = inv("-d", *task)
    assert done.code == 1
    assert len([line for line in done.err.splitlines() if line.startswith("error: ")]) == 1
    assert states(account) == {"musicgen-1": "RUNNING"}


@pytest.mark.parametrize(
    ("task", "state"),
    [
        (["pod.stop"], "EXITED"),
        (["pod.terminate"], "TERMINATED"),
        (["pod.reap", "--older-than", "24h"], "TERMINATED"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else value,
)
def test_malformed_setting_of_another_task_keeps_no_pod_billing(
    inv, account, running, monkeypatch, task, state
):
    (pod,) = running("musicgen-1")
    aged(account, pod, 30)
    monkeypatch.setenv("MUSICGEN_SLOTS", "abc")
    assert inv(*task, "--yes").code == 0 and states(account) == {"musicgen-1": state}


def test_key_that_may_only_look_stops_nothing_and_says_which_right_is_missing(inv, account, running):
    running("musicgen-1")
    account.read_only = True
    done = inv("-d", "pod.stop", "--yes")
    assert done.code == 1 and "RunPod does not allow this API key to stop pod pod0000000" in done.err


def test_secrets_of_a_pod_are_in_no_output(inv, running):
    running("musicgen-1", env={"HF_TOKEN": "hf_PLANTED"})
    for task in (
        ["pod.list"],
        ["pod.list", "--json"],
        ["status"],
        ["pod.stop", "--yes"],
        ["kill-all", "--yes"],
    ):
        done = inv("-d", *task)
        assert "hf_PLANTED" not in done.out + done.err
