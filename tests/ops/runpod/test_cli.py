"""The RunPod tasks of `inv` as a user meets them: rows on stdout, one-line errors, exit codes, no secrets."""

import json
import os
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]


@pytest.fixture
def inv(account, commands, tmp_path):
    """The real `inv` in a folder of the user's, who has only this account."""

    def run(*arguments, **more):
        env = os.environ | more
        done = commands("inv", "--search-root", str(ROOT), *arguments, cwd=tmp_path, env=env)
        out, err = done.stdout.decode(), done.stderr.decode()
        assert account.key not in out + err
        return subprocess.CompletedProcess(arguments, done.returncode, out, err)

    return run


def test_offers_are_rows_and_a_closing_line(inv):
    done = inv("pod.offers", "--max-price", "0.60", "--json")
    rows = json.loads(done.stdout)
    assert done.returncode == 0
    assert [row["gpu"] for row in rows if row["state"] == "will do"] == ["NVIDIA A40", "NVIDIA RTX A6000"]
    assert done.stderr == "2 offers of 6 will do; first: NVIDIA A40 (cheapest per hour)\n"


def test_offers_are_a_table_for_people(inv):
    done = inv("pod.offers", "--max-price", "0.60")
    (line,) = (line for line in done.stdout.splitlines() if "A40" in line)
    assert [cell.strip() for cell in line.strip("│").split("│")] == [
        *("NVIDIA A40", "SECURE", "48", "$0.40", "HIGH", "EU-RO-1, US-KS-2", ""),
        "will do (cheapest per hour)",
    ]


def test_maximum_price_is_that_of_the_settings(inv):
    prices = {"MUSICGEN_MAX_PRICE": "0.45"}
    (row,) = (r for r in json.loads(inv("pod.offers", "--json", **prices).stdout) if r["state"] == "will do")
    assert row["gpu"] == "NVIDIA A40"


@pytest.mark.parametrize(
    ("env", "usable"),
    [({}, True), ({"MUSICGEN_MAX_PRICE": "0.40"}, False)],
    ids=["its own", "set"],
)
def test_training_has_a_maximum_price_of_its_own_unless_one_is_set(inv, env, usable):
    done = inv("pod.offers", "--for", "train", "--json", **env)
    first = json.loads(done.stdout)[0]
    assert done.returncode == 0
    states = {row["gpu"]: row["state"] for row in json.loads(done.stdout)}
    assert (states["NVIDIA GeForce RTX 4090"] == "will do") is usable
    # At $0.44 it is the first choice before the A40 at $0.40.
    assert first["gpu"] == ("NVIDIA GeForce RTX 4090" if usable else "NVIDIA A40")


def test_nothing_that_will_do_is_1_and_says_why(inv, account):
    for kind in account.gpus.values():
        kind["stock"] = {}
    done = inv("pod.offers")
    assert done.returncode == 1 and "none free with CUDA 12.9 now" in done.stdout
    assert done.stderr.startswith("error: no offer will do for musicgen at $0.40 an hour or less; give ")


@pytest.mark.parametrize(
    ("arguments", "env", "words"),
    [
        ([], {"RUNPOD_API_KEY": ""}, "RUNPOD_API_KEY is not set"),
        ([], {"RUNPOD_API_KEY": "of nobody"}, "copy it again"),
        ([], {"RUNPOD_API_URL": "http://api.runpod.io"}, "unencrypted"),
        (["--for", "singing"], {}, "--for singing"),
        (["--cloud", "private"], {}, "--cloud private"),
        (["--max-price", "cheap"], {}, "--max-price 'cheap'"),
        ([], {"RUNPOD_CLOUD": "private"}, "RUNPOD_CLOUD=private"),
        (["--cloud", "community"], {"RUNPOD_NETWORK_VOLUME_ID": "vol1"}, "secure cloud only"),
    ],
)
def test_wrong_input_is_2_before_any_call(inv, account, arguments, env, words):
    done = inv("pod.offers", *arguments, **env)
    assert (done.returncode, done.stdout, account.calls) == (2, "", [])
    assert done.stderr.startswith("error: ") and words in done.stderr and done.stderr.count("\n") == 1


def test_wrong_key_is_2(inv):
    done = inv("pod.offers", RUNPOD_API_KEY="rpa_OF_NOBODY")
    assert done.returncode == 2 and "does not know this API key" in done.stderr


def test_volume_of_nobody_is_2(inv):
    done = inv("pod.offers", RUNPOD_NETWORK_VOLUME_ID="vol9")
    assert done.returncode == 2 and "no network volume vol9" in done.stderr


def test_key_is_not_shown_by_debug_output(inv, account):
    account.fault("GET", "/v2/catalog/gpus", 403)
    assert inv("-d", "pod.offers").returncode == 1  # the fixture looks for the key
    assert inv("-d", "pod.offers").returncode == 0


# --- inv pod.create


def created(account):
    return account.sent("POST", "/v2/pods")


def test_creation_shows_its_plan_and_asks(inv, account, ssh_key):
    done = inv("pod.create")
    assert done.returncode == 3 and "agree with --yes" in done.stderr and created(account) == []
    assert "NVIDIA A40, secure cloud, first of 1 offer" in done.stdout and "worst case" in done.stdout


def test_dry_run_creates_nothing(inv, account, ssh_key):
    done = inv("pod.create", "--dry-run", "--json")
    plan = {row["what"]: row["plan"] for row in json.loads(done.stdout)}
    assert done.returncode == 0 and plan["price now"] == "$0.40 per hour" and created(account) == []


@pytest.mark.parametrize(
    ("arguments", "env", "words"),
    [
        (["--spot"], {}, "--spot: RunPod has no spot pods"),
        (["--bid", "0.2"], {}, "--bid: RunPod has no spot pods"),
        (["--json"], {}, "--json cannot ask"),
        (["--lifetime", "1m"], {}, "from 10 minutes to 7 days"),
        (["--disk-gb", "10"], {}, "too little for musicgen"),
        ([], {"RUNPOD_SSH_KEY": "/nowhere/key"}, "there is no SSH key"),
        ([], {"RUNPOD_HOST": "a@ssh.runpod.io"}, "takes no files"),
        ([], {"MUSICGEN_MAX_PRCE": "0.1"}, "there is no setting MUSICGEN_MAX_PRCE"),
    ],
)
def test_creation_that_cannot_work_is_2_before_any_call(inv, account, ssh_key, arguments, env, words):
    done = inv("pod.create", *arguments, **env)
    assert (done.returncode, done.stdout, account.calls) == (2, "", [])
    assert words in done.stderr and done.stderr.count("\n") == 1


def test_pod_for_another_family_than_the_model_s_is_said_before_the_question(inv, ssh_key):
    done = inv("pod.create", "--for", "heartmula")
    assert done.returncode == 3
    assert "warning: the pod is for heartmula, and MUSICGEN_MODEL=facebook/musicgen-medium is what runs" in (
        done.stderr
    )
    done = inv("pod.create", MUSICGEN_MODEL="heartmula")
    assert "for heartmula: NVIDIA A40" in done.stdout and "80 GB, " in done.stdout
    assert "warning" not in done.stderr


def test_pod_that_is_there_already_is_shown_and_0(inv, account, us, request_of, ssh_key):
    there = us.create_pod(request_of("musicgen-other"))
    done = inv("pod.create", "--yes")
    assert done.returncode == 0 and there.id in done.stdout and len(created(account)) == 1
    assert f"there is a pod already, nothing was created: {there.id}" in done.stderr


def test_failed_pod_beside_a_new_one_is_said_to_be_billed_perhaps(inv, account, us, request_of, ssh_key):
    failed, stopped = (us.create_pod(request_of(name)).id for name in ("musicgen-1", "musicgen-2"))
    account.pods[failed].life, account.pods[stopped].life = ["ERROR"], ["EXITED"]
    done = inv("pod.create", "--dry-run")
    assert f"warning: {failed} is ERROR, and may be billed until: inv pod.terminate --pod {failed}\n" in (
        done.stderr
    )
    assert done.returncode == 0 and stopped not in done.stderr


@pytest.mark.parametrize("host", ["", "root@203.0.113.9"])
def test_host_of_the_settings_that_fabric_prefers_to_the_new_pod_is_named(inv, account, ssh_key, host):
    account.balance_usd = 0
    done = inv("pod.create", "--yes", RUNPOD_HOST=host)
    assert ("warning: RUNPOD_HOST is set, so Fabric goes there" in done.stderr) == bool(host)


def test_creation_that_runpod_refuses_is_one_line_without_the_key(inv, account, ssh_key):
    account.balance_usd = 0
    done = inv("-d", "pod.create", "--yes")  # the fixture looks for the key
    errors = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert done.returncode == 1 and len(errors) == 1 and "has no money left" in errors[0]
    assert account.billed() == []
