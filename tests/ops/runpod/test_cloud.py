"""RunPod as one of the clouds: `inv status`, `logs` and `kill-all` with its pods, and a pod by its id."""

import json
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops import clouds
from ops.runpod.cloud import Pods
from ops.runpod.http import POLL_S
from ops.settings import Settings
from tests.fakes import heartbeats, s3
from worker.errors import BadInput, UserError


@pytest.fixture(autouse=True)
def only_runpod(monkeypatch):
    """A user without AWS, also where the tests run on a machine that has it."""
    monkeypatch.setattr(clouds, "CLOUDS", (Pods(),))


def end_in(hours):
    moment = datetime.now(UTC) + timedelta(hours=hours)
    return {"env": {"MUSICGEN_LIFETIME_END": str(int(moment.timestamp()))}}


# --- by its id


def test_running_pod_is_located_with_all_that_is_known_of_it(account, running):
    volume = account.add_volume()
    (pod,) = running("musicgen-1", mounts={"network": [{"volumeId": volume, "path": "/workspace"}]})
    found = Pods().locate(Settings.load(), pod)
    box = found.box
    assert found.state == "running"
    assert (box.id, box.kind, box.host, box.port, box.user) == (pod, "runpod", "203.0.113.7", 40001, "root")
    assert (box.hourly_usd, box.volume, box.created_at[:4]) == (0.4, volume, str(datetime.now(UTC).year))


def test_stopped_pod_has_no_address_and_an_unknown_one_is_none(us, running):
    (pod,) = running("musicgen-1")
    us.stop(pod)
    assert Pods().locate(Settings.load(), pod).box is None
    assert Pods().locate(Settings.load(), "abc123abc123ab") is None


def test_terminated_pod_is_none_also_while_runpod_knows_it(us, running, account):
    (pod,) = running("musicgen-1")
    us.terminate(pod)
    assert Pods().locate(Settings.load(), pod) is None


@pytest.mark.parametrize(
    ("text", "owned", "may_be_host"),
    [
        ("k2u8d5v3q9xj1a", True, False),
        ("jpnwovaybyqoql", True, True),
        ("myworkstation1", True, True),
        ("12345678901234", True, True),
        ("i-0123456789abcdef0", False, None),
        ("gpu-server", False, None),
        ("workstation", False, None),
        ("203.0.113.7", False, None),
    ],
)
def test_id_is_known_by_its_form(text, owned, may_be_host):
    assert Pods().owns(text) is owned
    assert may_be_host is None or Pods().may_be_host(text) is may_be_host


@given(st.text("abcdefghijklmnopqrstuvwxyz0123456789", min_size=14, max_size=14))
def test_every_id_of_a_pod_is_recognized(pod_id):
    assert Pods().owns(pod_id)


@pytest.mark.parametrize("pod_id", ["abcdefghij{:04d}", "1234567890{:04d}"])
def test_id_that_may_be_a_host_is_the_pod_where_there_is_one(account, running, pod_id):
    account.ids = pod_id
    (pod,) = running("musicgen-1")
    assert clouds.by_id(pod, Settings.load()).port == 40001


def test_host_whose_name_has_the_form_of_an_id_is_a_host(account, monkeypatch):
    assert clouds.by_id("myworkstation1", Settings.load()) is None
    asked = len(account.calls)
    monkeypatch.delenv("RUNPOD_API_KEY")
    assert clouds.by_id("myworkstation1", Settings.load()) is None
    assert asked and len(account.calls) == asked


def test_where_runpod_does_not_say_which_it_is_the_way_to_name_a_host_is(account):
    account.fault("GET", "/v2/pods/myworkstation1", 403, "no rights")
    with pytest.raises(UserError, match=r"no rights.*; if myworkstation1 is a host, write -H USER@myworkst"):
        clouds.by_id("myworkstation1", Settings.load())


def test_pod_is_a_box_by_its_id_alone(account, running):
    account.ids = "k2u8d5v3q{:05d}"
    (pod,) = running("musicgen-1")
    assert clouds.by_id(pod, Settings.load()).port == 40001


def test_stopped_pod_by_its_id_says_that_it_is_stopped(account, us, running):
    account.ids = "k2u8d5v3q{:05d}"
    (pod,) = running("musicgen-1")
    us.stop(pod)
    with pytest.raises(UserError, match="has no address, as it is exited; see: inv status"):
        clouds.by_id(pod, Settings.load())
    with pytest.raises(BadInput, match="RunPod has no machine k2u8d5v3q99999"):
        clouds.by_id("k2u8d5v3q99999", Settings.load())


# --- inv status


def test_pod_that_was_stopped_is_not_said_to_have_cost_nothing(inv, account, us, running):
    (pod,) = running("musicgen-1")
    account.pods[pod].created_at -= timedelta(hours=5)
    us.stop(pod)
    done = inv("status")
    assert "none of which runs, at least $0.00 so far, as RunPod bills the last hours before a" in done.err
    account.add_bill(pod, account.pods[pod].created_at, 0.40)
    assert "at least $0.40 so far" in inv("status").err


def test_without_a_key_runpod_is_not_set_up(monkeypatch, account):
    assert Pods().not_set_up(Settings.load()) == ""
    monkeypatch.delenv("RUNPOD_API_KEY")
    assert Pods().not_set_up(Settings.load()) == "RUNPOD_API_KEY is not set"


def test_status_shows_this_project_s_pods_only(inv, running):
    running("musicgen-1", "of-somebody-else")
    done = inv("status", "--json")
    assert done.code == 0
    assert [(row["cloud"], row["name"]) for row in json.loads(done.out)] == [("RunPod", "musicgen-1")]
    assert "1 pod, $0.40 per hour, " in inv("status").err


@pytest.mark.parametrize(("hours", "code"), [(1, 0), (-0.1, 0), (-1, 1)])
def test_pod_that_outlived_its_end_is_overdue(inv, running, hours, code):
    (pod,) = running("musicgen-1", **end_in(hours))
    done = inv("status", "--json")
    (row,) = json.loads(done.out)
    assert (done.code, row["overdue"]) == (code, bool(code))
    assert (f"run: inv pod.stop --pod {pod}" in row["remark"]) is bool(code)


def test_stopped_pod_is_not_overdue(inv, us, running):
    (pod,) = running("musicgen-1", **end_in(-5))
    us.stop(pod)
    done = inv("status", "--json")
    (row,) = json.loads(done.out)
    assert (done.code, row["state"], row["ends_at"]) == (0, "exited", None)


def test_pod_without_an_end_says_so(inv, running):
    running("musicgen-1")
    (row,) = json.loads(inv("status", "--json").out)
    assert row["remark"] == "was given no deadline; fab install sets one" and row["ends_at"] is None


@pytest.mark.parametrize("status", [401, 403, 503])
def test_status_without_an_answer_is_one_line_and_not_0(inv, account, status):
    account.fault("GET", "/v2/pods", status, times=9)
    done = inv("-d", "status")
    assert (done.code, done.out) == (2 if status == 401 else 1, "")
    assert [line for line in done.err.splitlines() if line.startswith("error: ")] != []


def test_cost_is_what_was_billed_and_the_clock_since(inv, account, running):
    (pod,) = running("musicgen-1")
    now = datetime.now(UTC)
    account.pods[pod].created_at = account.pods[pod].started_at = now - timedelta(hours=3)
    account.add_bill(pod, now - timedelta(hours=3), 0.40, 0.02)
    account.add_bill("pod-of-nobody", now - timedelta(hours=3), 9.0)
    (row,) = json.loads(inv("status", "--json").out)
    assert row["billed_usd"] == pytest.approx(0.42)
    assert row["cost_usd"] == pytest.approx(0.42 + 2 * 0.40, abs=0.01)


def test_cost_without_the_bills_is_by_the_clock_and_says_so(inv, account, running):
    (pod,) = running("musicgen-1")
    account.pods[pod].started_at = datetime.now(UTC) - timedelta(hours=2)
    account.fault("GET", "/v2/billing/pods", 403)
    done = inv("status", "--json")
    (row,) = json.loads(done.out)
    assert done.code == 0 and row["billed_usd"] is None
    assert row["cost_usd"] == pytest.approx(0.80, abs=0.01)
    assert "warning: costs are without RunPod's bills: " in done.err


def test_storage_that_is_billed_while_nothing_runs_is_named(inv, account):
    account.add_volume("musicgen-songs", 100)
    account.add_volume("of-somebody-else", 1000)
    done = inv("status")
    assert "no pod of this project; storage costs $7.00 a month, although no pod runs" in done.err
    assert "musicgen-songs" in done.out and "somebody" not in done.out


def test_volume_of_the_settings_is_this_project_s_whatever_its_name(inv, account, monkeypatch):
    monkeypatch.setenv("RUNPOD_NETWORK_VOLUME_ID", account.add_volume("mine", 10))
    assert "storage costs $0.70 a month" in inv("status").err


def test_volumes_that_cannot_be_listed_are_wrong_and_hide_no_pod(inv, account, running):
    running("musicgen-1")
    account.fault("GET", "/v2/network-volumes", 403)
    done = inv("status", "--json")
    assert done.code == 1 and len(json.loads(done.out)) == 1
    assert "warning: could not list the network volumes: " in done.err


# --- the songs of a pod

RUN = "20261122T195059Z-ab12"


@pytest.fixture
def output(s3_url, monkeypatch):
    """The s3:// address of the user's bucket."""
    bucket = s3.fresh_bucket(s3_url)
    monkeypatch.setenv("MUSICGEN_S3_BUCKET", bucket)
    monkeypatch.setenv("MUSICGEN_S3_PREFIX", "album")
    return f"s3://{bucket}/album"


@pytest.mark.parametrize("task", ["status", "pod.list"])
def test_progress_of_a_pod_s_songs_is_that_in_the_bucket(inv, running, output, task):
    (pod, other) = running("musicgen-1", "musicgen-2", **end_in(1))
    heartbeats.write(output, RUN, host=pod)
    shown = {row["id"]: row for row in json.loads(inv(task, "--json").out)}
    assert (shown[pod]["run"], shown[pod]["eta_s"], shown[pod]["remark"]) == (
        *("generating, 3 of 10 songs, 1 failed", 90.0),
        "",
    )
    assert (shown[other]["run"], shown[other]["remark"]) == (None, f"its songs: fab -H {other} status")


@pytest.mark.parametrize(("ago_s", "remark"), [(20, ""), (600, "silent for 10 min 0 s; see: fab -H {} logs")])
def test_pod_whose_worker_is_silent_is_named(inv, running, output, ago_s, remark):
    (pod,) = running("musicgen-1", **end_in(1))
    heartbeats.write(output, RUN, host=pod, ago_s=ago_s)
    (row,) = json.loads(inv("status", "--json").out)
    assert row["remark"].replace("10 min 1 s", "10 min 0 s") == remark.format(pod)


def test_without_a_bucket_the_songs_are_asked_for_over_ssh(inv, running):
    (pod,) = running("musicgen-1", **end_in(1))
    (row,) = json.loads(inv("status", "--json").out)
    assert (row["run"], row["remark"]) == (None, f"its songs: fab -H {pod} status")


def test_bucket_that_does_not_answer_hides_no_pod(inv, running, output, monkeypatch):
    running("musicgen-1", **end_in(1))
    monkeypatch.setenv("MUSICGEN_S3_BUCKET", "musicgen-of-nobody")
    done = inv("status", "--json")
    assert done.code == 0 and len(json.loads(done.out)) == 1
    assert "warning: no progress of songs: " in done.err


def test_run_on_a_pod_is_found_by_what_it_has_sent(running, output):
    (pod,) = running("musicgen-1")
    heartbeats.write(output, RUN, host=pod)
    heartbeats.write(output, "20261122T205059Z-cd34", host="of-somebody-else")
    assert Pods().runs(Settings.load(), output, print) == {RUN: pod}


# --- inv logs


def test_console_is_what_the_container_printed(inv, account, running):
    account.ids = "k2u8d5v3q{:05d}"
    (pod,) = running("musicgen-1")
    assert "start container" in inv("logs", "--console", pod).out
    account.pods[pod].log("container", "Pod Started")
    assert inv("logs", "--console", pod).out == "Pod Started\n"


# --- inv kill-all


def test_kill_all_ends_every_pod_of_this_project_and_no_other(inv, account, us, running, clock):
    ids = running("musicgen-1", "musicgen-2", "of-somebody-else")
    us.stop(ids[1])
    account.add_volume("musicgen-songs", 100)
    done = inv("kill-all", "--yes")
    assert done.code == 0
    assert [pod.id for pod in us.pods()] == [ids[2]]
    assert "ended 2; no pod of this project is left; storage" in done.err and list(account.volumes) == [
        "vol0000001"
    ]


def test_kill_all_says_what_stays_and_is_billed(inv, account):
    account.add_volume("musicgen-songs", 100)
    assert "no pod of this project; storage costs $7.00 a month" in inv("kill-all").err


def test_kill_all_lists_until_none_is_left_three_times(inv, account, running, clock):
    running("musicgen-1")
    account.delete_lag = 4
    assert inv("kill-all", "--yes").code == 0
    assert len([pause for pause in clock.slept if pause == POLL_S]) >= 4 + 2


def test_kill_all_believes_no_list_that_lacks_a_new_pod(inv, account, running):
    (pod,) = running("musicgen-1")
    account.pods[pod].lists_hidden = 2
    assert inv("kill-all", "--yes").code == 0 and account.billed() == []


def test_pod_that_does_not_end_is_said_with_its_id(inv, account, running):
    (pod,) = running("musicgen-1")
    account.deaf = True
    done = inv("kill-all", "--yes")
    assert done.code == 1
    assert f"error: {pod} did not end, and is STILL BILLING; terminate it in RunPod's console\n" in done.err


def test_pod_of_a_moment_ago_is_ended_although_it_is_not_listed_yet(inv, account, us, request_of):
    account.list_lag = 5
    us.create_pod(request_of())  # lists it once before
    account.pods["pod0000000"].lists_hidden = 2
    assert inv("pod.terminate", "--all", "--yes").code == 0


def test_list_that_fails_on_the_way_is_asked_again(inv, account, running, us):
    running("musicgen-1")

    really = account._delete

    def fail_later(*called):
        account.fault("GET", "/v2/pods", 503, times=6)
        return really(*called)

    account._delete = fail_later
    assert inv("kill-all", "--yes").code == 0
    assert us.pods() == []
