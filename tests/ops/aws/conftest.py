"""An AWS account as `inv setup` leaves it, and ways to use it."""

import threading
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path

import boto3
import pytest
from botocore.client import ClientCreator

from ops import release
from ops.aws.session import Aws, tag_list
from ops.settings import Settings
from tests.fakes.inv import typed_in
from tests.ops.aws.accounts import as_user, new_account, ready_account

ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="session", autouse=True)
def read_once():
    """What is the same for every test is made once: AWS's descriptions as methods, our tree as an archive."""
    made = ClientCreator._create_methods
    known = {}

    def methods(creator, service):
        if service.service_name not in known:
            known[service.service_name] = made(creator, service)
        return dict(known[service.service_name])

    packed = {}

    def pack(root, prompts, model="", really=release.from_tree):
        content = (root, prompts.read_bytes(), model)
        if root != ROOT or content not in packed:
            packed[content] = really(root, prompts, model)
        return packed[content]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ClientCreator, "_create_methods", methods)
        patch.setattr(release, "from_tree", pack)
        yield


@pytest.fixture
def aws(tmp_path, monkeypatch):
    """An account that has nothing yet."""
    with new_account(tmp_path, monkeypatch) as account:
        yield account


@pytest.fixture
def account(tmp_path, monkeypatch):
    """An account that has all that a launch needs."""
    with ready_account(tmp_path, monkeypatch) as account:
        yield account


@pytest.fixture
def us(account):
    """The account as our code sees it."""
    return Aws(Settings.load(), task="test")


@pytest.fixture
def bare(aws, tmp_path, monkeypatch):
    """`aws` before any `inv setup`, and a call that gives it as our code sees it under these settings."""
    as_user(tmp_path, monkeypatch)

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
def inv(tmp_path):
    """Run the real `inv` to its end, in this process: a new one would read AWS's descriptions for seconds."""
    return typed_in(tmp_path)


@pytest.fixture
def machine(account):
    """Rent a machine of this project behind the tools' back; more of its tags may be given."""

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
