"""The whole way of a new account, with the real `inv` each time: prepare, rent, look, end, look again."""

import json

import boto3

from ops.aws.fleet import kill
from ops.aws.session import PROJECT
from tests.fakes.aws import user_data


def test_setup_launch_status_kill_all_status(aws, inv, tmp_path, monkeypatch):
    monkeypatch.setattr(kill, "POLL_S", 0.02)
    for zone, usd in (("us-east-1a", 0.21), ("us-east-1b", 0.19)):
        aws.set_price("g4dn.xlarge", zone, usd)
    (tmp_path / "prompts.txt").write_text("calm piano ; 60 ; calm\n", "utf-8")
    lines = [
        "# mine",
        f"MUSICGEN_AMI_ID={aws.image()}",
        f"MUSICGEN_KEY_FILE={tmp_path / 'key.pem'}",
        f"MUSICGEN_AUDIT_LOG={tmp_path / 'audit.jsonl'}",
        "MUSICGEN_SSH_FROM=203.0.113.7/32",
    ]
    (tmp_path / ".env").write_text("\n".join(lines) + "\n", "utf-8")

    missing = inv("launch", "--yes")
    assert missing.code == 2 and "inv setup" in missing.err

    prepared = inv("setup", "--yes")
    assert prepared.code == 0, prepared.err
    written = (tmp_path / ".env").read_text("utf-8").splitlines()
    assert written[: len(lines)] == lines
    (bucket,) = [line.removeprefix("MUSICGEN_S3_BUCKET=") for line in written if "S3_BUCKET" in line]

    launched = inv("launch", "--yes")
    assert launched.code == 0, launched.err
    (instance,) = aws.alive(PROJECT)
    assert instance in launched.out

    seen = inv("status", "--json")
    assert seen.code == 0, seen.err
    (row,) = json.loads(seen.out)
    assert (row["id"], row["per_hour_usd"], row["overdue"]) == (instance, 0.19, False)

    ended = inv("kill-all", "--yes")
    assert ended.code == 0, ended.err
    assert aws.alive() == []
    assert boto3.client("scheduler").list_schedules()["Schedules"] == []

    after = inv("status")
    assert after.code == 0 and "no machine of this project in 3 regions" in after.err

    # What setup made is what the launch used, and the audit log has the whole story.
    (sent,) = aws.sent("RunInstances")
    assert sent["IamInstanceProfile.Name"] == "musicgen-worker-role"
    assert f"CODE_BUCKET={bucket}\n" in user_data(sent)
    lines = [json.loads(line) for line in (tmp_path / "audit.jsonl").read_text().splitlines()]
    tasks = [line["task"] for line in lines]
    assert sorted(set(tasks), key=tasks.index) == ["setup", "launch", "kill-all"]
    intents = {line["id"] for line in lines if line["phase"] == "intent"}
    assert intents == {line["id"] for line in lines if line.get("outcome") == "done"}
