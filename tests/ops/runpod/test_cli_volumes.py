"""inv pod.volume-list, volume-create and volume-delete: what is shown, asked, done and still billed."""

import json
import signal

import pytest

from ops.runpod.bills import LISTED


def on(volume):
    return {"mounts": {"network": [{"volumeId": volume, "path": "/workspace"}]}}


def test_volumes_of_the_whole_account_are_listed_with_what_they_cost_and_who_has_them(inv, account, running):
    running("musicgen-1", **on(account.add_volume("weights", 100)))
    account.add_volume("other", 10)
    done = inv("pod.volume-list", "--json")
    rows = json.loads(done.out)
    assert [(row["name"], row["per_month_usd"], row["used_by"]) for row in rows] == [
        ("weights", pytest.approx(7.0), "pod0000000"),
        ("other", pytest.approx(0.7), ""),
    ]
    assert done.err == f"2 network volumes, $7.70 a month, used or not ({LISTED}, standard storage)\n"


def test_no_volume_is_no_error(inv):
    done = inv("pod.volume-list")
    assert done.code == 0 and "no network volume" in done.err


def test_new_volume_is_asked_for_with_its_price_and_says_the_line_for_env(inv, account):
    arguments = ["pod.volume-create", "--size", "50", "--data-center", "EU-RO-1"]
    assert inv(*arguments).code == 3 and account.volumes == {}
    done = inv(*arguments, typed="y\n")
    assert f"Make it, for $3.50 a month ({LISTED}) until it is deleted?" in done.err
    assert done.out.endswith("vol0000001\n") and "RUNPOD_NETWORK_VOLUME_ID=vol0000001" in done.err
    assert account.volumes["vol0000001"] | {"type": ""} == {
        "id": "vol0000001",
        "name": "musicgen-songs",
        "size": 50,
        "dataCenter": "EU-RO-1",
        "type": "",
    }


def test_new_volume_as_json_is_only_json(inv):
    done = inv("pod.volume-create", "--data-center", "EU-RO-1", "--yes", "--json")
    assert [row["id"] for row in json.loads(done.out)] == ["vol0000001"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "a volume is in one data centre; give --data-center with one of EU-RO-1, US-KS-2"),
        (["--data-center", "US-TX-3"], "US-TX-3 has no network volumes; give --data-center"),
        (["--data-center", "EU-RO-1", "--size", "9"], "--size 9 is not from 10 to 4096 GB"),
        (["--data-center", "EU-RO-1", "--size", "5000"], "--size 5000 is not from 10 to 4096 GB"),
    ],
)
def test_volume_that_cannot_be_is_2_and_is_not_made(inv, account, arguments, words):
    done = inv("pod.volume-create", "--yes", *arguments)
    assert done.code == 2 and words in done.err and account.volumes == {}


def test_second_volume_of_the_same_name_is_refused(inv, account):
    arguments = ["pod.volume-create", "--yes", "--data-center", "EU-RO-1"]
    assert inv(*arguments).code == 0
    done = inv(*arguments)
    assert done.code == 2 and list(account.volumes) == ["vol0000001"]
    assert "there is a network volume musicgen-songs already, vol0000001" in done.err
    assert inv(*arguments, "--name", "musicgen-other").code == 0


@pytest.mark.parametrize("status", [None, 502, 402])
def test_interrupted_creation_of_a_volume_says_what_there_is(inv, account, status):
    def respond(call, *rest, before=account.respond):
        answer = before(call, *rest)
        if (call.method, call.path) == ("POST", "/v2/network-volumes"):
            signal.raise_signal(signal.SIGINT)
        return answer

    account.respond = respond
    if status:
        account.fault("POST", "/v2/network-volumes", status, acts=status == 502)
    done = inv("pod.volume-create", "--yes", "--data-center", "EU-RO-1")
    if status == 402:
        assert done.code == 1 and "error: the RunPod account has no money left" in done.err
    else:
        assert done.code == 75 and "run the same command again" not in done.err
        assert "error: interrupted after network volume vol0000001 was made, which costs $7.00 a" in done.err


def test_volume_without_money_is_one_line(inv, account):
    account.fault("POST", "/v2/network-volumes", 402, "insufficient balance")
    done = inv("pod.volume-create", "--yes", "--data-center", "EU-RO-1")
    assert done.code == 1 and "error: the RunPod account has no money left to create a network" in done.err


def test_unused_volume_is_deleted_after_a_yes(inv, account):
    volume = account.add_volume("songs", 100)
    assert inv("pod.volume-delete", "--volume", volume).code == 3
    done = inv("pod.volume-delete", "--volume", volume, "--yes")
    assert done.code == 0 and account.volumes == {}
    assert done.err == "network volume vol0000001 is gone, and $7.00 a month with it\n"


@pytest.mark.parametrize("name", ["musicgen-1", "of-somebody-else"])
@pytest.mark.parametrize("is_stopped", [True, False])
def test_volume_that_a_pod_has_is_not_deleted(inv, account, us, running, name, is_stopped):
    volume = account.add_volume()
    (pod,) = running(name, **on(volume))
    if is_stopped:
        us.stop(pod)
    done = inv("pod.volume-delete", "--volume", volume, "--yes")
    assert done.code == 1 and f"is used by {pod}" in done.err and volume in account.volumes
    assert [call for call in account.calls if call.method == "DELETE"] == []


@pytest.mark.parametrize("volume", ["", "vol9"])
def test_volume_of_nobody_is_2(inv, volume):
    assert inv("pod.volume-delete", "--volume", volume, "--yes").code == 2


@pytest.mark.parametrize(("status", "times", "code"), [(503, 4, 0), (503, 999, 1), (403, 1, 1)])
def test_volume_that_is_not_seen_to_be_gone_may_be_left(inv, account, status, times, code):
    volume, delete = account.add_volume(), account._delete_volume

    def then_fails(call, volume_id):
        account.fault("GET", "/v2/network-volumes", status, times=times)
        return delete(call, volume_id)

    account._delete_volume = then_fails
    done = inv("pod.volume-delete", "--volume", volume, "--yes")
    assert done.code == code
    assert (f"error: network volume {volume} may be left, and STILL BILLING" in done.err) == (code == 1)


def test_volume_that_stays_listed_is_1_and_still_billing(inv, account):
    volume = account.add_volume()
    account._delete_volume = lambda call, volume_id: (204, None)
    done = inv("pod.volume-delete", "--volume", volume, "--yes")
    assert done.code == 1 and "STILL BILLING" in done.err
