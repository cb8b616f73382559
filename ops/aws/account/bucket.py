"""The bucket for songs: private, encrypted, without unfinished uploads; created, compared, repaired.

Never emptied and never deleted with anything in it. Its policy, which demands TLS, comes last; with an
endpoint that has no TLS (not Amazon's) the bucket gets none.
"""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from botocore.exceptions import ClientError

from ops.aws.account import policies
from ops.aws.account.step import ABSENT, KEEP, Step, step
from ops.aws.errors import code_of, errors
from ops.aws.session import TAGS, Aws, tag_dict, tag_list
from worker.amounts import count
from worker.errors import BadInput

NAME_START = "musicgen-batch-output-"
ABORT_UPLOADS_DAYS = 7

PRIVATE = {
    "BlockPublicAcls": True,
    "IgnorePublicAcls": True,
    "BlockPublicPolicy": True,
    "RestrictPublicBuckets": True,
}
OWNED = {"Rules": [{"ObjectOwnership": "BucketOwnerEnforced"}]}
ENCRYPTED = {"Rules": [{"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}]}
TIDY = {
    "ID": "musicgen-unfinished-uploads",
    "Status": "Enabled",
    "Filter": {"Prefix": ""},
    "AbortIncompleteMultipartUpload": {"DaysAfterInitiation": ABORT_UPLOADS_DAYS},
}

_NAME = re.compile(r"(?!xn--)(?!.*\.\.)[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


def choose(aws: Aws, random_hex: str) -> str:
    """MUSICGEN_S3_BUCKET, else the one bucket that an earlier setup made, else a new name.

    Raises BadInput for a name that is not valid, and when there are several to choose from.
    """
    asked = aws.settings.bucket
    if asked:
        if not _NAME.fullmatch(asked):
            raise BadInput(f"MUSICGEN_S3_BUCKET={asked} is not a valid bucket name; use a-z, 0-9 and -")
        return asked
    ours = sorted(owned(aws))
    if len(ours) > 1:
        raise BadInput(f"there are {len(ours)} buckets: {', '.join(ours)}; choose one as MUSICGEN_S3_BUCKET")
    return ours[0] if ours else f"{NAME_START}{random_hex}"


def owned(aws: Aws) -> Iterator[str]:
    """Buckets of this account and region that setup created."""
    for bucket in aws.ask("s3", "list_buckets")["Buckets"]:
        name = bucket["Name"]
        if name.startswith(NAME_START) and region_of(aws, name) == aws.region and _tags(aws, name):
            yield name


def bucket_step(aws: Aws, name: str) -> Step:
    """What the bucket lacks."""
    drift = "; ".join(difference for difference, _ in _differences(aws, name))
    if drift.startswith(ABSENT):  # everything else is absent, too
        drift = ABSENT
    wanted = "private, encrypted, TLS only" if _has_tls(aws) else "private, encrypted"
    return step(f"bucket {name}", drift, wanted, lambda: ensure_bucket(aws, name))


def ensure_bucket(aws: Aws, name: str) -> None:
    """Create the bucket, or change only what differs. Running it again changes nothing."""
    for _, act in list(_differences(aws, name)):
        act()


def removal_step(aws: Aws, name: str) -> Step | None:
    """The removal of an empty bucket that setup created; one with anything in it stays."""
    if not exists(aws, name):
        return None
    thing = f"bucket {name}"
    if not _tags(aws, name):
        return Step(thing, "there, not created by setup (no tag)", "kept", KEEP)
    if held := _holds(aws, name):
        return Step(thing, held, "kept: delete its content yourself first", KEEP)
    return Step(thing, "empty", ABSENT, "delete", lambda: remove_bucket(aws, name))


def remove_bucket(aws: Aws, name: str) -> None:
    """Delete the bucket. S3 refuses if something was written to it meanwhile."""
    aws.act("s3", "delete_bucket", Bucket=name)


def exists(aws: Aws, name: str) -> bool:
    """Raises BadInput if somebody else has a bucket of this name, or it is in another region."""
    region = region_of(aws, name)
    if region is None:
        return False
    if region != aws.region:
        raise BadInput(
            f"bucket {name} is in {region}, the machines would be in {aws.region}; "
            "correct AWS_DEFAULT_REGION or choose another MUSICGEN_S3_BUCKET"
        )
    return True


def region_of(aws: Aws, name: str) -> str | None:
    """The region of the bucket; None if there is no such bucket. Raises BadInput if it is somebody else's."""
    client = aws.client("s3")
    with errors(aws.region):
        try:
            answer = client.head_bucket(Bucket=name)
        except ClientError as error:
            code = code_of(error)
            if code in ("404", "NoSuchBucket"):
                return None
            if code != "403":
                raise
            if any(bucket["Name"] == name for bucket in client.list_buckets()["Buckets"]):
                raise  # the account's own, and these credentials may not access it
            raise BadInput(
                f"bucket {name} belongs to somebody else; choose another MUSICGEN_S3_BUCKET"
            ) from None
        headers = answer["ResponseMetadata"]["HTTPHeaders"]
        if "x-amz-bucket-region" in headers:
            return str(headers["x-amz-bucket-region"])
        return client.get_bucket_location(Bucket=name).get("LocationConstraint") or "us-east-1"


def _differences(aws: Aws, name: str) -> Iterator[tuple[str, Callable[[], object]]]:
    """Each difference from what is wanted, and what repairs it, in the order of the repairs."""
    new = not exists(aws, name)
    if new:
        yield ABSENT, lambda: _create(aws, name)

    def change(operation: str, **settings: Any) -> Callable[[], object]:
        return lambda: aws.act("s3", operation, Bucket=name, **settings)

    def now(operation: str, absent: str) -> Any:
        return None if new else aws.ask("s3", operation, Bucket=name, absent=(absent,))

    # First: by the tag, a setup that was stopped half-way finds its bucket again.
    tags = now("get_bucket_tagging", "NoSuchTagSet")
    there = tag_dict(tags["TagSet"]) if tags else {}
    if not TAGS.items() <= there.items() and (new or name.startswith(NAME_START)):
        # A bucket of another name is the user's own; without our tag --remove leaves it alone.
        yield "no tag", change("put_bucket_tagging", Tagging={"TagSet": tag_list(**_without(there, TAGS))})
    block = now("get_public_access_block", "NoSuchPublicAccessBlockConfiguration")
    if not block or block["PublicAccessBlockConfiguration"] != PRIVATE:
        yield (
            "public access possible",
            change("put_public_access_block", PublicAccessBlockConfiguration=PRIVATE),
        )
    ownership = now("get_bucket_ownership_controls", "OwnershipControlsNotFoundError")
    if not ownership or ownership["OwnershipControls"] != OWNED:
        yield "ACLs in force", change("put_bucket_ownership_controls", OwnershipControls=OWNED)
    encryption = now("get_bucket_encryption", "ServerSideEncryptionConfigurationNotFoundError")
    if not encryption or not _encrypted(encryption):
        yield (
            "not encrypted",
            change("put_bucket_encryption", ServerSideEncryptionConfiguration=ENCRYPTED),
        )
    lifecycle = now("get_bucket_lifecycle_configuration", "NoSuchLifecycleConfiguration")
    rules = lifecycle["Rules"] if lifecycle else []
    if not any(_aborts(rule) for rule in rules):
        # One call sets all rules: other rules stay.
        others = [rule for rule in rules if rule.get("ID") != TIDY["ID"]]
        yield (
            "unfinished uploads stay",
            change("put_bucket_lifecycle_configuration", LifecycleConfiguration={"Rules": [*others, TIDY]}),
        )
    if _has_tls(aws):
        found = now("get_bucket_policy", "NoSuchBucketPolicy")
        statements = json.loads(found["Policy"])["Statement"] if found else []
        wanted = policies.tls_only(name, aws.caller.partition)["Statement"]
        if wanted[0] not in statements:
            others = [statement for statement in statements if statement.get("Sid") != wanted[0]["Sid"]]
            yield (
                "TLS not demanded",
                change("put_bucket_policy", Policy=json.dumps(policies.policy(*others, *wanted))),
            )


def _create(aws: Aws, name: str) -> None:
    place: dict[str, Any] = {}
    if aws.region != "us-east-1":  # the only region that must not be named
        place["CreateBucketConfiguration"] = {"LocationConstraint": aws.region}
    aws.act("s3", "create_bucket", Bucket=name, **place)


def _has_tls(aws: Aws) -> bool:
    return str(aws.client("s3").meta.endpoint_url).startswith("https://")


def _encrypted(answer: dict[str, Any]) -> bool:
    """True for S3's key or the user's own (KMS)."""
    rules = answer["ServerSideEncryptionConfiguration"]["Rules"]
    return any(rule.get("ApplyServerSideEncryptionByDefault", {}).get("SSEAlgorithm") for rule in rules)


def _aborts(rule: dict[str, Any]) -> bool:
    everything = not rule.get("Prefix") and rule.get("Filter", {}).get("Prefix", "") == ""
    days = rule.get("AbortIncompleteMultipartUpload", {}).get("DaysAfterInitiation")
    return rule["Status"] == "Enabled" and everything and days is not None


def _tags(aws: Aws, name: str) -> bool:
    found = aws.ask("s3", "get_bucket_tagging", Bucket=name, absent=("NoSuchTagSet", "AccessDenied"))
    return bool(found) and TAGS.items() <= tag_dict(found["TagSet"]).items()


def _holds(aws: Aws, name: str) -> str:
    """What the bucket holds, as text; empty if it has nothing, not even old versions."""
    listed = aws.ask("s3", "list_object_versions", Bucket=name, MaxKeys=1000)
    kept: Sequence[Any] = [*listed.get("Versions", []), *listed.get("DeleteMarkers", [])]
    more = " or more" if listed.get("IsTruncated") else ""
    return f"holds {count(len(kept), 'object')}{more}" if kept else ""


def _without(tags: dict[str, str], others: dict[str, str]) -> dict[str, str]:
    return {key: value for key, value in tags.items() if key not in others}
