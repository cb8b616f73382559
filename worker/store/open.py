"""Which store a location names: a folder, or a bucket with a prefix.

    store = open_store("s3://bucket/prefix")     # or a folder: "out", "~/songs"

Touches no network and makes nothing.
"""

import re

from worker.errors import BadInput
from worker.store.base import CONTROL, Store, is_key
from worker.store.folder import FolderStore
from worker.store.s3 import S3Store

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:")  # two letters or more: `C:` is a drive
_BUCKET = re.compile(r"(?![0-9.]+$)(?!.*\.\.)[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")


def open_store(location: str) -> Store:
    """The store at `s3://BUCKET[/PREFIX]` or in a folder, which the first write makes.

    Raises BadInput if the location is neither.
    """
    location = location.strip()
    if address := s3_address(location):
        return S3Store(*address)
    if not location or CONTROL.search(location):
        raise BadInput(f"{location!r} is not a folder; name a folder or s3://BUCKET/PREFIX")
    if _SCHEME.match(location):
        raise BadInput(f"cannot store songs at {location}; name a folder or s3://BUCKET/PREFIX")
    return FolderStore(location)


def s3_address(location: str) -> tuple[str, str] | None:
    """(bucket, prefix) of `s3://BUCKET[/PREFIX]`; None if the location does not begin with s3://.

    Raises BadInput if it does and the rest is wrong.
    """
    location = location.strip()
    if not location.lower().startswith("s3://"):
        return None
    bucket, _, prefix = location[len("s3://") :].partition("/")
    prefix = prefix.removesuffix("/")
    if not _BUCKET.fullmatch(bucket):
        raise BadInput(f"{bucket!r} in {location} is not a bucket name; write s3://BUCKET/PREFIX")
    if prefix and not is_key(prefix):
        raise BadInput(f"{prefix!r} in {location} is not a plain prefix; write it like songs/today")
    return bucket, prefix
