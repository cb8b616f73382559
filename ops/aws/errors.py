"""What an error of AWS means to the user: one line with a remedy, and an exit code.

One table from AWS's codes and botocore's exceptions to sentences; the store's table says which of them mean
the same (worker/store/s3_errors.py). Code that acts on a code uses `code_of`.
"""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from botocore.exceptions import BotoCoreError, ClientError
from botocore.parsers import ResponseParserError

from worker.errors import BadInput, UserError
from worker.store.s3_errors import NO_PROGRAM, S3_ERRORS, of_program


def _like(code: str) -> list[str]:
    """The codes and exceptions that the store's table explains with the same sentence as this one."""
    return [name for name, (_, text) in S3_ERRORS.items() if text == S3_ERRORS[code][1]]


# What a call of boto3 may raise; but for a ClientError, AWS may have acted all the same.
FAULTS = (BotoCoreError, ClientError, ResponseParserError)

# The same request may succeed soon, or may have succeeded although its answer is this.
AGAIN = frozenset(_like("SlowDown"))

SPOT_QUOTA, ON_DEMAND_QUOTA = "L-3819A6DF", "L-DB2E81BA"  # virtual CPUs of G and VT machines
QUOTAS = "https://console.aws.amazon.com/servicequotas/home/services/ec2/quotas/"

_KEYS = "correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
NO_KEYS = "no AWS credentials; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in .env, or AWS_PROFILE"
_EXPIRED = "the AWS credentials have expired; renew them (`aws sso login`, or new keys) and run it again"
_DENIED = (
    "AWS does not allow {action} to these credentials; add it to their policy (docs/aws-operator-policy.json)"
)
_CLOSED = "a policy of the organisation or account explicitly denies {action} in {region}; ask who manages it"
_REGION = "AWS has nothing like this in region {region} ({code}); correct AWS_DEFAULT_REGION"
_BUSY = "AWS is busy or limits these calls ({code} for {action}); wait a minute and run it again"
_QUOTA, _ON_DEMAND = (
    f"the account's limit for {kind} GPU machines in {{region}} is reached or 0 ({{code}}); "
    f"ask for more of {quota} at {QUOTAS}{quota}"
    for kind, quota in (("spot", SPOT_QUOTA), ("on-demand", ON_DEMAND_QUOTA))
)
_CAPACITY = (
    "AWS has no free machine of this kind in {region} ({code}); "
    "try later, another AWS_DEFAULT_REGION, or more MUSICGEN_INSTANCE_TYPES"
)
_IMAGE = "AWS does not know this machine image in {region}; correct MUSICGEN_AMI_ID or build one: inv image"
_KEY_PAIR = "there is no key pair of this name in {region}; correct MUSICGEN_KEY_NAME or run: inv setup"
_SUBNET = "there is no such subnet in {region}; correct MUSICGEN_SUBNET_ID"
_PROFILE = (
    "EC2 does not see the instance profile (yet); a new one takes up to two minutes: run it again, "
    "else correct MUSICGEN_INSTANCE_PROFILE or run: inv setup"
)
_TYPE = "EC2 cannot rent this machine type with this image ({message}); correct MUSICGEN_INSTANCE_TYPES"
_NETWORK = "no answer from AWS in {region}; check the network, AWS_DEFAULT_REGION and AWS_ENDPOINT_URL"
_BROKEN = "an answer of AWS in {region} broke off; check the network (a proxy?), then run it again"
_CHANGING = "the bucket is being changed or deleted; run it again in some minutes"
_NAME_TAKEN = "a bucket of this name belongs to somebody else; choose another MUSICGEN_S3_BUCKET"


class Closed(UserError):
    """A policy denies it explicitly, so that no other policy can allow it."""


# AWS's error codes, then the names of botocore's exceptions; a subclass counts as its base.
ERRORS: dict[str, tuple[type[UserError], str]] = {
    **dict.fromkeys(_like("NoCredentialsError"), (BadInput, NO_KEYS)),
    **dict.fromkeys(_like("InvalidAccessKeyId"), (BadInput, f"AWS does not know these credentials; {_KEYS}")),
    **dict.fromkeys(_like("ExpiredToken"), (UserError, _EXPIRED)),
    **dict.fromkeys(_like("AccessDenied"), (UserError, _DENIED)),
    **dict.fromkeys(_like("PermanentRedirect"), (BadInput, _REGION)),
    **dict.fromkeys(_like("OperationAborted"), (UserError, _CHANGING)),
    **dict.fromkeys(_like("SlowDown"), (UserError, _BUSY)),
    **dict.fromkeys(_like("HTTPClientError"), (UserError, _NETWORK)),
    **dict.fromkeys(_like("ResponseParserError"), (UserError, _BROKEN)),
    "ProfileNotFound": S3_ERRORS["ProfileNotFound"],
    "InvalidClientTokenId": (BadInput, f"AWS does not know these credentials; {_KEYS}"),
    "UnrecognizedClientException": (BadInput, f"AWS does not know these credentials; {_KEYS}"),
    "SignatureDoesNotMatch": (BadInput, f"the AWS secret key is wrong; {_KEYS}"),
    "InvalidSignatureException": (BadInput, f"the AWS secret key is wrong; {_KEYS}"),
    "CredentialProcessFailed": (BadInput, NO_PROGRAM),  # not a code of AWS: see explained
    "AuthFailure": (
        BadInput,
        f"AWS does not accept these credentials in {{region}} (is the region enabled?); "
        f"{_KEYS} or AWS_DEFAULT_REGION",
    ),
    "AuthFailure.ServiceLinkedRoleCreationNotPermitted": (
        UserError,
        "the account never rented a spot machine and these credentials may not create the role for it; "
        "allow iam:CreateServiceLinkedRole (docs/aws-operator-policy.json)",
    ),
    "OptInRequired": (UserError, "this AWS account is not ready for {action}; finish its registration"),
    "RequestTimeTooSkewed": S3_ERRORS["RequestTimeTooSkewed"],
    "UnauthorizedOperation": (UserError, _DENIED),
    "403": (UserError, _DENIED),
    "ExplicitDeny": (Closed, _CLOSED),  # not a code of AWS: see explained
    "NoRegionError": (BadInput, "AWS_DEFAULT_REGION is not set; set it in .env, like us-east-1"),
    "InvalidRegionError": (BadInput, "AWS_DEFAULT_REGION is not a region; write it like us-east-1"),
    "301": (BadInput, _REGION),
    "MaxSpotInstanceCountExceeded": (UserError, _QUOTA),
    "VcpuLimitExceeded": (UserError, _ON_DEMAND),
    "InstanceLimitExceeded": (UserError, _ON_DEMAND),
    "SpotMaxPriceTooLow": (
        UserError,
        "the maximum price is below the current spot price; raise MUSICGEN_MAX_PRICE "
        "(inv spot-price shows the prices) or wait",
    ),
    "InsufficientInstanceCapacity": (UserError, _CAPACITY),
    "InsufficientHostCapacity": (UserError, _CAPACITY),
    "UnfulfillableCapacity": (UserError, _CAPACITY),
    "Unsupported": (UserError, _CAPACITY),
    "InsufficientFreeAddressesInSubnet": (UserError, _CAPACITY),
    "InvalidAMIID.NotFound": (BadInput, _IMAGE),
    "InvalidAMIID.Malformed": (BadInput, _IMAGE),
    "InvalidAMIID.Unavailable": (BadInput, _IMAGE),
    "InvalidKeyPair.NotFound": (BadInput, _KEY_PAIR),
    "InvalidSubnetID.NotFound": (BadInput, _SUBNET),
    "InvalidSubnetID.Malformed": (BadInput, _SUBNET),
    "InvalidIamInstanceProfile": (UserError, _PROFILE),  # not codes of AWS: see code_of
    "InvalidArchitecture": (UserError, _TYPE),
    "InvalidInstanceType": (UserError, _TYPE),
    "InvalidParameterCombination": (UserError, _TYPE),
    "InvalidParameterValue": (UserError, "AWS refused {action} ({message}); correct the setting it names"),
    "BucketAlreadyExists": (BadInput, _NAME_TAKEN),
    "InvalidBucketName": (BadInput, "that is not a valid bucket name; correct MUSICGEN_S3_BUCKET"),
    "NoSuchBucket": (BadInput, "there is no such bucket; correct MUSICGEN_S3_BUCKET or run: inv setup"),
    "VPCIdNotSpecified": (UserError, "region {region} has no default VPC; create one there"),
    "LimitExceeded": (UserError, "an AWS limit stops {action} ({message}); remove what is not needed"),
    "ClientError": (UserError, "AWS refused {action} ({code}: {message}); run it again or see its console"),
    "BotoCoreError": (UserError, "cannot use AWS ({code}); check the AWS settings"),
}

# Where the IAM action that a policy must allow is not named like the call.
IAM_ACTIONS = {
    "s3:HeadBucket": "s3:ListBucket",
    "s3:HeadObject": "s3:GetObject",
    "s3:ListBuckets": "s3:ListAllMyBuckets",
    "s3:ListObjectsV2": "s3:ListBucket",
    "s3:ListObjectVersions": "s3:ListBucketVersions",
    "s3:GetPublicAccessBlock": "s3:GetBucketPublicAccessBlock",
    "s3:PutPublicAccessBlock": "s3:PutBucketPublicAccessBlock",
    "s3:GetBucketEncryption": "s3:GetEncryptionConfiguration",
    "s3:PutBucketEncryption": "s3:PutEncryptionConfiguration",
    "s3:GetBucketLifecycleConfiguration": "s3:GetLifecycleConfiguration",
    "s3:PutBucketLifecycleConfiguration": "s3:PutLifecycleConfiguration",
    "budgets:CreateBudget": "budgets:ModifyBudget",
    "budgets:UpdateBudget": "budgets:ModifyBudget",
    "budgets:DeleteBudget": "budgets:ModifyBudget",
    "budgets:CreateNotification": "budgets:ModifyBudget",
    "budgets:DeleteNotification": "budgets:ModifyBudget",
    "budgets:DescribeBudget": "budgets:ViewBudget",
    "budgets:DescribeNotificationsForBudget": "budgets:ViewBudget",
    "budgets:DescribeSubscribersForNotification": "budgets:ViewBudget",
}
_OWN_CODES = {
    "IAM Instance Profile": "InvalidIamInstanceProfile",
    "architecture": "InvalidArchitecture",
    "InstanceType": "InvalidInstanceType",
}
_REFUSED_ACTION = re.compile(r"not authorized to perform:? ([a-z0-9-]+:[A-Za-z]+)")


def code_of(error: Exception) -> str:
    """AWS's code of an error, or the name of botocore's exception."""
    if isinstance(error, ClientError):
        code = str(error.response["Error"].get("Code", ""))
        # EC2 has no code of its own for these, and they decide what to try next.
        if code == "InvalidParameterValue":
            return next((own for text, own in _OWN_CODES.items() if text in str(error)), code)
        return code
    return type(error).__name__


def explained(error: Exception, region: str = "") -> UserError:
    """The line for an error of boto3: what happened; what to do. Names no credentials."""
    names = [code_of(error), *(cls.__name__ for cls in type(error).__mro__)]
    action = message = ""
    if isinstance(error, ClientError):
        service = error.response.get("ResponseMetadata", {}).get("Service", "")
        action = f"{service}:{error.operation_name}" if service else error.operation_name
        message = str(error.response["Error"].get("Message", ""))
        refused = _REFUSED_ACTION.search(message)
        action = refused[1] if refused else action
        action = IAM_ACTIONS.get(action, action)
        if "Signature" in message and ("expired" in message or "not yet current" in message):
            names.insert(0, "RequestTimeTooSkewed")
        if "explicit deny" in message:
            names.insert(0, "ExplicitDeny")
    if of_program(error):
        names.insert(0, "CredentialProcessFailed")
    kind, text = next(ERRORS[name] for name in names if name in ERRORS)
    message = " ".join(message.split()).rstrip(".")
    return kind(text.format(action=action, region=region or "this region", code=names[0], message=message))


@contextmanager
def errors(region: str = "") -> Iterator[None]:
    """Raise boto3's errors in the block as UserError or BadInput."""
    try:
        yield
    except FAULTS as error:
        raise explained(error, region) from None


def name_service(parsed: dict[str, Any], model: Any, **_: Any) -> None:
    """For botocore's `after-call`: an error names only the operation, a policy's action also the service."""
    parsed.setdefault("ResponseMetadata", {})["Service"] = model.service_model.signing_name
