"""S3 over real HTTP on a free port of this machine: moto's server, and some that behave badly."""

import http.client
import logging
import os
import threading
import urllib.request
import uuid
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import urlsplit

import pytest
from botocore.loaders import Loader
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
            told = f"<Error><Code>{code}</Code><Message>no</Message></Error>" if code else ""
            self.reply(status, told.encode())

    with _http(Refusal) as url:
        yield url


@contextmanager
def failing_once(url: str, method: str, refusal: tuple[int, str] | None = None) -> Iterator[str]:
    """The URL of a way to the S3 at `url` that spoils the first request with this method.

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
                self.reply(refusal[0], f"<Error><Code>{refusal[1]}</Code></Error>".encode())
                return
            status, content, etag = self.ask(url, body, self.headers)
            self.close_connection = spoil
            if not (spoil and method == "PUT"):
                self.reply(status, content, etag, len(content) // 2 if spoil else None)

    with _http(Relay) as relay_url:
        yield relay_url


@contextmanager
def ignoring_conditions(url: str, ignored: Collection[str] = ("If-None-Match", "If-Match")) -> Iterator[str]:
    """The URL of a way to the S3 at `url` that drops these headers, as look-alikes do."""

    class Relay(_Quiet):
        def answer(self, body: bytes) -> None:
            kept = {name: value for name, value in self.headers.items() if name not in ignored}
            self.reply(*self.ask(url, body, kept))

    with _http(Relay) as relay_url:
        yield relay_url


class _Quiet(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def answer(self, body: bytes) -> None:
        raise NotImplementedError

    def ask(self, url: str, body: bytes, headers: Mapping[str, str]) -> tuple[int, bytes, str | None]:
        """The status, content and ETag with which the server at `url` answers this request."""
        server = http.client.HTTPConnection(urlsplit(url).netloc)
        server.request(self.command, self.path, body, dict(headers))
        answer = server.getresponse()
        content = answer.read()
        server.close()
        return answer.status, content, answer.headers["ETag"]

    def reply(self, status: int, content: bytes, etag: str | None = None, n_sent: int | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(content)))
        if etag:
            self.send_header("ETag", etag)
        self.end_headers()
        self.wfile.write(content[:n_sent])

    def _serve(self) -> None:
        if self.headers.get("Expect") == "100-continue":
            self.handle_expect_100()
        self.answer(self.rfile.read(int(self.headers.get("Content-Length", 0))))

    do_GET = do_PUT = do_DELETE = _serve

    def log_message(self, format: str, *args: object) -> None:
        pass


@contextmanager
def _http(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
