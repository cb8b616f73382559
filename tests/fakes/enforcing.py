"""The fake AWS, and in it IAM policies that count."""

import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager

from tests.fakes import aws


@contextmanager
def serving() -> Iterator[aws.Aws]:
    """A new account in which everything is allowed until `enforce`. The switch is for all of this process."""
    with aws.serving() as account:
        try:
            yield account
        finally:
            enforce(account.url, on=False)


def enforce(url: str, on: bool = True) -> None:
    """From now on each request needs keys with a policy that allows it; or no longer."""
    n_free = b"0" if on else b"1000000"
    request = urllib.request.Request(f"{url}/moto-api/reset-auth", n_free, {"Content-Type": "text/plain"})
    urllib.request.urlopen(request).close()
