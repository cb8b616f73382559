"""Get or put one object of the bucket with the machine's own role, before anything is installed.

    python3 s3_object.py get BUCKET KEY FILE
    python3 s3_object.py put BUCKET KEY FILE

Part of the user data, so it needs only Python's standard library: no boto3, no AWS CLI. Region from
AWS_DEFAULT_REGION; another S3 by AWS_ENDPOINT_URL; the role's credentials from the instance metadata
(IMDSv2, at AWS_EC2_METADATA_SERVICE_ENDPOINT). Nothing secret is printed or put into an argument.
"""

import datetime
import hashlib
import hmac
import json
import os
import sys
import time
import urllib.error
import urllib.parse
import urllib.request
from typing import NamedTuple

TRIES = 5  # a role given at launch may take some seconds to reach the machine
# Never through a proxy, as the metadata address belongs to this machine.
DIRECT = urllib.request.build_opener(urllib.request.ProxyHandler({}))


class Call(NamedTuple):
    """One request to S3. `sha256`: of its body."""

    method: str
    url: str
    region: str
    sha256: str


def _metadata(method: str, path: str, headers: dict[str, str]) -> str:
    base = os.environ.get("AWS_EC2_METADATA_SERVICE_ENDPOINT", "http://169.254.169.254").rstrip("/")
    request = urllib.request.Request(f"{base}/latest/{path}", headers=headers, method=method)  # noqa: S310
    with DIRECT.open(request, timeout=5) as answer:
        text: str = answer.read().decode()
    return text


def metadata(path: str, token: str | None = None) -> tuple[str, str]:
    """One value of the instance metadata."""
    if token is None:
        token = _metadata("PUT", "api/token", {"X-aws-ec2-metadata-token-ttl-seconds": "300"})
    return _metadata("GET", path, {"X-aws-ec2-metadata-token": token}), token


def role_credentials() -> tuple[str, str, str]:
    """(access key, secret key, session token) of the instance's role."""
    where = "meta-data/iam/security-credentials/"
    role, token = metadata(where)
    found = json.loads(metadata(where + role.split()[0], token)[0])
    return found["AccessKeyId"], found["SecretAccessKey"], found["Token"]


def signed(call: Call, credentials: tuple[str, str, str], now: datetime.datetime) -> dict[str, str]:
    """The headers of an S3 request (AWS Signature Version 4)."""
    access, secret, session = credentials
    parts = urllib.parse.urlsplit(call.url)
    stamp, day = now.strftime("%Y%m%dT%H%M%SZ"), now.strftime("%Y%m%d")
    headers = {
        "host": parts.netloc,
        "x-amz-content-sha256": call.sha256,
        "x-amz-date": stamp,
        "x-amz-security-token": session,
    }
    names = ";".join(sorted(headers))
    lines = "".join(f"{name}:{headers[name]}\n" for name in sorted(headers))
    request = "\n".join([call.method, parts.path, parts.query, lines, names, call.sha256])
    scope = f"{day}/{call.region}/s3/aws4_request"
    digest = hashlib.sha256(request.encode()).hexdigest()
    key = ("AWS4" + secret).encode()
    for part in (day, call.region, "s3", "aws4_request"):
        key = hmac.new(key, part.encode(), hashlib.sha256).digest()
    to_sign = f"AWS4-HMAC-SHA256\n{stamp}\n{scope}\n{digest}"
    signature = hmac.new(key, to_sign.encode(), hashlib.sha256).hexdigest()
    headers["authorization"] = (
        f"AWS4-HMAC-SHA256 Credential={access}/{scope}, SignedHeaders={names}, Signature={signature}"
    )
    return headers


def address(bucket: str, key: str, region: str) -> str:
    """The URL of the object."""
    path = urllib.parse.quote(key)
    if endpoint := os.environ.get("AWS_ENDPOINT_URL"):
        return f"{endpoint.rstrip('/')}/{bucket}/{path}"
    if "." in bucket:  # the certificate of *.s3 does not cover its name
        return f"https://s3.{region}.amazonaws.com/{bucket}/{path}"
    return f"https://{bucket}.s3.{region}.amazonaws.com/{path}"


def transfer(verb: str, bucket: str, key: str, file: str) -> None:
    """Copy the object to the file, or the file to the object."""
    region = os.environ["AWS_DEFAULT_REGION"]
    body = None
    if verb == "put":
        with open(file, "rb") as source:  # noqa: PTH123 (a log of some kilobytes)
            body = source.read()
    sha256 = hashlib.sha256(body or b"").hexdigest()
    call = Call({"get": "GET", "put": "PUT"}[verb], address(bucket, key, region), region, sha256)
    now = datetime.datetime.now(datetime.timezone.utc)  # noqa: UP017 (Ubuntu's Python may be 3.10)
    headers = signed(call, role_credentials(), now)
    headers["content-type"] = "text/plain; charset=utf-8"  # urllib's default is a form
    request = urllib.request.Request(call.url, body, headers, method=call.method)  # noqa: S310
    with urllib.request.urlopen(request, timeout=60) as answer:  # noqa: S310
        if verb == "get":
            with open(file, "wb") as target:  # noqa: PTH123
                while chunk := answer.read(1 << 20):
                    target.write(chunk)


def main(verb: str, bucket: str, key: str, file: str) -> int:
    """Try several times, as a new role is not valid everywhere at once; -> the exit code."""
    for left in reversed(range(TRIES)):
        try:
            transfer(verb, bucket, key, file)
            return 0
        except (OSError, ValueError, KeyError) as error:
            print(f"{verb} s3://{bucket}/{key}: {error}", file=sys.stderr)
            if isinstance(error, urllib.error.HTTPError) and error.code == 404:
                break
            if left:
                time.sleep(2 * (TRIES - left))
    return 1


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
