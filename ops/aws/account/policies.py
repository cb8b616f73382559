"""Who may do what in the account: every policy, as a plain function of names.

A wildcard stands only where an id is known later; everything else is limited to a tag or a name.
Calls nothing: ops/aws/account/iam.py applies the policies to the account.
"""

import json
from typing import Any

from ops.aws.session import PROJECT

Policy = dict[str, Any]

VERSION = "2012-10-17"
OPERATOR_FILE = "docs/aws-operator-policy.json"
BUCKETS = "musicgen-batch-output-*"

# What the worker may only read: the code that it runs and the lock of launches.
READ_ONLY = ("code", "locks")
# Where it may delete: claims and checkpoints. Never a song, a record or a report.
DELETABLE = ("claims", "checkpoints")


def worker(bucket: str, prefix: str = "", partition: str = "aws") -> Policy:
    """What the worker needs of one bucket, below one prefix, and nothing else."""
    place = f"arn:{partition}:s3:::{bucket}"
    below = f"{place}/{prefix}/" if prefix else f"{place}/"
    # Without ListBucket the answer for a missing object is 403 and not 404. Its condition is also checked
    # against the object's key, so it must match whole keys.
    listing = allow("s3:ListBucket", place)
    if prefix:
        listing["Condition"] = {"StringLike": {"s3:prefix": [prefix, f"{prefix}/*"]}}
    return policy(
        listing,
        allow(["s3:GetObject", "s3:PutObject"], f"{below}*"),
        allow("s3:DeleteObject", [f"{below}{folder}/*" for folder in DELETABLE]),
        {
            "Effect": "Deny",
            "Action": "s3:PutObject",
            "Resource": [f"{below}{folder}/*" for folder in READ_ONLY],
        },
    )


def scheduler(account: str, partition: str = "aws") -> Policy:
    """What EventBridge schedules need: to end this project's machines."""
    machines = f"arn:{partition}:ec2:*:{account}:instance/*"
    return policy(allow("ec2:TerminateInstances", machines) | {"Condition": _OURS})


def service_trust(service: str, account: str = "") -> Policy:
    """A role that an AWS service assumes, like ec2.amazonaws.com; with an account, for this account alone."""
    statement: Policy = {"Effect": "Allow", "Principal": {"Service": service}, "Action": "sts:AssumeRole"}
    if account:
        statement["Condition"] = {"StringEquals": {"aws:SourceAccount": account}}
    return policy(statement)


def ec2_service(partition: str = "aws") -> str:
    """EC2's name where roles are trusted and passed; China's has its own."""
    return "ec2.amazonaws.com.cn" if partition == "aws-cn" else "ec2.amazonaws.com"


def caller_trust(arn: str) -> Policy:
    """A role that one user or role of the account assumes."""
    return policy({"Effect": "Allow", "Principal": {"AWS": arn}, "Action": "sts:AssumeRole"})


def tls_only(bucket: str, partition: str = "aws") -> Policy:
    """The bucket's own policy: no request without TLS."""
    place = f"arn:{partition}:s3:::{bucket}"
    return policy(
        {
            "Sid": "TlsOnly",
            "Effect": "Deny",
            "Principal": "*",
            "Action": "s3:*",
            "Resource": [place, f"{place}/*"],
            "Condition": {"Bool": {"aws:SecureTransport": "false"}},
        }
    )


def operator(partition: str = "aws") -> Policy:
    """What the user needs who runs `inv setup`, `inv image`, `inv launch` and `inv kill-all`."""
    arn = f"arn:{partition}"
    ec2 = f"{arn}:ec2:*:*"
    roles = f"{arn}:iam::*:role/musicgen-*"
    profiles = f"{arn}:iam::*:instance-profile/musicgen-*"
    bucket = f"{arn}:s3:::{BUCKETS}"
    return policy(
        allow(
            [
                "ec2:DescribeImages",
                "ec2:DescribeInstanceAttribute",
                "ec2:DescribeInstanceTypes",
                "ec2:DescribeInstances",
                "ec2:DescribeKeyPairs",
                "ec2:DescribeRegions",
                "ec2:DescribeSecurityGroups",
                "ec2:DescribeSnapshots",
                "ec2:DescribeSpotInstanceRequests",
                "ec2:DescribeSpotPriceHistory",
                "ec2:DescribeSubnets",
                "ec2:DescribeVolumes",
                "ec2:DescribeVpcs",
                "ec2:GetConsoleOutput",
                "pricing:GetProducts",
                "s3:ListAllMyBuckets",
                "scheduler:ListSchedules",
                "servicequotas:GetServiceQuota",
                "ssm:GetParameter",
                "ssm:GetParametersByPath",
                "sts:GetCallerIdentity",
            ],
            "*",
        ),
        # Only what is created with the project's tag: everything is found by it.
        allow("ec2:RunInstances", [f"{ec2}:{kind}/*" for kind in _RENTED])
        | {"Condition": {"StringEquals": {"aws:RequestTag/Project": PROJECT}}},
        allow(
            "ec2:RunInstances",
            [f"{arn}:ec2:*::image/*", f"{arn}:ec2:*::snapshot/*"]
            + [f"{ec2}:{kind}/*" for kind in ("image", "key-pair", "security-group", "snapshot", "subnet")],
        ),
        allow("ec2:CreateTags", f"{ec2}:*/*")
        | {"Condition": {"StringEquals": {"ec2:CreateAction": _TAGGED_AT_CREATION}}},
        allow(
            [
                "ec2:AuthorizeSecurityGroupIngress",
                "ec2:CancelSpotInstanceRequests",
                "ec2:DeleteKeyPair",
                "ec2:DeleteSecurityGroup",
                "ec2:DeleteSnapshot",
                "ec2:DeleteVolume",
                "ec2:DeregisterImage",
                "ec2:ModifyInstanceAttribute",
                "ec2:RevokeSecurityGroupIngress",
                "ec2:TerminateInstances",
            ],
            "*",
        )
        | {"Condition": _OURS},
        allow(["ec2:CreateImage", "ec2:CreateKeyPair", "ec2:CreateSecurityGroup", "ec2:ImportKeyPair"], "*"),
        allow(
            [
                "iam:AddRoleToInstanceProfile",
                "iam:CreateInstanceProfile",
                "iam:CreateRole",
                "iam:DeleteInstanceProfile",
                "iam:DeleteRole",
                "iam:DeleteRolePolicy",
                "iam:GetInstanceProfile",
                "iam:GetRole",
                "iam:GetRolePolicy",
                "iam:ListAttachedRolePolicies",
                "iam:ListRolePolicies",
                "iam:PutRolePolicy",
                "iam:RemoveRoleFromInstanceProfile",
                "iam:TagInstanceProfile",
                "iam:TagRole",
                "iam:UpdateAssumeRolePolicy",
                "iam:UpdateRole",
            ],
            [roles, profiles],
        ),
        allow("iam:PassRole", roles)
        | {
            "Condition": {
                "StringEquals": {"iam:PassedToService": [ec2_service(partition), "scheduler.amazonaws.com"]}
            }
        },
        allow("iam:CreateServiceLinkedRole", f"{arn}:iam::*:role/aws-service-role/spot.amazonaws.com/*")
        | {"Condition": {"StringEquals": {"iam:AWSServiceName": "spot.amazonaws.com"}}},
        allow("sts:AssumeRole", f"{arn}:iam::*:role/musicgen-pod-role"),
        allow("sts:GetFederationToken", f"{arn}:sts::*:federated-user/musicgen-*"),
        allow(
            [
                "s3:CreateBucket",
                "s3:DeleteBucket",
                "s3:GetBucketLocation",
                "s3:GetBucketOwnershipControls",
                "s3:GetBucketPolicy",
                "s3:GetBucketPublicAccessBlock",
                "s3:GetBucketTagging",
                "s3:GetEncryptionConfiguration",
                "s3:GetLifecycleConfiguration",
                "s3:ListBucket",
                "s3:ListBucketVersions",
                "s3:PutBucketOwnershipControls",
                "s3:PutBucketPolicy",
                "s3:PutBucketPublicAccessBlock",
                "s3:PutBucketTagging",
                "s3:PutEncryptionConfiguration",
                "s3:PutLifecycleConfiguration",
            ],
            bucket,
        ),
        allow(["s3:DeleteObject", "s3:GetObject", "s3:PutObject"], f"{bucket}/*"),
        allow(
            ["scheduler:CreateSchedule", "scheduler:DeleteSchedule"],
            f"{arn}:scheduler:*:*:schedule/*/musicgen-*",
        ),
        allow(["budgets:ModifyBudget", "budgets:ViewBudget"], f"{arn}:budgets::*:budget/musicgen-*"),
    )


def operator_json() -> str:
    """The text of docs/aws-operator-policy.json, ready to be pasted into the AWS console."""
    return json.dumps(operator(), indent=2) + "\n"


def policy(*statements: Policy) -> Policy:
    """A policy document."""
    return {"Version": VERSION, "Statement": list(statements)}


def allow(actions: str | list[str], resources: str | list[str]) -> Policy:
    """One statement that allows."""
    return {"Effect": "Allow", "Action": actions, "Resource": resources}


_OURS: Policy = {"StringEquals": {"aws:ResourceTag/Project": PROJECT}}
_RENTED = ("instance", "network-interface", "spot-instances-request", "volume")
_TAGGED_AT_CREATION = [
    "CreateImage",
    "CreateKeyPair",
    "CreateSecurityGroup",
    "ImportKeyPair",
    "RunInstances",
]
