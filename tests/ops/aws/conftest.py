"""An AWS account as `inv setup` leaves it, and ways to use it."""

import contextlib
import functools
import io
import os
import signal
import subprocess
import sys
import threading
import time
from datetime import timedelta
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from types import SimpleNamespace

import boto3
import botocore.session
import pytest
from botocore.client import ClientCreator
from invoke import Collection, Program

import tasks
from ops.aws.session import Aws, tag_list
from ops.settings import Settings

ROOT = Path(__file__).parents[3]
ZONES = ("us-east-1a", "us-east-1b", "us-east-1c")
PRICES = dict(zip(ZONES, (0.21, 0.19, 0.25), strict=True))


@pytest.fixture(scope="session", autouse=True)
def one_loader():
    """AWS's service descriptions are read, and made into methods, once and not for each of our clients."""
    made = ClientCreator._create_methods
    known = {}

    def methods(creator, service):
        if service.service_name not in known:
            known[service.service_name] = made(creator, service)
        return dict(known[service.service_name])

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(botocore.session, "create_loader", functools.cache(botocore.session.create_loader))
        patch.setattr(ClientCreator, "_create_methods", methods)
        yield


@pytest.fixture
def account(aws, tmp_path, monkeypatch):
    """`aws` with bucket, profile, firewall, key pair, image, prices and a list of two songs."""
    monkeypatch.chdir(tmp_path)
    for name in [n for n in os.environ if n.startswith(("MUSICGEN_", "HOURLY_COST"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MUSICGEN_S3_BUCKET", "musicgen-batch-output-test")
    monkeypatch.setenv("MUSICGEN_S3_PREFIX", "album")
    monkeypatch.setenv("MUSICGEN_MODEL", "facebook/musicgen-small")
    monkeypatch.setenv("MUSICGEN_AUDIT_LOG", str(tmp_path / "audit.jsonl"))
    (tmp_path / "prompts.txt").write_text("calm piano ; 60 ; calm\nloud drums ; 30 ; loud\n", "utf-8")
    for zone, usd in PRICES.items():
        aws.set_price("g4dn.xlarge", zone, usd)

    ec2, iam = boto3.client("ec2"), boto3.client("iam")
    boto3.client("s3").create_bucket(Bucket="musicgen-batch-output-test")
    iam.create_role(RoleName="musicgen-worker-role", AssumeRolePolicyDocument="{}")
    iam.create_instance_profile(InstanceProfileName="musicgen-worker-role")
    iam.add_role_to_instance_profile(
        InstanceProfileName="musicgen-worker-role", RoleName="musicgen-worker-role"
    )
    ec2.create_key_pair(KeyName="musicgen-worker", KeyType="ed25519")
    vpc = ec2.describe_vpcs(Filters=[{"Name": "is-default", "Values": ["true"]}])["Vpcs"][0]["VpcId"]
    ec2.create_security_group(GroupName="musicgen-worker", Description="SSH", VpcId=vpc)
    monkeypatch.setenv("MUSICGEN_AMI_ID", aws.image())
    aws.calls.clear()
    return aws


@pytest.fixture
def us(account):
    """The account as our code sees it."""
    return Aws(Settings.load(), task="test")


@pytest.fixture
def bare(aws, tmp_path, monkeypatch):
    """`aws` before any `inv setup`, and a call that gives it as our code sees it under these settings."""
    monkeypatch.chdir(tmp_path)
    for name in [n for n in os.environ if n.startswith(("MUSICGEN_", "HOURLY_COST"))]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MUSICGEN_AUDIT_LOG", str(tmp_path / "audit.jsonl"))
    monkeypatch.setenv("MUSICGEN_KEY_FILE", str(tmp_path / "keys" / "worker.pem"))
    monkeypatch.setenv("MUSICGEN_SSH_FROM", "203.0.113.7")
    monkeypatch.setenv("MUSICGEN_BUDGET_EMAIL", "me@example.com")

    def our_view(**env):
        for name, value in env.items():
            monkeypatch.setenv(name, value)
        return Aws(Settings.load(), task="test")

    our_view.fake = aws
    return our_view


@pytest.fixture
def page():
    """A call that gives the address of a web page with this content; None: nobody answers there."""
    servers = []

    def serve(content):
        class Handler(BaseHTTPRequestHandler):
            def do_GET(self):
                self.send_response(200)
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, format, *args):
                pass

        server = HTTPServer(("127.0.0.1", 0), Handler)
        url = f"http://127.0.0.1:{server.server_port}"
        if content is None:
            server.server_close()
            return url
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02})
        thread.start()
        servers.append((server, thread))
        return url

    yield serve
    for server, thread in servers:
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def told():
    """Collects what is told; joined by `str`."""

    class Told(list):
        def __call__(self, line):
            self.append(line)

        def __str__(self):
            return "\n".join(self)

    return Told()


@pytest.fixture
def start(aws, tmp_path):
    """Start the real `inv` in the user's folder; what still runs at the end is killed."""
    running = []

    def begin(*arguments, **env):
        command = [sys.executable, "-m", "invoke", "--search-root", str(ROOT), *arguments]
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=os.environ | env,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        running.append(process)
        return process

    yield begin
    for process in running:
        if process.poll() is None:
            process.send_signal(signal.SIGKILL)
        process.communicate()


@pytest.fixture
def inv(aws, tmp_path):
    """Run the real `inv` to its end, in this process: a new one would read AWS's descriptions for seconds."""

    def run(*arguments, encoding="utf-8"):
        before, here = dict(os.environ), Path.cwd()
        out, err = (io.TextIOWrapper(io.BytesIO(), encoding, write_through=True) for _ in range(2))
        with Path(os.devnull).open() as nobody, pytest.MonkeyPatch.context() as patch:
            patch.setattr(sys, "stdin", nobody)
            os.chdir(tmp_path)
            try:
                with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
                    Program(namespace=Collection.from_module(tasks)).run(["inv", *arguments])
                code = 0
            except SystemExit as ended:
                code = ended.code
            finally:
                os.chdir(here)
                os.environ.clear()
                os.environ.update(before)
        texts = (stream.buffer.getvalue().decode(encoding) for stream in (out, err))
        return SimpleNamespace(code=code, **dict(zip(("out", "err"), texts, strict=True)))

    return run


@pytest.fixture
def machine(account):
    """Rent a machine of ours behind the tools' back; more of its tags may be given."""

    def rent(region="us-east-1", project=True, **tags):
        ec2 = boto3.client("ec2", region_name=region)
        listed = tag_list(**tags) if project else [{"Key": "Name", "Value": "of somebody else"}]
        answer = ec2.run_instances(
            ImageId=account.image(region),
            InstanceType="g4dn.xlarge",
            MinCount=1,
            MaxCount=1,
            TagSpecifications=[{"ResourceType": "instance", "Tags": listed}],
        )
        account.calls.clear()
        return answer["Instances"][0]["InstanceId"]

    return rent


def until(condition, seconds=20.0):
    """Wait for something that another process brings about."""
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end, "it did not come about"
        time.sleep(0.02)


HOUR = timedelta(hours=1)
