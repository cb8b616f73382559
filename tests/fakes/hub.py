"""A stand-in for the model hub, over HTTP: HF_ENDPOINT leads to it. It knows one model.

`asked` keeps method and path of every request; `pause_s` passes before each block of a file.
"""

import hashlib
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" + "0" * 34
_BLOCK = 1 << 20


class Hub:
    """What it serves, and what it was asked."""

    def __init__(self, model: str, files: dict[str, bytes], pause_s: float):
        self.model, self.files, self.pause_s = model, files, pause_s
        self.asked: list[tuple[str, str]] = []
        self.url = ""

    def answer(self, path: str) -> tuple[dict[str, str], bytes] | None:
        """Headers and body; None for what there is not."""
        if path in (f"/api/models/{self.model}", f"/api/models/{self.model}/revision/main"):
            siblings = [{"rfilename": name} for name in self.files]
            return {}, json.dumps({"id": self.model, "sha": COMMIT, "siblings": siblings}).encode()
        if path.startswith(f"/api/models/{self.model}/tree/"):
            return {}, json.dumps([_entry(*each) for each in self.files.items()]).encode()
        name = path.removeprefix(f"/{self.model}/resolve/{COMMIT}/")
        if name not in self.files:
            return None
        content = self.files[name]
        return {"X-Repo-Commit": COMMIT, "ETag": f'"{hashlib.sha256(content).hexdigest()}"'}, content


def _entry(name: str, content: bytes) -> dict[str, object]:
    digest = hashlib.sha256(content).hexdigest()
    large = {"oid": digest, "size": len(content), "pointerSize": 130}
    return {"type": "file", "path": name, "size": len(content), "oid": digest[:40], "lfs": large}


@contextmanager
def serving(model: str, files: dict[str, bytes], pause_s: float = 0.0) -> Iterator[Hub]:
    """A hub with this model. It ends with the block."""
    hub = Hub(model, files, pause_s)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            path = unquote(urlsplit(self.path).path)
            hub.asked.append((self.command, path))
            answer = hub.answer(path)
            headers, body = answer or ({}, b"{}")
            self.send_response(200 if answer else 404)
            for name, value in (headers | {"Content-Length": str(len(body))}).items():
                self.send_header(name, value)
            self.end_headers()
            for at in range(0, len(body) if self.command == "GET" else 0, _BLOCK):
                time.sleep(hub.pause_s)
                self.wfile.write(body[at : at + _BLOCK])

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_port}"
    Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
