"""ops/runpod/api.py: typed answers, pages, and a creation whose answer is lost."""

import json
from datetime import UTC, datetime

import pytest

from ops.runpod.api import RunPod
from ops.settings import Settings
from worker.errors import BadInput, UserError

PODS = "/v2/pods"


def audit(tmp_path):
    return [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text("utf-8").splitlines()]


# --- answers


def test_pod_has_an_address_once_it_runs(us, request_of):
    made = us.create_pod(request_of())
    seen = [us.pod(made.id) for _ in range(2)]
    assert [pod.address for pod in (made, seen[0])] == [None, None]
    assert (seen[1].status, seen[1].address.host, seen[1].address.port) == ("RUNNING", "203.0.113.7", 40001)
    assert (seen[1].usd_per_hour, seen[1].data_center, seen[1].gpu) == (0.40, "EU-RO-1", "NVIDIA A40")


def test_address_comes_from_the_ports_where_ssh_direct_is_missing(account, us, request_of, monkeypatch):
    described = type(account)._described
    without = {"ssh": {"proxy": None, "direct": None}}
    monkeypatch.setattr(type(account), "_described", lambda *a: described(*a) | without)
    made = us.create_pod(request_of())
    us.pod(made.id)
    assert us.pod(made.id).address.port == 40001


def test_pod_that_runpod_does_not_know_is_none(us):
    assert us.pod("pod-of-nobody") is None


def test_environment_of_a_pod_is_in_no_repr(us, request_of):
    made = us.create_pod(request_of(env={"PUBLIC_KEY": "ssh-ed25519 PLANTED"}))
    assert made.env == {"PUBLIC_KEY": "ssh-ed25519 PLANTED"} and "PLANTED" not in repr(made)


def test_every_page_of_a_list_is_read(account, us, request_of):
    for n in range(5):
        us.create_pod(request_of(f"musicgen-{n}"))
    account.page = 2
    assert [pod.name for pod in us.pods()] == [f"musicgen-{n}" for n in range(5)]


def test_pages_that_go_in_a_circle_end(account, us, request_of, monkeypatch):
    us.create_pod(request_of())
    monkeypatch.setattr(
        type(account),
        "_list",
        lambda *_: (200, {"pods": [], "pagination": {"nextCursor": "c0", "hasNextPage": True}}),
    )
    assert us.pods() == []


def test_list_that_has_a_next_page_and_no_way_to_it_is_half_a_list(account, us, request_of, monkeypatch):
    us.create_pod(request_of())
    half = {"pods": [], "pagination": {"nextCursor": None, "hasNextPage": True}}
    monkeypatch.setattr(type(account), "_list", lambda *_: (200, half))
    with pytest.raises(UserError, match="no cursor of the next page"):
        us.pods()


def test_gpu_type_has_a_price_where_it_is_offered(us):
    found = {gpu.id: gpu for gpu in us.gpu_types("SECURE", "12.9")}
    assert found["NVIDIA A40"].usd_per_hour == {"SECURE": 0.40, "COMMUNITY": 0.35}
    assert found["NVIDIA H100 80GB HBM3"].usd_per_hour == {"SECURE": 2.69}
    assert found["NVIDIA A40"].stock == {"EU-RO-1": "LOW", "US-KS-2": "HIGH"}
    assert (found["NVIDIA A40"].memory_gb, found["NVIDIA A40"].availability) == (48, "HIGH")
    assert [gpu.id for gpu in found.values() if not gpu.nvidia] == ["AMD Instinct MI300X OAM"]


def test_stock_counts_only_machines_with_that_cuda_version(us):
    assert {gpu.availability for gpu in us.gpu_types("SECURE", "13.1")} == {"NONE"}


def test_data_center_says_which_volumes_it_has(us):
    assert {each.id: each.volume_types for each in us.data_centers()} == {
        "EU-RO-1": ("STANDARD",),
        "US-KS-2": ("STANDARD",),
        "US-TX-3": (),
    }


def test_bills_of_one_pod_have_its_amounts(account, us):
    hour = datetime(2026, 11, 22, 8, tzinfo=UTC)
    account.add_bill("pod1", hour, 0.40, 0.01)
    account.add_bill("pod2", hour, 0.50)
    (bill,) = us.pod_bills(hour, "pod1")
    assert (bill.pod_id, bill.start, bill.gpu_usd, bill.disk_usd) == ("pod1", hour, 0.40, 0.01)
    assert len(us.pod_bills(hour)) == 2


def test_log_goes_on_after_the_line_that_was_seen_last(account, us, request_of):
    made = us.create_pod(request_of())
    seen = us.log(made.id, "system")
    account.pods[made.id].log("system", "worker is ready")
    account.pods[made.id].log("container", "SSH host keys:")
    assert [line.text for line in us.log(made.id, "system", after=seen[-1].id)] == ["worker is ready"]
    assert [line.text for line in us.log(made.id, "container")] == ["SSH host keys:"]


# --- changes


def test_stopped_pod_costs_nothing_and_starts_with_a_new_environment(us, request_of):
    made = us.create_pod(request_of())
    stopped = us.stop(made.id)
    assert (stopped.status, stopped.alive, stopped.usd_per_hour) == ("EXITED", False, 0.0)
    us.change_pod(made.id, {"env": {"MUSICGEN_LIFETIME_END": "1"}})
    assert us.start(made.id).env == {"MUSICGEN_LIFETIME_END": "1"}


def test_terminated_pod_may_be_terminated_again(us, request_of):
    made = us.create_pod(request_of())
    us.terminate(made.id)
    us.terminate(made.id)
    assert us.pods() == []


def test_stop_is_asked_again_after_a_fault_and_start_is_not(account, us, request_of):
    made = us.create_pod(request_of())
    path = f"{PODS}/{made.id}/action"
    account.fault("POST", path, 502, times=2)
    us.stop(made.id)
    assert len(account.sent("POST", path)) == 3
    account.fault("POST", path, 502)
    with pytest.raises(UserError):
        us.start(made.id)
    assert len(account.sent("POST", path)) == 4


def test_volume_is_made_listed_and_deleted(us):
    made = us.create_volume("weights", 100, "EU-RO-1")
    assert us.volumes() == [made]
    us.delete_volume(made.id)
    assert us.volumes() == []


def test_id_that_is_no_path_stays_one_id(account, us):
    assert us.pod("../network-volumes") is None
    with pytest.raises(BadInput, match="there is no id"):
        us.terminate("")


def test_change_is_in_the_audit_log_before_and_after_without_scripts_and_secrets(
    us, account, request_of, tmp_path
):
    us.create_pod(request_of(entrypoint=["sh", "-c", "PLANTED script"], env={"A": "PLANTED value"}))
    intent, result = audit(tmp_path)
    assert (intent["action"], intent["phase"], result["phase"]) == ("runpod.create_pod", "intent", "result")
    assert (result["result"]["id"], result["result"]["usd_per_hour"]) == ("pod0000000", 0.4)
    text = (tmp_path / "audit.jsonl").read_text("utf-8")
    assert "PLANTED" not in text and account.key not in text


@pytest.mark.parametrize("is_heard", [True, False])
def test_end_of_a_pod_does_not_wait_for_the_audit_log(us, request_of, tmp_path, monkeypatch, is_heard):
    made = us.create_pod(request_of())
    if not is_heard:
        monkeypatch.setattr("ops.ui.say", lambda text: (_ for _ in ()).throw(BrokenPipeError()))
    (tmp_path / "audit.jsonl").unlink()
    (tmp_path / "audit.jsonl").mkdir()
    us.terminate(made.id)
    assert us.pods() == []


def test_without_a_key_nothing_is_asked(account, told, monkeypatch):
    monkeypatch.delenv("RUNPOD_API_KEY")
    with pytest.raises(BadInput, match="RUNPOD_API_KEY is not set; make one"):
        RunPod.of(Settings.load(), "test", told)
    assert account.calls == []


# --- a creation whose answer is lost


@pytest.mark.parametrize(
    ("status", "kind"), [(502, "problem"), (500, "html"), (200, "html"), (200, "drop"), (200, "cut")]
)
def test_pod_whose_answer_was_lost_is_found_and_no_second_one_is_made(
    account, us, told, request_of, status, kind
):
    account.fault("POST", PODS, status, kind=kind, acts=True)
    account.list_lag = 3
    assert us.create_pod(request_of()).id == "pod0000000"
    assert len(account.pods) == 1 and len(account.sent("POST", PODS)) == 1
    assert "looking for musicgen-1" in str(told)


def test_pod_that_was_not_made_is_looked_for_as_long_as_lists_lag(account, us, clock, request_of):
    account.fault("POST", PODS, 502)
    with pytest.raises(UserError, match="lists no musicgen-1, so it was not created; try again") as caught:
        us.create_pod(request_of())
    assert sum(clock.slept) == 60 and account.pods == {}
    assert (caught.value.status, caught.value.may_have_acted) == (502, False)


def test_pod_that_may_be_there_is_said_when_nobody_can_tell(account, us, request_of):
    account.fault("POST", PODS, 502, acts=True)
    us._calls._tell = lambda line: account.fault("GET", PODS, 503, times=999)  # from the first word of it on
    with pytest.raises(UserError, match="not known whether musicgen-1 was created") as caught:
        us.create_pod(request_of())
    assert caught.value.may_have_acted and "cost money" in str(caught.value)


def test_other_pod_of_that_time_is_not_taken_for_it(account, us, request_of):
    us.create_pod(request_of("musicgen-other"))
    account.fault("POST", PODS, 502)
    with pytest.raises(UserError):
        us.create_pod(request_of("musicgen-1"))


def test_limited_creation_is_asked_again(account, us, clock, request_of):
    account.fault("POST", PODS, 429, Retry_After="7")
    assert us.create_pod(request_of()).name == "musicgen-1"
    assert clock.slept == [7] and len(account.pods) == 1


@pytest.mark.parametrize("status", [400, 401, 402, 403, 413, 422])
def test_refused_creation_is_not_looked_for(account, us, clock, request_of, status):
    account.fault("POST", PODS, status)
    with pytest.raises(UserError) as caught:
        us.create_pod(request_of())
    assert (caught.value.status, clock.slept) == (status, [])


def test_nothing_is_looked_for_where_nobody_was_reached(us, clock, request_of, monkeypatch):
    monkeypatch.setattr(us.http, "url", "http://127.0.0.1:1")
    with pytest.raises(UserError, match="cannot reach RunPod"):
        us.create_pod(request_of())
    assert sum(clock.slept) < 60


def test_volume_whose_answer_was_lost_is_found_beside_one_of_that_name(account, us):
    account.add_volume("weights")
    account.fault("POST", "/v2/network-volumes", 502, acts=True)
    assert us.create_volume("weights", 50, "EU-RO-1").size_gb == 50
    assert len(account.volumes) == 2


# --- what RunPod refuses, and pods that never become ready


def test_name_in_use_is_refused_before_anything_is_made(account, us, request_of):
    us.create_pod(request_of())
    with pytest.raises(BadInput, match="there is a pod musicgen-1 already"):
        us.create_pod(request_of())
    assert len(account.pods) == 1


def test_no_money_is_402(account, us, request_of):
    account.balance_usd = 0
    with pytest.raises(UserError, match="no money left to create a pod") as caught:
        us.create_pod(request_of())
    assert (caught.value.status, caught.value.code) == (402, 1)


def test_type_that_the_account_may_not_rent_is_403(account, us, request_of):
    account.forbidden = {"NVIDIA A40"}
    with pytest.raises(UserError, match="cannot access this pool") as caught:
        us.create_pod(request_of())
    assert caught.value.status == 403


@pytest.mark.parametrize("reason", ["full", "volume elsewhere", "too little memory", "older CUDA"])
def test_what_cannot_be_placed_is_400_in_runpod_s_words(account, us, request_of, reason):
    more = {}
    if reason == "full":
        account.full = {"NVIDIA A40"}
    elif reason == "volume elsewhere":
        volume = account.add_volume(data_center="EU-RO-1")
        mounts = {"network": [{"volumeId": volume, "path": "/workspace"}]}
        more = {"mounts": mounts, "dataCenterIds": ["US-KS-2"]}
    elif reason == "too little memory":
        account.ram_gb = {"NVIDIA A40": 16}
    else:
        account.gpus["NVIDIA A40"]["cuda"] = ["12.4"]
    with pytest.raises(UserError, match="no longer any instances") as caught:
        us.create_pod(request_of(**more))
    assert caught.value.status == 400


def test_request_that_is_too_large_is_413(us, request_of):
    with pytest.raises(UserError, match="too large") as caught:
        us.create_pod(request_of(cmd=["x" * 110_000]))
    assert caught.value.status == 413


@pytest.mark.parametrize(
    ("life", "address", "last"),
    [
        (["STARTING"], True, ("STARTING", True)),
        (["RUNNING"], False, ("RUNNING", True)),
        (["STARTING", "EXITED"], True, ("EXITED", False)),
        (["STARTING", "ERROR"], True, ("ERROR", False)),
    ],
)
def test_pod_that_never_becomes_ready_has_no_address(account, us, request_of, life, address, last):
    account.life, account.has_address = life, address
    made = us.create_pod(request_of())
    seen = [us.pod(made.id) for _ in range(3)]
    assert {pod.address for pod in seen} == {None}
    assert (seen[-1].status, seen[-1].alive) == last


def test_pod_that_fails_may_be_started_again(account, us, request_of):
    account.life = ["STARTING", "ERROR"]
    made = us.create_pod(request_of())
    assert us.pod(made.id).actions == ("start", "terminate")
    account.life = ["RUNNING"]
    us.start(made.id)
    assert us.pod(made.id).address.port == 40001


def test_host_without_a_free_gpu_refuses_the_start(account, us, request_of):
    made = us.create_pod(request_of())
    us.stop(made.id)
    account.host_is_full = True
    with pytest.raises(UserError, match="not enough free GPUs"):
        us.start(made.id)


def test_accepted_end_is_no_end(account, us, request_of):
    made = us.create_pod(request_of())
    account.deaf = True
    us.terminate(made.id)
    assert [pod.id for pod in us.pods()] == [made.id]


def test_deleted_pod_may_be_listed_for_a_while(account, us, request_of):
    account.delete_lag = 2
    made = us.create_pod(request_of())
    us.terminate(made.id)
    assert [len(us.pods()) for _ in range(3)] == [1, 1, 0]
