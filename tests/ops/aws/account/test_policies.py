"""ops/aws/account/policies.py: actions that exist, sizes that AWS takes, and no more than is needed."""

import importlib.util
import json
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops.aws.account import policies
from ops.aws.errors import IAM_ACTIONS
from ops.aws.session import PROJECT

ROOT = Path(__file__).parents[4]
BUCKET = "musicgen-batch-output-test"
ALL = {
    "worker": policies.worker(BUCKET),
    "worker below a prefix": policies.worker(BUCKET, "album/2026"),
    "operator": policies.operator(),
    "scheduler": policies.scheduler("123456789012"),
    "tls": policies.tls_only(BUCKET),
    "trust of a service": policies.service_trust("ec2.amazonaws.com", "123456789012"),
    "trust of a caller": policies.caller_trust("arn:aws:iam::123456789012:user/me"),
}


def actions(policy):
    for statement in policy["Statement"]:
        found = statement["Action"]
        yield from [found] if isinstance(found, str) else found


@pytest.fixture(scope="module")
def known():
    """Every IAM action, as AWS's policy generator lists them; in cfn-lint, which comes with moto."""
    package = importlib.util.find_spec("cfnlint")
    assert package and package.origin
    file = Path(package.origin).parent / "data" / "AdditionalSpecs" / "Policies.json"
    services = json.loads(file.read_text("utf-8"))
    return {f"{prefix}:{action}".lower() for prefix, one in services.items() for action in one["Actions"]}


# --- they are valid


@pytest.mark.parametrize("name", ALL)
def test_every_action_exists(name, known):
    assert [action for action in actions(ALL[name]) if action.lower() not in known | {"s3:*"}] == []


def test_every_action_that_an_error_names_exists(known):
    assert [action for action in IAM_ACTIONS.values() if action.lower() not in known] == []


def test_the_list_of_actions_knows_a_wrong_one(known):
    assert "s3:headobject" not in known and "s3:getobject" in known


@pytest.mark.parametrize("name", ALL)
def test_every_policy_has_the_shape_that_aws_reads(name):
    policy = ALL[name]
    assert policy["Version"] == policies.VERSION
    for statement in policy["Statement"]:
        assert statement["Effect"] in ("Allow", "Deny")
        assert ("Resource" in statement) != ("Principal" in statement) or name == "tls"
        for resource in [statement.get("Resource", "*")]:
            for each in [resource] if isinstance(resource, str) else resource:
                assert each == "*" or re.fullmatch(r"arn:aws:[a-z0-9]+:[a-z0-9*-]*:[0-9*]*:\S+", each)


def test_operator_policy_fits_a_managed_policy():
    assert len(re.sub(r"\s", "", json.dumps(policies.operator()))) <= 6144


@given(st.text("abcdefghijklmnopqrstuvwxyz0123456789/-", max_size=60))
def test_worker_policy_fits_a_session_policy(prefix):
    assert len(json.dumps(policies.worker("b" * 63, prefix.strip("/")), separators=(",", ":"))) <= 2048


def test_operator_policy_in_docs_is_the_generated_one():
    written = (ROOT / policies.OPERATOR_FILE).read_text("utf-8")
    assert written == policies.operator_json(), (
        f"write ops.aws.account.policies.operator_json() to {policies.OPERATOR_FILE}"
    )


def test_policies_follow_the_partition():
    text = json.dumps(policies.operator("aws-cn")) + json.dumps(policies.worker(BUCKET, "", "aws-cn"))
    assert "arn:aws:" not in text


# --- they allow no more than is needed


def test_only_the_bucket_s_own_policy_has_a_wildcard_action():
    assert [name for name, policy in ALL.items() if any("*" in action for action in actions(policy))] == [
        "tls"
    ]


@given(st.text("abcdefghijklmnopqrstuvwxyz0123456789/-", min_size=1, max_size=60).map(lambda p: p.strip("/")))
def test_worker_is_held_below_its_prefix(prefix):
    below = f"arn:aws:s3:::{BUCKET}/{prefix}/" if prefix else f"arn:aws:s3:::{BUCKET}/"
    listing, *rest = policies.worker(BUCKET, prefix)["Statement"]
    assert listing["Action"] == "s3:ListBucket" and (not prefix or listing["Condition"])
    for statement in rest:
        resources = statement["Resource"]
        assert all(r.startswith(below) for r in ([resources] if isinstance(resources, str) else resources))


def test_worker_may_delete_marks_and_checkpoints_only():
    deleting = [s for s in policies.worker(BUCKET, "a")["Statement"] if s["Action"] == "s3:DeleteObject"]
    (statement,) = deleting
    assert [r.rpartition(f"{BUCKET}/")[2] for r in statement["Resource"]] == ["a/claims/*", "a/checkpoints/*"]


DANGEROUS = (
    "ec2:TerminateInstances ec2:StopInstances ec2:DeleteVolume ec2:DeleteSnapshot ec2:DeregisterImage "
    "ec2:DeleteSecurityGroup ec2:DeleteKeyPair ec2:CancelSpotInstanceRequests"
).split()


@pytest.mark.parametrize("action", DANGEROUS)
def test_operator_may_only_end_what_bears_our_tag(action):
    for statement in policies.operator()["Statement"]:
        if action in statement["Action"]:
            assert statement["Condition"]["StringEquals"] == {"aws:ResourceTag/Project": PROJECT}


def test_operator_may_only_rent_what_bears_our_tag():
    renting = [s for s in policies.operator()["Statement"] if "ec2:RunInstances" in s["Action"]]
    tagged = {"StringEquals": {"aws:RequestTag/Project": PROJECT}}
    kinds = {r.rpartition(":")[2] for s in renting if s.get("Condition") == tagged for r in s["Resource"]}
    assert kinds == {"instance/*", "network-interface/*", "spot-instances-request/*", "volume/*"}
    free = {r.rpartition(":")[2] for s in renting if "Condition" not in s for r in s["Resource"]}
    assert not kinds & free and "*" not in free


def test_operator_may_only_hand_our_roles_to_the_two_services():
    (statement,) = [s for s in policies.operator()["Statement"] if s["Action"] == "iam:PassRole"]
    assert statement["Resource"] == "arn:aws:iam::*:role/musicgen-*"
    assert statement["Condition"]["StringEquals"]["iam:PassedToService"] == [
        "ec2.amazonaws.com",
        "scheduler.amazonaws.com",
    ]


def test_operator_changes_roles_and_buckets_of_ours_only():
    for statement in policies.operator()["Statement"]:
        resources = statement["Resource"]
        for action in [statement["Action"]] if isinstance(statement["Action"], str) else statement["Action"]:
            if re.match("(iam|s3|budgets|scheduler):(Put|Create|Delete|Update|Modify|Add|Remove)", action):
                for each in [resources] if isinstance(resources, str) else resources:
                    assert "musicgen-" in each or "spot.amazonaws.com" in each


# --- the operator's policy and the program agree


def test_operator_may_do_every_call_that_the_program_makes():
    allowed = set(actions(policies.operator()))
    assert {action for action in called() if action not in allowed} == set()


def test_operator_may_do_nothing_that_the_program_never_does():
    # What a call needs beside its own action, what S3's store in worker/ does, and calls by another way.
    needs = {
        "ec2:CancelSpotInstanceRequests",
        "ec2:DeleteVolume",
        "s3:GetBucketLocation",
        "ec2:CreateTags",
        "iam:CreateServiceLinkedRole",
        "iam:PassRole",
        "iam:TagInstanceProfile",
        "iam:TagRole",
        "s3:DeleteObject",
        "s3:GetObject",
        "s3:ListBucket",
        "s3:PutObject",
        "sts:AssumeRole",
        "sts:GetFederationToken",
    }
    assert sorted(set(actions(policies.operator())) - called() - needs) == []


def called():
    """IAM actions of the calls in ops/aws, which all go through `ask`, `act`, `end`, `pages` or a client."""
    calls = set()
    for file in (ROOT / "ops" / "aws").rglob("*.py"):
        text = file.read_text("utf-8")
        for service, operation in re.findall(r'\.(?:ask|act|end|pages)\(\s*"([\w-]+)",\s*"(\w+)"', text):
            calls.add((service, operation))
        for operation in re.findall(r'(?:now|change)\(\s*"(\w+)"', text):  # of ops/aws/account/bucket.py
            calls.add(("s3", operation))
        for service, operation in re.findall(r'client\("([\w-]+)"[^()]*\)\.(\w+)\(', text):
            calls.add((service, operation))
    prefixes = {"service-quotas": "servicequotas"}
    # The names of operations as botocore has them: `describe_vpcs` is DescribeVpcs, ListObjectsV2 ends in V2.
    names = {f"{prefixes.get(s, s)}:{''.join(word.title() for word in o.split('_'))}" for s, o in calls}
    return {IAM_ACTIONS.get(name, name) for name in names if not name.endswith((":GetPaginator", ":Meta"))}


def test_china_s_ec2_has_its_own_name_and_no_arn_is_of_another_partition():
    text = json.dumps(policies.operator("aws-cn"))
    assert "ec2.amazonaws.com.cn" in text and "arn:aws:" not in text
