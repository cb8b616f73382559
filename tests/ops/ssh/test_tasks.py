"""The way to a box that ~/.ssh/config describes, where Fabric takes another."""

import fabric
import pytest

from ops.ssh.tasks import CONFIG, gateway
from tests.ops.ssh.connect import configured


@pytest.mark.parametrize(
    ("text", "hops"),
    [
        ("Host *\n ProxyJump none\n", []),
        ("Host 203.0.113.7\n ProxyJump first\nHost *\n ProxyJump none\n", ["first"]),
        ("Host *\n ProxyCommand none\n", []),
        ("Host *\n ProxyJump first\n", ["first"]),
        (
            "Host 203.0.113.7\n ProxyJump second,third\nHost second\n ProxyJump first\n",
            ["first", "second", "third"],
        ),
    ],
)
def test_jump_hosts_are_visited_in_the_order_of_openssh(text, hops):
    link = fabric.Connection("203.0.113.7", config=configured(text))
    found, link.gateway = [], gateway(link)
    while link := link.gateway:
        found.insert(0, link.host)
    assert found == hops


def test_jump_host_without_a_user_has_the_local_one(monkeypatch):
    monkeypatch.setenv("LOGNAME", "someone")
    found = configured("Host 203.0.113.7\n ProxyJump first\n")
    found.user = CONFIG["user"]
    assert gateway(fabric.Connection("203.0.113.7", config=found)).user == "someone"
