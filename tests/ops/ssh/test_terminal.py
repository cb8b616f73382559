"""`fab shell` goes the way of every other command."""

from itertools import pairwise

import fabric

from ops.ssh.box import Box
from ops.ssh.tasks import gateway
from ops.ssh.terminal import ssh_command
from tests.ops.ssh.connect import configured


def options(tmp_path, **link):
    """What ssh is given with -o for a box at `link`."""
    made = fabric.Connection("203.0.113.7", "root", 22001, **link)
    made.gateway = gateway(made)
    words = ssh_command(Box(made, tmp_path / "pin", print))
    return [word for before, word in pairwise(words) if before == "-o"]


def test_without_a_jump_host_ssh_takes_none_of_its_own_configuration(tmp_path):
    assert "ProxyJump=none" in options(tmp_path)


def test_jump_hosts_are_given_in_their_order(tmp_path):
    found = configured("Host 203.0.113.7\n ProxyJump me@first:2201,second\nHost second\n User other\n")
    assert "ProxyJump=me@first:2201,other@second:22" in options(tmp_path, config=found)


def test_proxy_command_is_given(tmp_path):
    found = configured("Host 203.0.113.7\n ProxyCommand nc -X 5 %h %p\n")
    (given,) = (each for each in options(tmp_path, config=found) if each.startswith("Proxy"))
    assert given.startswith("ProxyCommand=nc -X 5 203.0.113.7 ")


def test_key_files_of_the_configuration_do_not_exclude_the_agent(tmp_path):
    text = "Host *\n IdentityFile /keys/one\n"
    assert "IdentitiesOnly=yes" not in options(tmp_path, config=configured(text))
    assert "IdentitiesOnly=yes" in options(tmp_path, config=configured(f"{text} IdentitiesOnly yes\n"))
