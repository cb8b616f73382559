"""ops/aws/errors.py: what an error of AWS means, in one line with a remedy and an exit code."""

import re

import botocore.exceptions
import pytest
from botocore.exceptions import ClientError, CredentialRetrievalError

from ops.aws.errors import ERRORS, code_of, explained
from worker.errors import UserError

EXCEPTIONS = {name for name in ERRORS if hasattr(botocore.exceptions, name)}


def refused(code, operation="RunInstances", message="no", service="ec2"):
    metadata = {"HTTPStatusCode": 400, "Service": service}
    return ClientError({"Error": {"Code": code, "Message": message}, "ResponseMetadata": metadata}, operation)


def raised(name):
    """The error that has this name in the table: botocore's exception, or AWS's code."""
    if name not in EXCEPTIONS or name == "ClientError":
        return refused(name)
    cls = getattr(botocore.exceptions, name)
    return cls.__new__(cls)


def test_each_error_is_one_line_with_a_remedy():
    lines = {name: str(explained(raised(name), "us-east-1")) for name in ERRORS}
    assert [
        (name, line) for name, line in lines.items() if not re.fullmatch(r"[^\n{}]+; [^\n{}]+", line)
    ] == []


def test_each_error_has_the_exit_code_of_its_row():
    kinds = {name: type(explained(raised(name))) for name in ERRORS}
    assert kinds == {name: kind for name, (kind, _) in ERRORS.items()}


@pytest.mark.parametrize(
    ("code", "exit_code", "words"),
    [
        ("InvalidClientTokenId", 2, "AWS_ACCESS_KEY_ID"),
        ("ExpiredToken", 1, "expired"),
        ("UnauthorizedOperation", 1, "ec2:RunInstances"),
        ("MaxSpotInstanceCountExceeded", 1, "L-3819A6DF at https://"),
        ("VcpuLimitExceeded", 1, "L-DB2E81BA at https://"),
        ("SpotMaxPriceTooLow", 1, "MUSICGEN_MAX_PRICE"),
        ("InsufficientInstanceCapacity", 1, "MUSICGEN_INSTANCE_TYPES"),
        ("InvalidAMIID.NotFound", 2, "inv image"),
        ("InvalidAMIID.Malformed", 2, "MUSICGEN_AMI_ID"),
        ("InvalidKeyPair.NotFound", 2, "inv setup"),
        ("InvalidSubnetID.NotFound", 2, "MUSICGEN_SUBNET_ID"),
        ("RequestLimitExceeded", 1, "wait a minute"),
        ("BucketAlreadyExists", 2, "MUSICGEN_S3_BUCKET"),
        ("IllegalLocationConstraintException", 2, "AWS_DEFAULT_REGION"),
        ("AuthFailure", 2, "AWS_DEFAULT_REGION"),
        ("AuthFailure.ServiceLinkedRoleCreationNotPermitted", 1, "iam:CreateServiceLinkedRole"),
        ("SomethingNew", 1, "SomethingNew: no"),
    ],
)
def test_error_of_a_real_call_has_its_sentence_and_exit_code(bare, code, exit_code, words):
    us = bare(AWS_MAX_ATTEMPTS="1")
    bare.fake.fail("RunInstances", code, message="no")
    with pytest.raises(UserError) as caught:
        us.act("ec2", "run_instances", ImageId="ami-1", MinCount=1, MaxCount=1)
    assert caught.value.code == exit_code
    assert words in str(caught.value)


def test_fresh_instance_profile_is_told_from_other_wrong_values(bare):
    bare.fake.fail("RunInstances", "InvalidParameterValue")
    with pytest.raises(ClientError) as caught:
        bare().client("ec2", attempts=1).run_instances(ImageId="ami-1", MinCount=1, MaxCount=1)
    assert code_of(caught.value) == "InvalidIamInstanceProfile"
    assert "two minutes" in str(explained(caught.value))
    other = refused("InvalidParameterValue", message="Value () for parameter groupId is invalid.")
    assert code_of(other) == "InvalidParameterValue"
    assert "groupId" in str(explained(other))


@pytest.mark.parametrize(
    ("service", "operation", "action"),
    [
        ("s3", "HeadBucket", "s3:ListBucket"),
        ("s3", "PutBucketEncryption", "s3:PutEncryptionConfiguration"),
        ("budgets", "CreateBudget", "budgets:ModifyBudget"),
        ("iam", "CreateRole", "iam:CreateRole"),
    ],
)
def test_missing_permission_is_named_as_a_policy_must_name_it(service, operation, action):
    assert f"does not allow {action} " in str(explained(refused("AccessDenied", operation, service=service)))


def test_permission_that_aws_names_wins():
    message = (
        "User: arn:aws:iam::1:user/me is not authorized to perform: iam:PassRole on resource: arn because no "
        "identity-based policy allows the iam:PassRole action"
    )
    assert "does not allow iam:PassRole " in str(explained(refused("UnauthorizedOperation", message=message)))


# --- what another code means by its message


@pytest.mark.parametrize("code", ["SignatureDoesNotMatch", "InvalidSignatureException", "AuthFailure"])
def test_an_expired_signature_is_the_clock_and_no_wrong_key(code):
    message = "Signature expired: 20261122T100000Z is now earlier than 20261122T101500Z"
    assert "clock" in str(explained(refused(code, message=message)))
    assert "clock" in str(explained(refused(code, message="Signature not yet current: 20261122T100000Z")))


def test_a_wrong_secret_key_of_every_service_is_told():
    message = "The request signature we calculated does not match the signature you provided."
    assert "secret key is wrong" in str(explained(refused("InvalidSignatureException", message=message)))


def test_a_failing_credential_process_is_not_called_expired_and_its_words_are_kept_back():
    error = CredentialRetrievalError(provider="custom-process", error_msg="planted-secret")
    line = str(explained(error))
    assert "credential_process" in line and "expired" not in line and "planted-secret" not in line


def test_refusals_name_the_quota_of_their_kind():
    assert "L-DB2E81BA" in str(explained(refused("VcpuLimitExceeded")))
    assert "L-3819A6DF" in str(explained(refused("MaxSpotInstanceCountExceeded")))
