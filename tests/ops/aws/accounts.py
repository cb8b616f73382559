"""AWS accounts over real HTTP, and a user whose boto3 and settings know nothing else."""

import os
from contextlib import contextmanager

from tests.fakes import aws as fake
from tests.fakes import s3

BUCKET = "musicgen-batch-output-test"
PRICES = {"us-east-1a": 0.21, "us-east-1b": 0.19, "us-east-1c": 0.25}


@contextmanager
def new_account(folder, patch):
    """A fresh AWS account over HTTP, and a user in this folder whose boto3 and settings know only it."""
    patch.chdir(folder)
    for name in [n for n in os.environ if n.startswith(("MUSICGEN_", "RUNPOD_", "HOURLY_COST"))]:
        patch.delenv(name)
    patch.setenv("MUSICGEN_AUDIT_LOG", str(folder / "audit.jsonl"))
    with fake.serving() as account:
        s3.only_at(account.url, patch)
        yield account


@contextmanager
def ready_account(folder, patch):
    """One with bucket, profile, firewall, key pair, image, prices and a list of two songs."""
    with new_account(folder, patch) as account:
        patch.setenv("MUSICGEN_S3_BUCKET", BUCKET)
        patch.setenv("MUSICGEN_S3_PREFIX", "album")
        patch.setenv("MUSICGEN_MODEL", "facebook/musicgen-small")
        patch.setenv("MUSICGEN_AMI_ID", account.image())
        (folder / "prompts.txt").write_text("calm piano ; 60 ; calm\nloud drums ; 30 ; loud\n", "utf-8")
        for zone, usd in PRICES.items():
            account.set_price("g4dn.xlarge", zone, usd)
        account.furnish(BUCKET)
        yield account


def as_user(folder, patch):
    """What a user has set before the first `inv setup`."""
    patch.setenv("MUSICGEN_KEY_FILE", str(folder / "keys" / "worker.pem"))
    patch.setenv("MUSICGEN_SSH_FROM", "203.0.113.7")
    patch.setenv("MUSICGEN_BUDGET_EMAIL", "me@example.com")
