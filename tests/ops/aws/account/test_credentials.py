"""Lent credentials: scoped to one prefix, temporary, and one line when AWS lends none."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from ops.aws.account import credentials, policies
from ops.aws.session import Aws
from ops.settings import Settings
from worker.errors import BadInput, UserError


@pytest.fixture
def me(aws, tmp_path):
    """The operator, in the fake account."""
    env = {
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_ENDPOINT_URL": aws.url,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "long-lived-secret",
        "MUSICGEN_AUDIT_LOG": str(tmp_path / "audit.jsonl"),
    }
    return Aws(Settings.load(env=env), "install")


def allowed(policy):
    """Every resource that some statement allows something on."""
    for statement in json.loads(policy)["Statement"]:
        if statement["Effect"] == "Allow":
            resources = statement["Resource"]
            yield from [resources] if isinstance(resources, str) else resources


def test_session_policy_is_the_worker_s_and_names_no_other_place():
    policy = credentials.session_policy("bucket", "album")
    assert json.loads(policy) == policies.worker("bucket", "album")
    bucket = "arn:aws:s3:::bucket"
    assert all(place == bucket or place.startswith(f"{bucket}/album/") for place in allowed(policy))


def test_prefix_that_makes_the_policy_too_long_is_refused():
    with pytest.raises(BadInput, match="shorten MUSICGEN_S3_PREFIX"):
        credentials.session_policy("bucket", "p" * 500)


def test_role_is_taken_for_twelve_hours_under_the_policy(me, aws):
    lent = credentials.lend(me, "bucket", "album")
    (asked,) = aws.sent("AssumeRole")
    assert asked["RoleArn"] == "arn:aws:iam::123456789012:role/musicgen-pod-role"
    assert asked["Policy"] == credentials.session_policy("bucket", "album")
    left = lent.expires - datetime.now(UTC)
    assert timedelta(hours=11) < left <= timedelta(hours=12)
    document = json.loads(lent.document)
    assert set(document) == {"Version", "AccessKeyId", "SecretAccessKey", "SessionToken", "Expiration"}


def test_shorter_session_is_taken_where_the_role_has_a_lower_limit(me, aws):
    aws.fail("AssumeRole", "ValidationError", times=1)
    lent = credentials.lend(me, "bucket")
    assert [asked["DurationSeconds"] for asked in aws.sent("AssumeRole")] == ["43200", "3600"]
    assert lent.expires - datetime.now(UTC) <= timedelta(hours=1)


def test_federation_token_does_where_the_role_is_refused(me, aws):
    aws.fail("AssumeRole", "AccessDenied", times=9, status=403)
    assert credentials.lend(me, "bucket").source == "a federation token"


def test_missing_permission_is_named_where_nothing_is_lent(me, aws):
    for action in ("AssumeRole", "GetFederationToken"):
        aws.fail(action, "AccessDenied", times=9, status=403)
    with pytest.raises(UserError) as caught:
        credentials.lend(me, "bucket")
    text = str(caught.value)
    assert "sts:AssumeRole on arn:aws:iam::123456789012:role/musicgen-pod-role" in text
    assert "sts:GetFederationToken" in text and "--use-my-keys" in text and "\n" not in text


def test_own_keys_are_sent_only_on_request_and_do_not_expire(me):
    own = credentials.own(me)
    assert json.loads(own.document)["SecretAccessKey"] == "long-lived-secret"
    assert own.expires is None


def test_no_secret_is_in_the_audit_log_or_a_repr(me, tmp_path):
    lent = credentials.lend(me, "bucket")
    keys = json.loads(lent.document)
    written = (tmp_path / "audit.jsonl").read_text()
    assert "sts.assume_role" in written
    for secret in (keys["SecretAccessKey"], keys["SessionToken"]):
        assert secret not in written and secret not in repr(lent)
