"""S3 over real HTTP on a free port of this machine: moto's server, and some that behave badly.

A relay is a way to the S3 at a URL that does something to what passes.
"""

import hashlib
import http.client
import ipaddress
import logging
import os
import ssl
import threading
import urllib.request
import uuid
from base64 import b64encode
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.loaders import Loader
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from moto.core import DEFAULT_ACCOUNT_ID
from moto.s3.models import s3_backends
from moto.s3.responses import S3Response
from moto.server import ThreadedMotoServer

_LOADER = Loader()

_ONE_PUT = threading.Lock()


def _put_at_once(response: S3Response, put: Any = S3Response.put_object) -> Any:
    """moto looks whether a PUT's condition holds, and writes later; S3 does both at once."""
    with _ONE_PUT:
        return put(response)


S3Response.put_object = _put_at_once


def _checksum_as_sent(
    response: S3Response, headers: dict[str, Any], get: Any = S3Response._get_checksum
) -> tuple[str, str | None]:
    """moto wants the checksum's kind in a header of its own; to S3 the checksum's header is enough."""
    sha256 = response.headers.get("x-amz-checksum-sha256")
    if not sha256:
        return get(response, headers)
    assert sha256 == b64encode(hashlib.sha256(response.body or b"").digest()).decode()  # else BadDigest
    headers["x-amz-checksum-sha256"] = sha256
    return "SHA256", sha256


S3Response._get_checksum = _checksum_as_sent


@contextmanager
def serving() -> Iterator[str]:
    """The URL of an S3 that works. It ends with the block."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # not a line for each request
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        yield "http://{}:{}".format(*server.get_host_and_port())
    finally:
        server.stop()


def only_at(url: str, patch: pytest.MonkeyPatch) -> None:
    """An environment in which boto3 finds the AWS at `url` and nothing of the developer's own."""
    # One loader for all sessions: reading EC2's description takes a second each time, S3's a tenth.
    patch.setattr("botocore.session.create_loader", lambda path=None: _LOADER)
    for name in os.environ:
        if name.startswith("AWS_") or name.lower() in ("http_proxy", "https_proxy", "all_proxy"):
            patch.delenv(name)
    settings = {
        "AWS_ENDPOINT_URL": url,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    for name, value in settings.items():
        patch.setenv(name, value)


def fresh_bucket(url: str) -> str:
    """The name of a new, empty bucket at `url`."""
    name = f"musicgen-test-{uuid.uuid4().hex}"
    # No signature, which moto does not ask for: making a boto3 client for each test takes longer.
    urllib.request.urlopen(urllib.request.Request(f"{url}/{name}", method="PUT")).close()
    return name


def fill(bucket: str, keys: Iterable[str]) -> None:
    """Put empty objects into a bucket of this process's moto without a request for each."""
    backend = s3_backends[DEFAULT_ACCOUNT_ID]["aws"]
    for key in keys:
        backend.put_object(bucket, key, b"")


@contextmanager
def refusing(status: int, code: str) -> Iterator[str]:
    """The URL of an S3 that answers every request with this error; with no code, with its status alone."""

    class Refusal(_Quiet):
        def answer(self, body: bytes) -> None:
            self.refuse(status, code)

    with over_http(Refusal) as url:
        yield url


@contextmanager
def answering(page: bytes) -> Iterator[str]:
    """The URL of something that is no S3 and answers every request with this page."""

    class Page(_Quiet):
        def answer(self, body: bytes) -> None:
            self.reply(200, page)

    with over_http(Page) as url:
        yield url


Refuse = Callable[[str, Mapping[str, str]], tuple[int, str, str] | None]


@contextmanager
def failing_once(url: str, method: str, refusal: tuple[int, str] | None = None) -> Iterator[str]:
    """A relay that spoils the first request with this method.

    With a refusal (status, code) S3 never sees the request; without, S3 obeys it and the answer
    to a PUT is lost, that to a GET breaks off.
    """
    failed = threading.Event()

    class Relay(_Quiet):
        def answer(self, body: bytes) -> None:
            spoil = self.command == method and not failed.is_set()
            if spoil:
                failed.set()
            if spoil and refusal:
                self.refuse(*refusal)
                return
            status, content, headers = self.ask(url, body, self.headers)
            self.close_connection = spoil
            if not (spoil and method == "PUT"):
                self.reply(status, content, headers, len(content) // 2 if spoil else None)

    with over_http(Relay) as relay_url:
        yield relay_url


class Gate:
    """Whether a relay lets requests through. `refusal`: the (status, code) that they get instead."""

    def __init__(self) -> None:
        self.url = ""
        self.refusal: tuple[int, str] | None = None
        self.loses_answers = False  # to every PUT, which S3 obeys
        self.seen: list[tuple[str, int]] = []  # (method, bytes of the answer)


@contextmanager
def gated(url: str) -> Iterator[Gate]:
    """A relay that refuses what it is told to refuse, and counts."""
    gate = Gate()

    class Relay(_Quiet):
        def answer(self, body: bytes) -> None:
            if gate.refusal:
                self.refuse(*gate.refusal)
                return
            status, content, headers = self.ask(url, body, self.headers)
            gate.seen.append((self.command, len(content)))
            if self.command == "PUT" and gate.loses_answers:
                self.close_connection = True
            else:
                self.reply(status, content, headers)

    with over_http(Relay) as gate.url:
        yield gate


@contextmanager
def ignoring_conditions(url: str, ignored: Collection[str] = ("If-None-Match", "If-Match")) -> Iterator[str]:
    """A relay that drops these headers, as look-alikes do."""

    class Relay(_Quiet):
        def answer(self, body: bytes) -> None:
            kept = {name: value for name, value in self.headers.items() if name not in ignored}
            self.reply(*self.ask(url, body, kept))

    with over_http(Relay) as relay_url:
        yield relay_url


@contextmanager
def backblaze(url: str) -> Iterator[str]:
    """A relay that refuses what Backblaze B2 refuses, in its words: checksums, conditional writes."""

    def refuse(method: str, headers: Mapping[str, str]) -> tuple[int, str, str] | None:
        for name in map(str.lower, headers):
            if "checksum" in name:
                return 400, "InvalidArgument", f"Unsupported header '{name}' received for this API call."
            if method == "PUT" and name in ("if-match", "if-none-match"):
                text = "A header you provided implies functionality that is not implemented"
                return 501, "NotImplemented", text
        return None

    with over_http(_strict(url, refuse)) as relay_url:
        yield relay_url


@contextmanager
def cloudflare(url: str, *, knows_checksums: bool, certificate: Path) -> Iterator[str]:
    """A relay over TLS that refuses what Cloudflare R2 refuses, in its words: checksums after the body.

    `knows_checksums`: as it does since 2025 in a header. Writes the certificate to trust.
    """

    def refuse(method: str, headers: Mapping[str, str]) -> tuple[int, str, str] | None:
        kind = headers.get("x-amz-content-sha256", "")
        if kind.startswith("STREAMING-"):
            return 501, "NotImplemented", f"{kind} not implemented"
        for name, value in headers.items():
            if name.lower().startswith("x-amz-checksum-") and method == "PUT" and not knows_checksums:
                text = f"Header '{name.lower()}' with value '{value}' not implemented"
                return 501, "NotImplemented", text
        return None

    with over_http(_strict(url, refuse), certificate) as relay_url:
        yield relay_url


class _Quiet(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, body: bytes) -> None:
        raise NotImplementedError

    def ask(self, url: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes, dict[str, str]]:
        """The status, content and headers with which the server at `url` answers this request."""
        server = http.client.HTTPConnection(urlsplit(url).netloc)
        server.request(self.command, self.path, body, dict(headers))
        answer = server.getresponse()
        content = answer.read()
        server.close()
        return answer.status, content, dict(answer.headers)

    def refuse(self, status: int, code: str, text: str = "no") -> None:
        told = f"<Error><Code>{code}</Code><Message>{text}</Message></Error>" if code else ""
        self.reply(status, told.encode())

    def reply(
        self, status: int, content: bytes, headers: Mapping[str, str] | None = None, n_sent: int | None = None
    ) -> None:
        self.send_response(status)
        for name, value in (headers or {}).items():
            if name.lower().startswith("x-amz-") or name in ("ETag", "Last-Modified"):
                self.send_header(name, value)
        size = (headers or {}).get("Content-Length") if self.command == "HEAD" else None
        self.send_header("Content-Length", size or str(len(content)))
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content[:n_sent])

    def _serve(self) -> None:
        if self.headers.get("Transfer-Encoding") == "chunked":
            while self.rfile.readline().strip():  # trailers and chunks, to the empty line
                pass
            self.answer(b"")
            return
        self.answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    do_GET = do_PUT = do_DELETE = do_HEAD = _serve

    def log_message(self, format: str, *args: object) -> None:
        pass


def _strict(url: str, refuse: Refuse) -> type[_Quiet]:
    class Relay(_Quiet):
        def answer(self, body: bytes) -> None:
            if refusal := refuse(self.command, self.headers):
                self.refuse(*refusal)
            else:
                self.reply(*self.ask(url, body, self.headers))

    return Relay


@contextmanager
def over_http(handler: type[BaseHTTPRequestHandler], certificate: Path | None = None) -> Iterator[str]:
    """An address on loopback; with a file for its own certificate, over TLS."""
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    if certificate:
        _make_certificate(certificate)
        context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
        context.load_cert_chain(certificate)
        server.socket = context.wrap_socket(server.socket, server_side=True)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http{'s' if certificate else ''}://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


def _make_certificate(path: Path) -> None:
    """Write a key and a certificate for 127.0.0.1 that signs itself."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, "127.0.0.1")])
    here = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(here, critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
        .sign(key, hashes.SHA256())
    )
    pem, plain = serialization.Encoding.PEM, serialization.NoEncryption()
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, plain)
    path.write_bytes(private + certificate.public_bytes(pem))
