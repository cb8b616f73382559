"""An AWS that enforces IAM policies, as a process of its own: the switch is for a whole moto.

python tests/fakes/enforcing.py      prints its address and serves until its stdin ends
"""

import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def serving() -> Iterator[str]:
    """The URL of a new account in which everything is allowed until `enforce`. It ends with the block."""
    command = [sys.executable, "-m", "tests.fakes.enforcing"]
    root = Path(__file__).parents[2]
    process = subprocess.Popen(command, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdin and process.stdout
        yield process.stdout.readline().strip()
    finally:
        process.communicate(timeout=30)


def enforce(url: str, on: bool = True) -> None:
    """From now on each request needs keys with a policy that allows it; or no longer."""
    n_free = b"0" if on else b"1000000"
    request = urllib.request.Request(f"{url}/moto-api/reset-auth", n_free, {"Content-Type": "text/plain"})
    urllib.request.urlopen(request).close()


def _serve() -> None:
    from tests.fakes import aws

    with aws.serving() as account:
        account.set_price("g4dn.xlarge", "us-east-1a", 0.19)
        print(account.url, flush=True)
        sys.stdin.read()


if __name__ == "__main__":
    _serve()
