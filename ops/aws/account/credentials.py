"""Temporary credentials for a box, limited to one prefix of one bucket.

The role MUSICGEN_POD_ROLE is assumed for up to 12 hours; where that is not allowed, a federation token is
used. A session policy limits both. The caller's own credentials come from Aws, hence from boto3's chain.
"""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from botocore.exceptions import ClientError

from ops.aws.account import policies
from ops.aws.errors import FAULTS, code_of, explained
from ops.aws.session import Aws
from worker.errors import BadInput, UserError
from worker.timestamps import stamp

MAX_POLICY_CHARS = 2048
# One hour is the limit of some roles, of a role assumed by a role, and of the root user.
SESSIONS_S = (12 * 3600, 3600)
_NAME = "musicgen-box"
_REFUSED = ("AccessDenied", "AccessDeniedException", "UnauthorizedOperation", "403")
_ABSENT = ("NoSuchEntity", "InvalidAction", "UnknownOperationException", "NotImplemented", "404")


@dataclass(frozen=True)
class Lent:
    """Credentials as a `credential_process` prints them. `expires`: None for the caller's own keys."""

    document: bytes = field(repr=False)
    expires: datetime | None
    source: str


def session_policy(bucket: str, prefix: str = "", partition: str = "aws") -> str:
    """The permissions of the box, as compact JSON: what the worker needs below the prefix, nothing else."""
    text = json.dumps(policies.worker(bucket, prefix, partition), separators=(",", ":"))
    if len(text) > MAX_POLICY_CHARS:
        raise BadInput("the bucket's prefix is too long for a session policy; shorten MUSICGEN_S3_PREFIX")
    return text


def lend(aws: Aws, bucket: str, prefix: str = "") -> Lent:
    """New temporary credentials. Raises UserError that names the missing permission."""
    role = role_arn(aws)
    policy = session_policy(bucket, prefix, aws.caller.partition)
    refusals: list[Exception] = []
    for operation, request in (
        ("assume_role", {"RoleArn": role, "RoleSessionName": _NAME, "Policy": policy}),
        ("get_federation_token", {"Name": _NAME, "Policy": policy}),
    ):
        try:
            answer = _longest(aws, operation, request)
        except FAULTS as error:
            if code_of(error) not in (*_REFUSED, *_ABSENT):
                raise explained(error, aws.region) from None
            refusals.append(error)
            continue
        return _lent(answer["Credentials"], role if operation == "assume_role" else "a federation token")
    raise UserError(
        f"AWS lends no temporary credentials: sts:AssumeRole on {role} and sts:GetFederationToken were "
        f"refused ({', '.join(map(code_of, refusals))}); create the role: inv setup, allow one of them, or "
        "send your own keys: --use-my-keys"
    )


def own(aws: Aws) -> Lent:
    """The caller's own credentials as they are. Raises BadInput if there are none."""
    found = aws.own_keys()
    return Lent(_document(found.access_key, found.secret_key, found.token, None), None, "your own keys")


def role_arn(aws: Aws) -> str:
    """MUSICGEN_POD_ROLE as an ARN of the caller's account."""
    role: str = aws.settings.pod_role
    if role.startswith("arn:"):
        return role
    return f"arn:{aws.caller.partition}:iam::{aws.caller.account}:role/{role}"


def _longest(aws: Aws, operation: str, request: dict[str, Any]) -> Any:
    """The answer for the longest session that AWS grants."""
    call: Callable[..., Any] = getattr(aws.client("sts"), operation)
    for seconds in SESSIONS_S:
        asked = request | {"DurationSeconds": seconds}
        try:
            with aws.audit.action(f"sts.{operation}", asked) as done:
                answer = call(**asked)
                done({"Expiration": answer["Credentials"]["Expiration"]})
            return answer
        except ClientError as error:
            if code_of(error) != "ValidationError" or seconds == SESSIONS_S[-1]:
                raise
    raise AssertionError("the last session is granted or raises")


def _lent(found: dict[str, Any], source: str) -> Lent:
    expires = found["Expiration"].astimezone(UTC)
    document = _document(found["AccessKeyId"], found["SecretAccessKey"], found["SessionToken"], expires)
    return Lent(document, expires, source)


def _document(key_id: str, secret: str, token: str | None, expires: datetime | None) -> bytes:
    shown: dict[str, Any] = {"Version": 1, "AccessKeyId": key_id, "SecretAccessKey": secret}
    if token:
        shown["SessionToken"] = token
    if expires:
        shown["Expiration"] = stamp(expires)
    return json.dumps(shown).encode() + b"\n"
