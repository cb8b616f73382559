"""Fixtures that several test files share."""

import os
import random

import pytest

from tests.fakes import s3
from worker.store import open_store


@pytest.fixture(scope="session")
def s3_server():
    """The URL of a real S3 API, one for each xdist worker."""
    with s3.serving() as url:
        yield url


@pytest.fixture
def s3_url(s3_server, monkeypatch):
    """`s3_server`, and an environment in which boto3 finds it and nothing of the developer's own."""
    for name in os.environ:
        if name.startswith("AWS_") or name.lower() in ("http_proxy", "https_proxy", "all_proxy"):
            monkeypatch.delenv(name)
    settings = {
        "AWS_ENDPOINT_URL": s3_server,
        "AWS_ACCESS_KEY_ID": "testing",
        "AWS_SECRET_ACCESS_KEY": "testing",
        "AWS_DEFAULT_REGION": "us-east-1",
        "AWS_CONFIG_FILE": os.devnull,
        "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
        "AWS_EC2_METADATA_DISABLED": "true",
    }
    for name, value in settings.items():
        monkeypatch.setenv(name, value)
    return s3_server


@pytest.fixture(params=["folder", "s3"])
def store(request, tmp_path):
    """An empty store, once in a folder that is not there yet, once under a prefix of a new bucket."""
    if request.param == "folder":
        return open_store(str(tmp_path / "out"))
    return open_store(f"s3://{s3.fresh_bucket(request.getfixturevalue('s3_url'))}/some/prefix")


@pytest.fixture
def rng():
    """Randomness that a failing test can be given again: it prints the seed."""
    seed = int(os.environ.get("TEST_SEED") or random.SystemRandom().randrange(2**32))
    print(f"run again with TEST_SEED={seed}")
    return random.Random(seed)
