"""EC2's instance metadata (version 2) over real HTTP on a free port of this machine.

    with imds.serving() as metadata:     # AWS_EC2_METADATA_SERVICE_ENDPOINT = metadata.url
        metadata.interrupt(seconds=120)

boto3 takes the role's credentials from it. As a process of its own, until it is killed:

    python -m tests.fakes.imds URL_FILE

writes its URL into the file; then a POST to /interrupt/120, /rebalance or /expire-tokens acts.
Like EC2 it gives nothing without a token, and no token to a request that came through a proxy.
"""

import json
import sys
import threading
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

ROLE = "musicgen-worker-role"
CREDENTIALS = {"AccessKeyId": "ASIASTANDIN", "SecretAccessKey": "stand-in", "Token": "stand-in"}
_TTL = "X-aws-ec2-metadata-token-ttl-seconds"


class Metadata:
    """What the machine is told, and what it has asked. `paths` may be changed at any time."""

    def __init__(self, url: str, credentials: Mapping[str, str], role: str):
        self.url = url
        self.requests: list[tuple[str, str]] = []  # (method, path), in order
        self.failing = False  # answer everything with 500
        self.tokens: set[str] = set()
        role_answer = {
            "Code": "Success",
            "LastUpdated": _time(0),
            "Type": "AWS-HMAC",
            "Expiration": _time(6 * 3600),
            **credentials,
        }
        self.paths = {
            "instance-id": "i-0123456789abcdef0",
            "instance-type": "g4dn.xlarge",
            "instance-life-cycle": "spot",
            "placement/region": "us-east-1",
            "placement/availability-zone": "us-east-1a",
            "iam/security-credentials": role,
            f"iam/security-credentials/{role}": json.dumps(role_answer),
        }

    def interrupt(self, seconds: float = 120, action: str = "terminate") -> None:
        """EC2 takes the machine back in so many seconds."""
        self.paths["spot/instance-action"] = json.dumps({"action": action, "time": _time(seconds)})

    def rebalance(self) -> None:
        """EC2 thinks that it may take the machine back soon."""
        self.paths["events/recommendations/rebalance"] = json.dumps({"noticeTime": _time(0)})

    def expire_tokens(self) -> None:
        """Every token given so far is refused from now on."""
        self.tokens.clear()


@contextmanager
def serving(credentials: Mapping[str, str] = CREDENTIALS, role: str = ROLE) -> Iterator[Metadata]:
    """The metadata of a spot machine with this role. It ends with the block."""

    class Handler(_Handler):
        @property
        def metadata(self) -> Metadata:
            return metadata

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    metadata = Metadata(f"http://127.0.0.1:{server.server_port}", credentials, role)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield metadata
    finally:
        server.shutdown()
        server.server_close()
        thread.join()


class _Handler(BaseHTTPRequestHandler):
    metadata: Metadata

    def do_PUT(self) -> None:
        self.metadata.requests.append(("PUT", self.path))
        life = self.headers.get(_TTL, "")
        if self.metadata.failing:
            self._reply(500)
        elif self.path != "/latest/api/token":
            self._reply(405)
        elif "X-Forwarded-For" in self.headers:
            self._reply(403)
        elif not (life.isdigit() and 1 <= int(life) <= 21600):
            self._reply(400)
        else:
            token = uuid.uuid4().hex
            self.metadata.tokens.add(token)
            self._reply(200, token)

    def do_GET(self) -> None:
        self.metadata.requests.append(("GET", self.path))
        value = self.metadata.paths.get(self.path.removeprefix("/latest/meta-data/").rstrip("/"))
        if self.metadata.failing:
            self._reply(500)
        elif self.headers.get("X-aws-ec2-metadata-token") not in self.metadata.tokens:
            self._reply(401)
        elif value is None:
            self._reply(404)
        else:
            self._reply(200, value)

    def do_POST(self) -> None:
        """EC2 has none of these: they are how another process makes something happen."""
        _, act, *seconds = self.path.split("/")
        if act == "interrupt":
            self.metadata.interrupt(*map(float, seconds))
        elif act == "rebalance":
            self.metadata.rebalance()
        elif act == "expire-tokens":
            self.metadata.expire_tokens()
        else:
            self._reply(404)
            return
        self._reply(200)

    def _reply(self, status: int, text: str = "") -> None:
        self.send_response(status)
        self.send_header("Content-Type", "text/plain")
        self.send_header("Content-Length", str(len(text.encode())))
        self.end_headers()
        self.wfile.write(text.encode())

    def log_message(self, format: str, *args: object) -> None:
        pass


def _time(seconds_from_now: float) -> str:
    return (datetime.now(UTC) + timedelta(seconds=seconds_from_now)).strftime("%Y-%m-%dT%H:%M:%SZ")


if __name__ == "__main__":
    with serving() as stand_in:
        unfinished = Path(sys.argv[1] + ".tmp")
        unfinished.write_text(stand_in.url, "ascii")
        unfinished.replace(sys.argv[1])
        threading.Event().wait()
