"""A store in an S3 bucket, or in anything that speaks S3."""

import functools
import hashlib
import io
import logging
import os
import threading
import time
import uuid
from base64 import b64encode
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, cast

from worker.errors import Unreachable
from worker.store.base import Missing, Store, Stored, checked, is_key
from worker.store.files import CHUNK_BYTES, disk_errors, downloaded
from worker.store.s3_errors import BROKEN_ANSWER, EXPIRED, code_of, explained, opening

if TYPE_CHECKING:
    from _typeshed import ReadableBuffer

# Between the five attempts at what boto3 does not retry by itself.
PAUSES_S = (0.2, 0.5, 1.0, 2.0, 0.0)

# Metadata of an object: which call wrote it.
_ATTEMPT = "attempt"

_BY_MD5 = "%s does not take SHA-256 checksums; uploads are checked by MD5"

log = logging.getLogger(__name__)


class S3Store(Store):
    """Objects in a bucket, under a prefix. Each is one PUT (at most 5 GB), as conditions need it.

    `create` and `replace` say who won also when an answer was lost, within a call and, for the same
    key and content, from one call to the next: every object carries the id of the call that wrote it.

    Some look-alikes refuse what S3 takes: Backblaze B2 checksums and conditions, Cloudflare R2
    checksums after the body. So a checksum goes before the body; what a store refuses is left out
    from then on. Without conditions, `create` and `replace` look first, which is exact for one
    writer alone, and `honours_conditions` is false.

    Credentials, region and AWS_ENDPOINT_URL are found by boto3's own means, and AWS_REGION counts too.
    """

    def __init__(self, bucket: str, prefix: str) -> None:
        self.location = f"s3://{bucket}/{prefix}".removesuffix("/")
        self._bucket = bucket
        self._prefix = prefix + "/" if prefix else ""
        self._takes_checksums = self._takes_conditions = True
        self._changing = threading.Lock()  # held to change what it takes
        self._skew_s: float | None = None
        self._allowed: set[str] = set()  # operations that were answered well
        self._unsure: dict[tuple[str, str], set[str]] = {}  # key, checksum -> ids of unanswered calls
        self._client = self._connect(with_checksums=True)

    def list(self, prefix: str = "") -> dict[str, Stored]:
        """Objects of others whose names are not valid keys, such as `folder/`, are left out."""
        found = {}
        with self._s3_errors():
            pages = self._client.get_paginator("list_objects_v2")
            for page in pages.paginate(Bucket=self._bucket, Prefix=self._prefix + prefix):
                if "Name" not in page and "KeyCount" not in page:
                    raise Unreachable(BROKEN_ANSWER.format(bucket=self._bucket))
                for entry in page.get("Contents", []):
                    key = entry["Key"].removeprefix(self._prefix)
                    if is_key(key):
                        found[key] = Stored(entry["Size"], entry.get("ETag"), entry.get("LastModified"))
        return found

    def read_tagged(self, key: str) -> tuple[bytes, str]:
        content = io.BytesIO()
        etag = self._get(key, content)
        return content.getvalue(), etag

    def sha256(self, key: str) -> str:
        content = _Digest()
        self._get(key, cast(BinaryIO, content))
        return content.digest.hexdigest()

    def write(self, key: str, content: bytes) -> str:
        # Without a condition it is never None.
        return cast(str, self._put(key, io.BytesIO(content), {}))

    def create(self, key: str, content: bytes) -> str | None:
        return self._put(key, io.BytesIO(content), {"IfNoneMatch": "*"})

    def create_file(self, key: str, path: Path) -> str | None:
        with disk_errors(path), path.open("rb") as body:
            return self._put(key, body, {"IfNoneMatch": "*"})

    def replace(self, key: str, content: bytes, etag: str) -> str | None:
        return self._put(key, io.BytesIO(content), {"IfMatch": etag})

    def download(self, key: str, path: Path) -> None:
        checked(key)
        with downloaded(path) as file:
            self._get(key, file)

    def delete(self, key: str) -> None:
        with self._s3_errors():
            self._client.delete_object(**self._place(key))

    def clock_skew_s(self) -> float | None:
        return self._skew_s

    def honours_conditions(self, key: str) -> bool:
        return super().honours_conditions(key) and self._takes_conditions

    def _connect(self, *, with_checksums: bool) -> Any:
        import botocore.session  # here: a folder does not wait for it
        from botocore.config import Config

        retries: dict[str, Any] = {"mode": "standard"}
        if "AWS_MAX_ATTEMPTS" not in os.environ:  # an argument would win over it
            retries["total_max_attempts"] = 6
        checksums = {"request_checksum_calculation": "when_required"}  # PUT has its own
        if not with_checksums:
            checksums["response_checksum_validation"] = "when_required"
        config = Config(retries=retries, connect_timeout=10, read_timeout=60, **checksums)
        with self._s3_errors(), opening():
            # A session of its own: threads must not share the default one.
            session = botocore.session.get_session()
            session.register_component("data_loader", _descriptions())
            client = session.create_client("s3", region_name=_region(), config=config)
        client.meta.events.register("after-call.s3", self._note_answer)
        return client

    def _place(self, key: str) -> dict[str, str]:
        return {"Bucket": self._bucket, "Key": self._prefix + checked(key)}

    def _note_answer(self, parsed: dict[str, Any], model: Any, **_: object) -> None:
        """Remember what is allowed, and S3's clock: each answer, a refusal too, has its time in seconds."""
        metadata = parsed.get("ResponseMetadata", {})
        if metadata.get("HTTPStatusCode", 0) < 300:
            self._allowed.add(model.name)
        with suppress(KeyError, ValueError):  # look-alikes may send none
            date = parsedate_to_datetime(metadata["HTTPHeaders"]["date"])
            self._skew_s = time.time() - date.timestamp()

    def _get(self, key: str, into: BinaryIO) -> str:
        """The object's ETag, its content in `into`."""
        from botocore.exceptions import (
            ClientError,
            FlexibleChecksumError,
            HTTPClientError,
            IncompleteReadError,
        )

        place = self._place(key)
        with self._s3_errors():
            for pause_s in PAUSES_S:
                with_checksum = self._takes_checksums
                into.seek(0)
                into.truncate()
                try:
                    answer = self._client.get_object(**place)
                    for chunk in answer["Body"].iter_chunks(CHUNK_BYTES):
                        into.write(chunk)
                    return self._etag(answer)
                except ClientError as error:
                    if code_of(error) == "NoSuchKey":
                        raise Missing(key) from None
                    if not self._does_without(error, with_checksum, False):
                        raise
                    failed: Exception = error
                    continue
                except (HTTPClientError, IncompleteReadError, FlexibleChecksumError) as error:
                    failed = error  # boto3 retries a request, not an answer that breaks off
                time.sleep(pause_s)
            raise failed

    def _put(self, key: str, body: BinaryIO, condition: dict[str, str]) -> str | None:
        """The new ETag, or None if the condition does not hold."""
        sha256 = _sha256(body)
        attempt = uuid.uuid4().hex
        same = key, sha256
        try:
            etag = self._send(key, body, condition, sha256, attempt)
        except Unreachable:
            if condition:  # it may have had its effect
                self._unsure.setdefault(same, set()).add(attempt)
            raise
        self._unsure.pop(same, None)
        return etag

    def _send(
        self, key: str, body: BinaryIO, condition: dict[str, str], sha256: str, attempt: str
    ) -> str | None:
        from botocore.exceptions import ClientError

        earlier = self._unsure.get((key, sha256), set())
        with self._s3_errors():
            for pause_s in PAUSES_S:
                with_checksum, with_condition = self._takes_checksums, self._takes_conditions
                if condition and not with_condition:
                    current = self._head(key)
                    if (self._etag(current) if current else None) != condition.get("IfMatch"):
                        return self._etag_if_written_by(key, {attempt, *earlier})
                checksum = {"ChecksumSHA256": sha256} if with_checksum else {"ContentMD5": _md5(body)}
                sent = condition if with_condition else {}
                body.seek(0)
                try:
                    answer = self._client.put_object(
                        **self._place(key), Body=body, Metadata={_ATTEMPT: attempt}, **checksum, **sent
                    )
                    return self._etag(answer)
                except ClientError as error:
                    code = code_of(error)
                    if condition and code in ("PreconditionFailed", "NoSuchKey"):
                        retried = error.response["ResponseMetadata"].get("RetryAttempts")
                        if not (retried or earlier):
                            return None
                        return self._etag_if_written_by(key, {attempt, *earlier})
                    failed = error
                    if self._does_without(error, with_checksum, bool(sent)):
                        continue
                    if code != "ConditionalRequestConflict":
                        raise
                # Two conditional writes met; S3 asks to try again.
                time.sleep(pause_s)
            raise failed

    def _head(self, key: str) -> dict[str, Any] | None:
        """The object's description; None if there is none."""
        from botocore.exceptions import ClientError

        try:
            return cast(dict[str, Any], self._client.head_object(**self._place(key)))
        except ClientError as error:
            if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                return None
            raise

    def _etag_if_written_by(self, key: str, attempts: set[str]) -> str | None:
        """The object's ETag if one of these calls wrote it."""
        found = self._head(key)
        return self._etag(found) if found and found["Metadata"].get(_ATTEMPT) in attempts else None

    def _etag(self, answer: dict[str, Any]) -> str:
        """Raises Unreachable if this is not an answer of S3: a proxy's page, for example."""
        if etag := answer.get("ETag"):
            return str(etag)
        raise Unreachable(BROKEN_ANSWER.format(bucket=self._bucket))

    def _does_without(self, error: Exception, with_checksum: bool, with_condition: bool) -> bool:
        """True if the store refused what was sent with a request and is no longer sent."""
        response = cast(dict[str, Any], error.response)  # type: ignore[attr-defined]
        status = response["ResponseMetadata"]["HTTPStatusCode"]
        not_implemented = status == 501 or code_of(error) == "NotImplemented"
        if not (not_implemented or status == 400):
            return False
        named = " ".join(map(str, response["Error"].values())).lower()
        names_condition = "if-match" in named or "if-none-match" in named
        names_checksum = any(name in named for name in ("x-amz-checksum", "x-amz-sdk-checksum", "trailer"))
        if with_checksum and (names_checksum or (not_implemented and not names_condition)):
            with self._changing:
                if self._takes_checksums:
                    self._client = self._connect(with_checksums=False)
                    self._takes_checksums = False
                    log.warning(_BY_MD5, self.location)
            return True
        if with_condition and (names_condition or not_implemented):
            self._takes_conditions = False
            return True
        return False

    @contextmanager
    def _s3_errors(self) -> Iterator[None]:
        from botocore.exceptions import BotoCoreError, ClientError
        from botocore.parsers import ResponseParserError

        try:
            yield
        except (BotoCoreError, ClientError, ResponseParserError) as error:
            allowed_before = getattr(error, "operation_name", None) in self._allowed
            raise explained(error, self._bucket, allowed_before=allowed_before) from None
        except RuntimeError as error:
            # botocore's own, where what it took up anew has expired as well
            if "expired" not in str(error):
                raise
            raise Unreachable(EXPIRED) from None


class _Digest(io.RawIOBase):
    """A file of which only the SHA-256 is kept. To seek is to begin anew."""

    def seek(self, offset: int, whence: int = 0, /) -> int:
        self.digest = hashlib.sha256()
        return 0

    def truncate(self, size: int | None = None, /) -> int:
        return 0

    def write(self, chunk: "ReadableBuffer", /) -> int:
        self.digest.update(chunk)
        return memoryview(chunk).nbytes


@functools.cache
def _descriptions() -> Any:
    """AWS's descriptions of its services, which take longer to read than all else of a client."""
    from botocore.loaders import create_loader

    return create_loader(os.environ.get("AWS_DATA_PATH"))


def _region() -> str | None:
    """The region of the environment; None: as boto3 finds it, which does not read AWS_REGION."""
    return os.environ.get("AWS_DEFAULT_REGION") or os.environ.get("AWS_REGION") or None


def _sha256(body: BinaryIO) -> str:
    return _digest(body, hashlib.sha256())


def _md5(body: BinaryIO) -> str:
    return _digest(body, hashlib.md5(usedforsecurity=False))  # damage on the way is no attack


def _digest(body: BinaryIO, digest: "hashlib._Hash") -> str:
    body.seek(0)
    while chunk := body.read(CHUNK_BYTES):
        digest.update(chunk)
    return b64encode(digest.digest()).decode()
