"""A store in an S3 bucket, or in anything that speaks S3."""

import io
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Any, BinaryIO, cast

from worker.errors import BadInput, Unreachable, UserError
from worker.store.base import Missing, Store, Stored, checked, is_key
from worker.store.files import CHUNK_BYTES, disk_errors, downloaded

# Between the five attempts at what boto3 does not retry by itself.
PAUSES_S = (0.2, 0.5, 1.0, 2.0, 0.0)

_NO_KEYS = "no AWS credentials for bucket {bucket}; set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY in .env"
_BAD_KEYS = "AWS does not know these credentials; correct AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
_EXPIRED = "the AWS credentials have expired; renew them and run the same command again"
_DENIED = "{action} on bucket {bucket} was denied; allow it in the policy of these AWS credentials"
_REGION = "bucket {bucket} is in another region; correct AWS_DEFAULT_REGION"
_BUSY = "S3 is failing or overloaded ({code}); run the same command again later"
_NETWORK = "no answer from S3 for bucket {bucket}; check the network and AWS_ENDPOINT_URL, then run it again"
_BROKEN = "an answer of S3 for bucket {bucket} broke off; check the network, then run it again"
# S3's error codes, then the names of botocore's exceptions; a subclass counts as its base.
_S3_ERRORS: dict[str, tuple[type[UserError], str]] = {
    "NoSuchBucket": (BadInput, "there is no bucket {bucket}; correct its name or make it first"),
    "AccessDenied": (UserError, _DENIED),
    "AllAccessDisabled": (UserError, _DENIED),
    "403": (UserError, _DENIED),
    "InvalidAccessKeyId": (BadInput, _BAD_KEYS),
    "SignatureDoesNotMatch": (BadInput, _BAD_KEYS),
    "InvalidToken": (BadInput, _BAD_KEYS),
    "ExpiredToken": (Unreachable, _EXPIRED),
    "ExpiredTokenException": (Unreachable, _EXPIRED),
    "TokenRefreshRequired": (Unreachable, _EXPIRED),
    "RequestTimeTooSkewed": (UserError, "this machine's clock is wrong; set it and run it again"),
    "AuthorizationHeaderMalformed": (BadInput, _REGION),
    "IllegalLocationConstraintException": (BadInput, _REGION),
    "PermanentRedirect": (BadInput, _REGION),
    "301": (BadInput, _REGION),
    "SlowDown": (Unreachable, _BUSY),
    "ServiceUnavailable": (Unreachable, _BUSY),
    "InternalError": (Unreachable, _BUSY),
    "NoCredentialsError": (BadInput, _NO_KEYS),
    "PartialCredentialsError": (BadInput, _NO_KEYS),
    "ProfileNotFound": (BadInput, "the profile in AWS_PROFILE is not configured; correct or unset it"),
    "CredentialRetrievalError": (Unreachable, _EXPIRED),
    "TokenRetrievalError": (Unreachable, _EXPIRED),
    "SSOError": (Unreachable, _EXPIRED),
    "no body": (Unreachable, _BROKEN),
    "HTTPClientError": (Unreachable, _NETWORK),
    "ConnectionError": (Unreachable, _NETWORK),
    "IncompleteReadError": (Unreachable, _NETWORK),
    "ClientError": (UserError, "S3 refused {action} on bucket {bucket} ({code}); check that bucket"),
    "BotoCoreError": (UserError, "cannot use bucket {bucket} ({code}); check the AWS settings"),
}
# Where the IAM action that a policy must allow is not named like the call.
_IAM_ACTIONS = {"ListObjectsV2": "ListBucket"}


class S3Store(Store):
    """Objects in a bucket, under a prefix. Each is one PUT (at most 5 GB), as conditions need it.

    Credentials, region and AWS_ENDPOINT_URL are found by boto3's own means.
    """

    def __init__(self, bucket: str, prefix: str) -> None:
        import boto3  # here: a folder does not wait for it
        from botocore.config import Config

        self.location = f"s3://{bucket}/{prefix}".removesuffix("/")
        self._bucket = bucket
        self._prefix = prefix + "/" if prefix else ""
        retries: dict[str, Any] = {"mode": "standard"}
        if "AWS_MAX_ATTEMPTS" not in os.environ:  # an argument would win over it
            retries["total_max_attempts"] = 6
        config = Config(retries=retries, connect_timeout=10, read_timeout=60)
        with self._s3_errors():
            try:
                # A session of its own: threads must not share the default one.
                self._client: Any = boto3.session.Session().client("s3", config=config)
            except ValueError:  # its text may hold what was put into the wrong setting
                raise BadInput(
                    "an AWS setting is malformed; correct AWS_ENDPOINT_URL, AWS_DEFAULT_REGION "
                    "or AWS_MAX_ATTEMPTS"
                ) from None
        self._skew_s: float | None = None
        self._client.meta.events.register("after-call.s3", self._note_clock)

    def list(self, prefix: str = "") -> dict[str, Stored]:
        """Objects of others whose names are no keys, such as `folder/`, are left out."""
        found = {}
        with self._s3_errors():
            pages = self._client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix + prefix):
                for entry in page.get("Contents", []):
                    key = entry["Key"].removeprefix(self._prefix)
                    if is_key(key):
                        found[key] = Stored(entry["Size"], entry["ETag"])
        return found

    def read_tagged(self, key: str) -> tuple[bytes, str]:
        content = io.BytesIO()
        etag = self._get(key, content)
        return content.getvalue(), etag

    def write(self, key: str, content: bytes) -> str:
        # No condition that could not hold, hence never None.
        return cast(str, self._put(key, io.BytesIO(content)))

    def create(self, key: str, content: bytes) -> str | None:
        return self._put(key, io.BytesIO(content), IfNoneMatch="*")

    def create_file(self, key: str, path: Path) -> str | None:
        with disk_errors(path), path.open("rb") as body:
            return self._put(key, body, IfNoneMatch="*")

    def replace(self, key: str, content: bytes, etag: str) -> str | None:
        return self._put(key, io.BytesIO(content), IfMatch=etag)

    def download(self, key: str, path: Path) -> None:
        checked(key)
        with downloaded(path) as file:
            self._get(key, file)

    def delete(self, key: str) -> None:
        place = {"Bucket": self._bucket, "Key": self._prefix + checked(key)}
        with self._s3_errors():
            self._client.delete_object(**place)

    def clock_skew_s(self) -> float | None:
        return self._skew_s

    def _note_clock(self, parsed: dict[str, Any], **_: object) -> None:
        """Each answer, a refusal too, has S3's time in whole seconds."""
        headers = parsed.get("ResponseMetadata", {}).get("HTTPHeaders", {})
        with suppress(KeyError, ValueError):  # look-alikes may send none
            self._skew_s = time.time() - parsedate_to_datetime(headers["date"]).timestamp()

    def _get(self, key: str, into: BinaryIO) -> str:
        """The object's ETag, its content in `into`."""
        from botocore.exceptions import HTTPClientError, IncompleteReadError

        place = {"Bucket": self._bucket, "Key": self._prefix + checked(key)}
        with self._s3_errors():
            for pause_s in PAUSES_S:
                try:
                    answer = self._client.get_object(**place)
                except self._client.exceptions.NoSuchKey:
                    raise Missing(key) from None
                into.seek(0)
                into.truncate()
                try:
                    for chunk in answer["Body"].iter_chunks(CHUNK_BYTES):
                        into.write(chunk)
                    return str(answer["ETag"])
                except (HTTPClientError, IncompleteReadError) as error:
                    broken = error  # boto3 retries a request, not an answer that breaks off
                time.sleep(pause_s)
            raise broken

    def _put(self, key: str, body: BinaryIO, **condition: str) -> str | None:
        """The new ETag, or None if the condition does not hold."""
        place = {"Bucket": self._bucket, "Key": self._prefix + checked(key)}
        with self._s3_errors():
            for pause_s in PAUSES_S:
                body.seek(0)
                try:
                    answer = self._client.put_object(
                        **place, Body=body, ChecksumAlgorithm="SHA256", **condition
                    )
                    return str(answer["ETag"])
                except self._client.exceptions.ClientError as error:
                    code = error.response["Error"]["Code"]
                    if code in ("PreconditionFailed", "NoSuchKey"):
                        # The answer to an earlier attempt may have been lost after it had won.
                        retried = error.response["ResponseMetadata"].get("RetryAttempts")
                        return self._etag_of(key, body) if retried else None
                    if code != "ConditionalRequestConflict":
                        raise
                    conflict = error  # two conditional writes met; S3 asks to try again
                time.sleep(pause_s)
            raise conflict

    def _etag_of(self, key: str, body: BinaryIO) -> str | None:
        """The object's ETag if its content is that of `body`."""
        try:
            content, etag = self.read_tagged(key)
        except Missing:
            return None
        body.seek(0)
        return etag if body.read() == content else None

    @contextmanager
    def _s3_errors(self) -> Iterator[None]:
        from botocore.exceptions import BotoCoreError, ClientError

        try:
            yield
        except (BotoCoreError, ClientError) as error:
            raise _explained(error, self._bucket) from None
        except RuntimeError as error:
            # botocore's own, where what it took up anew has expired as well
            if "expired" not in str(error):
                raise
            raise Unreachable(_EXPIRED) from None


def _explained(error: Exception, bucket: str) -> UserError:
    """Our line for an exception of botocore. Names neither the request nor the credentials in it."""
    names = [cls.__name__ for cls in type(error).__mro__]
    call = ""
    if "ClientError" in names:
        code = error.response["Error"]["Code"]  # type: ignore[attr-defined]
        call = error.operation_name  # type: ignore[attr-defined]
        # The status alone, where what S3 says of it did not arrive: a 404 may be of the object or the bucket.
        names.insert(0, "no body" if code.isdigit() and code not in _S3_ERRORS else code)
    kind, text = next(_S3_ERRORS[name] for name in names if name in _S3_ERRORS)
    return kind(text.format(bucket=bucket, action=f"s3:{_IAM_ACTIONS.get(call, call)}", code=names[0]))
