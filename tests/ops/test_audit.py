"""ops/audit.py: the intent is on disk before the action, the result is never lost, secrets are not in it."""

import errno
import hashlib
import json
import os
import threading

import pytest

from ops.audit import AuditLog, redacted
from worker.errors import UserError

SECRET = "wJalrXUtnFEMI-planted-secret"


@pytest.fixture
def log(tmp_path):
    return AuditLog(tmp_path / "deep" / "audit.jsonl", actor="arn:me", region="us-east-1", task="launch")


def lines(log):
    return [json.loads(line) for line in log.path.read_text("ascii").splitlines() if line]


def full_disk(*_):
    raise OSError(errno.ENOSPC, "No space left on device")


# --- what is written


def test_intent_is_on_disk_while_the_action_runs(log):
    with log.action("ec2.run_instances", {"MinCount": 1}) as done:
        (intent,) = lines(log)
        done({"InstanceId": "i-1"})
    assert (intent["phase"], intent["action"], intent["request"]) == (
        "intent",
        "ec2.run_instances",
        {"MinCount": 1},
    )


def test_result_is_on_disk_as_soon_as_it_is_known(log):
    with log.action("ec2.run_instances") as done:
        done({"InstanceId": "i-1"}, instance_id="i-1", price_usd=0.21)
        result = lines(log)[1]
        assert (result["instance_id"], result["price_usd"], result["outcome"]) == ("i-1", 0.21, "done")


def test_intent_and_result_share_an_id_that_no_other_action_has(log):
    for _ in range(2):
        with log.action("s3.create_bucket"):
            pass
    ids = [line["id"] for line in lines(log)]
    assert ids[0] == ids[1] != ids[2] == ids[3]


def test_every_line_tells_who_where_when_and_with_what(log):
    with log.action("s3.create_bucket", region="eu-west-1", dry_run=True):
        pass
    for line in lines(log):
        assert (line["actor"], line["task"], line["region"], line["dry_run"]) == (
            "arn:me",
            "launch",
            "eu-west-1",
            True,
        )
        assert line["host"] and line["version"] and line["ts"].endswith("Z")
    assert lines(log)[1]["duration_s"] >= 0


def test_failed_action_leaves_its_error_and_goes_on(log):
    with pytest.raises(UserError, match="no capacity"), log.action("ec2.run_instances"):
        raise UserError("no capacity; wait")
    assert (lines(log)[1]["outcome"], lines(log)[1]["error"]) == ("failed", "UserError: no capacity; wait")


def test_ctrl_c_in_the_action_is_written(log):
    with pytest.raises(KeyboardInterrupt), log.action("ec2.run_instances"):
        raise KeyboardInterrupt
    assert lines(log)[1]["outcome"] == "failed"


def test_lines_of_many_threads_stay_whole(log):
    def act():
        for _ in range(20):
            with log.action("s3.put_object", {"Key": "k" * 2000}):
                pass

    threads = [threading.Thread(target=act) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(lines(log)) == 8 * 20 * 2


def test_line_cut_by_a_crash_does_not_spoil_the_next(log):
    log.path.parent.mkdir()
    log.path.write_bytes(b'{"phase": "int')
    with log.action("s3.create_bucket"):
        pass
    cut, *whole = log.path.read_text().splitlines()
    assert cut == '{"phase": "int' and len([json.loads(line) for line in whole]) == 2


def test_log_is_for_its_owner_only(log):
    with log.action("s3.create_bucket"):
        pass
    assert log.path.stat().st_mode & 0o777 == 0o600


# --- when it cannot be written


def test_without_a_written_intent_nothing_is_done(log, monkeypatch):
    monkeypatch.setattr(os, "write", full_disk)
    with pytest.raises(UserError, match="nothing was done"), log.action("ec2.run_instances"):
        pytest.fail("the action ran")


def test_what_costs_money_is_ended_even_so_and_its_lines_are_shown(log, monkeypatch, capsys):
    monkeypatch.setattr(os, "write", full_disk)
    with log.action("ec2.terminate_instances", {"InstanceIds": ["i-1"]}, ends=True) as done:
        done({"state": "shutting-down"})
    shown = [json.loads(line) for line in capsys.readouterr().err.splitlines() if line.startswith("{")]
    assert [line["phase"] for line in shown] == ["intent", "result"]
    assert shown[0]["request"] == {"InstanceIds": ["i-1"]}


def test_folder_in_the_place_of_the_log_is_an_error_before_the_action(tmp_path):
    with pytest.raises(UserError, match="MUSICGEN_AUDIT_LOG"), AuditLog(tmp_path).action("x"):
        pytest.fail("the action ran")


def test_result_that_cannot_be_written_is_shown_and_loses_nothing(log, monkeypatch, capsys):
    with log.action("ec2.run_instances") as done:
        monkeypatch.setattr(os, "fsync", full_disk)
        done({"InstanceId": "i-1"}, instance_id="i-1")
    warning, line = capsys.readouterr().err.splitlines()
    assert "cannot write the audit log" in warning
    assert json.loads(line)["instance_id"] == "i-1"


# --- secrets


def test_secrets_and_user_data_are_not_in_it(log):
    request = {
        "UserData": "#!/bin/sh\necho hello",
        "ClientToken": "unique",
        "Credentials": {"SecretAccessKey": SECRET},
        "deep": [{"SessionToken": SECRET, "KeyMaterial": SECRET, "Name": "shown"}],
    }
    with log.action("ec2.run_instances", request) as done:
        done({"KeyMaterial": SECRET, "Password": SECRET})
    text = log.path.read_text()
    assert SECRET not in text and "echo hello" not in text
    kept = lines(log)[0]["request"]
    assert kept["UserData"]["sha256"] == hashlib.sha256(request["UserData"].encode()).hexdigest()
    assert (kept["ClientToken"], kept["deep"][0]["Name"]) == ("unique", "shown")


def test_known_secret_is_not_in_it_wherever_it_stands(tmp_path):
    log = AuditLog(tmp_path / "audit.jsonl", secrets=[SECRET, 'pa"ss\\word'])
    with pytest.raises(ValueError), log.action("x", {"Url": f"https://h/?key={SECRET}", "n": 'pa"ss\\word'}):
        raise ValueError(f"refused {SECRET}")
    assert SECRET not in log.path.read_text() and "word" not in log.path.read_text()


@pytest.mark.parametrize(
    "name", ["password", "RUNPOD_API_KEY", "Authorization", "aws_session_token", "token"]
)
def test_value_under_a_secret_name_is_hidden(name):
    assert redacted({name: "x"}) == {name: "***"}


@pytest.mark.parametrize(
    "name", ["ClientToken", "NextToken", "KeyName", "Key", "KeyPairId", "PublicKeyMaterial"]
)
def test_value_under_a_plain_name_is_shown(name):
    assert redacted({name: "x"}) == {name: "x"}
