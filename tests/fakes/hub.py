"""A stand-in for the model hub, over HTTP: HF_ENDPOINT leads to it.

    with hubs.serving({"demo/model": {"config.json": b"{}", "model.safetensors": weights}}) as hub:
        hub.push("demo/model", {...})                     # `main` moves; old commits stay
        hub.faults["model.safetensors"] = [cut(1000), status(503)]   # one for each request, in this order
        hub.faults["api"] = [status(503)]                 # of questions, not files
        hub.gated["demo/model"] = "hf_token"              # only with this token
        hub.cdn = True                                    # files come from another host, by a signed address

`asked` keeps every request. Checksums are as the hub's: git's blob id of small files, sha256 of large ones.
"""

import hashlib
import json
import re
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import NamedTuple
from urllib.parse import unquote, urlsplit

_BLOCK = 1 << 18
_LARGE = (".safetensors", ".bin")


class Asked(NamedTuple):
    """A request. `start`: of its Range, else 0; `token`: "" if it has none; `by_cdn`: of the other host."""

    method: str
    path: str
    start: int
    token: str
    by_cdn: bool


class Fault(NamedTuple):
    """What goes wrong with one request for a file."""

    kind: str
    value: int = 0
    headers: Mapping[str, str] = {}


def cut(n_bytes: int) -> Fault:
    """The connection breaks off after so many bytes."""
    return Fault("cut", n_bytes)


def short(n_bytes: int) -> Fault:
    """Only so many bytes are sent, as if that were all."""
    return Fault("short", n_bytes)


def flipped() -> Fault:
    """The last byte is another one."""
    return Fault("flip")


def status(code: int, **headers: str) -> Fault:
    """An answer without a file; `Retry_After="3"` is a header."""
    return Fault("status", code, {name.replace("_", "-"): value for name, value in headers.items()})


def other_etag() -> Fault:
    """The file with another ETag, whole if it is asked for a part with If-Range."""
    return Fault("etag")


def whole() -> Fault:
    """The whole file, whatever part is asked for."""
    return Fault("whole")


class Hub:
    """What it serves, and what it was asked. `pause_s`: before each 256 KiB of a file."""

    def __init__(self, repos: Mapping[str, dict[str, bytes]], pause_s: float) -> None:
        self.pause_s = pause_s
        self.commits: dict[str, dict[str, bytes]] = {}
        self.main: dict[str, str] = {}
        self.faults: dict[str, list[Fault]] = {}
        self.gated: dict[str, str] = {}
        self.cdn = False
        self.asked: list[Asked] = []
        self.sent_bytes = 0  # of files
        self.url = self.cdn_url = ""
        for repo, files in repos.items():
            self.push(repo, files)

    def push(self, repo: str, files: dict[str, bytes]) -> str:
        """Move `main` to a new commit with these files; -> the commit."""
        content = repr((repo, [(name, hashlib.sha256(its).hexdigest()) for name, its in files.items()]))
        commit = hashlib.sha1(content.encode()).hexdigest()
        self.commits[f"{repo}@{commit}"] = files
        self.main[repo] = commit
        return commit

    def fetched(self) -> list[str]:
        """The names of the files that were asked for, in order."""
        return [
            asked.path.rpartition("/")[2]
            for asked in self.asked
            if "/resolve/" in asked.path and not asked.by_cdn
        ]

    def listing(self, path: str) -> object | None:
        """The JSON of the API; None for what there is not."""
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)(?:/revision/([^/]+))?", path):
            commit = self.main.get(found[1])
            if commit and found[2] not in (None, "main"):
                commit = found[2] if f"{found[1]}@{found[2]}" in self.commits else None
            return commit and {"id": found[1], "sha": commit}
        if found := re.fullmatch(r"/api/models/([^/]+/[^/]+)/tree/([^/]+)", path):
            files = self.commits.get(f"{found[1]}@{found[2]}")
            return files and [_entry(*each) for each in files.items()]
        return None


def git_sha1(content: bytes) -> str:
    """As git names a file's content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()


def _entry(name: str, content: bytes) -> dict[str, object]:
    entry: dict[str, object] = {"type": "file", "path": name, "size": len(content), "oid": git_sha1(content)}
    if name.endswith(_LARGE):
        large = {"oid": hashlib.sha256(content).hexdigest(), "size": len(content), "pointerSize": 130}
        entry |= {"oid": git_sha1(b"pointer"), "lfs": large}
    return entry


@contextmanager
def serving(repos: Mapping[str, dict[str, bytes]], pause_s: float = 0.0) -> Iterator[Hub]:
    """A hub with these repositories, and the host that its files may come from. They end with the block."""
    hub = Hub(repos, pause_s)
    servers = [ThreadingHTTPServer(("127.0.0.1", 0), _handler(hub, by_cdn)) for by_cdn in (False, True)]
    hub.url, hub.cdn_url = (f"http://127.0.0.1:{server.server_port}" for server in servers)
    for server in servers:
        server.daemon_threads = True
        Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield hub
    finally:
        for server in servers:
            server.shutdown()
            server.server_close()


def _handler(hub: Hub, by_cdn: bool) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        disable_nagle_algorithm = True  # a header and its body come at once

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            token = self.headers.get("Authorization", "").removeprefix("Bearer ")
            hub.asked.append(Asked(self.command, path, self.start(), token, by_cdn))
            repo = "/".join(path.removeprefix("/api/models").split("/")[1:3])
            name = path.partition("/resolve/")[2].partition("/")[2]
            if not by_cdn and repo in hub.gated and token != hub.gated[repo]:
                code = {"X-Error-Code": "GatedRepo"}
                self.answer(403 if token else 401, b"{}", code)
            elif name:
                self.file(repo, path, name)
            elif hub.faults.get("api"):
                fault = hub.faults["api"].pop(0)
                self.answer(fault.value, b"{}", dict(fault.headers))
            elif (listed := hub.listing(path)) is not None:
                self.answer(200, json.dumps(listed).encode())
            else:
                code = "RevisionNotFound" if repo in hub.main else "RepoNotFound"
                self.answer(404, b"{}", {"X-Error-Code": code})

        def start(self) -> int:
            found = re.match(r"bytes=(\d+)-", self.headers.get("Range", ""))
            return int(found[1]) if found else 0

        def file(self, repo: str, path: str, name: str) -> None:
            commit = path.partition("/resolve/")[2].partition("/")[0]
            files = hub.commits.get(f"{repo}@{hub.main.get(repo) if commit == 'main' else commit}")
            if files is None:
                return self.answer(404, b"{}", {"X-Error-Code": "RevisionNotFound"})
            if name not in files:
                return self.answer(404, b"{}", {"X-Error-Code": "EntryNotFound"})
            if hub.cdn and not by_cdn:
                return self.answer(302, b"", {"Location": f"{hub.cdn_url}{path}?Signature=planted"})
            waiting = hub.faults.get(name) or [Fault("none")]
            fault = waiting.pop(0)
            if fault.kind == "status":
                return self.answer(fault.value, b"{}", dict(fault.headers))
            self.content(files[name], fault, commit)

        def content(self, content: bytes, fault: Fault, commit: str) -> None:
            etag = f'"{hashlib.sha256(content).hexdigest()}"'
            if fault.kind == "etag":
                etag = '"another"'
            if fault.kind == "flip":
                content = content[:-1] + bytes([content[-1] ^ 1])
            if fault.kind == "short":
                content = content[: fault.value]
            start = 0 if fault.kind == "whole" else self.start()
            if self.headers.get("If-Range", etag) != etag:
                start = 0
            headers = {"X-Repo-Commit": commit, "ETag": etag}
            if start:
                headers["Content-Range"] = f"bytes {start}-{len(content) - 1}/{len(content)}"
            rest = content[start:]
            self.head(206 if start else 200, len(rest), headers)
            if fault.kind == "cut":
                rest = rest[: fault.value]
            for at in range(0, len(rest) if self.command == "GET" else 0, _BLOCK):
                time.sleep(hub.pause_s)
                self.wfile.write(block := rest[at : at + _BLOCK])
                hub.sent_bytes += len(block)
            if fault.kind == "cut":
                self.close_connection = True

        def answer(self, code: int, body: bytes, headers: Mapping[str, str] = {}) -> None:
            self.head(code, len(body), headers)
            if self.command == "GET":
                self.wfile.write(body)

        def head(self, code: int, n_bytes: int, headers: Mapping[str, str]) -> None:
            self.send_response(code)
            for name, value in {**headers, "Content-Length": str(n_bytes)}.items():
                self.send_header(name, value)
            self.end_headers()

        def handle(self) -> None:
            with suppress(OSError):  # whoever asked is gone
                super().handle()

        def log_message(self, *_: object) -> None:
            pass

    return Handler
