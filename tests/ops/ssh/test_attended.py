"""A script that is attended to ends with whoever attends, and with the connection, however that was lost."""

import time

import pytest

from ops.ssh import attended
from ops.ssh import link as links
from ops.ssh.attended import Attended
from ops.ssh.link import LinkLost
from tests.fakes.proxy import proxying
from tests.ops.ssh.connect import connected, deployed
from tests.remote.boxes import until
from worker.errors import BadInput, UserError

# Has a child, which must go with it.
SLEEPS = b"sleep 987 &\necho ready $1\nwait\n"
FILES = {
    "remote/sleeps.sh": SLEEPS,
    "remote/deaf.sh": b"trap '' TERM\n" + SLEEPS,
    "remote/fails.sh": b"echo trying\necho 'error: no, not so' >&2\nexit $1\n",
}


@pytest.fixture
def link(box, tmp_path):
    with deployed(box, tmp_path, FILES), proxying(box.port) as link:
        yield link


@pytest.fixture
def conn(box, tmp_path, link):
    with connected(box, tmp_path, link.port) as conn:
        yield conn


def sleepers(box):
    return [words for words in box.processes().values() if words[:2] == ["sleep", "987"]]


def test_it_ends_with_its_children_when_it_is_closed(box, conn):
    (box.home / ".bashrc").write_text("echo welcome\n")
    with Attended(conn, "sleeps.sh", "it's $x") as script:
        assert script.wait_for(r"(?m)^ready (.*?)\r?$", 20)[1] == "it's $x"
        assert sleepers(box) and not script.ended
    until(lambda: not sleepers(box))


def test_it_ends_when_the_connection_was_cut(box, conn, link):
    script = Attended(conn, "sleeps.sh")
    script.wait_for("ready", 20)
    link.reset()
    until(lambda: script.ended)
    assert isinstance(script.problem(), LinkLost)
    until(lambda: not sleepers(box))
    script.close()


@pytest.mark.parametrize("name", ["sleeps.sh", "deaf.sh"])
def test_it_ends_after_a_silence_of_a_connection_that_died_unnoticed(box, conn, link, monkeypatch, name):
    monkeypatch.setattr(attended, "SILENCE_S", 1)
    monkeypatch.setattr(attended, "BEAT_S", 0.1)
    monkeypatch.setattr(links, "DEAD_AFTER_S", 60)
    script = Attended(conn, name)
    script.wait_for("ready", 20)
    time.sleep(1.5)  # longer than the silence: it is attended to
    assert sleepers(box)
    link.stall()
    until(lambda: not sleepers(box))
    link.reset()
    script.close()


@pytest.mark.parametrize(("code", "kind"), [("1", UserError), ("2", BadInput)])
def test_what_it_ended_with_is_one_line(conn, code, kind):
    with Attended(conn, "fails.sh", code) as script, pytest.raises(kind, match=r"^no, not so$"):
        script.wait_for("ready", 20)
    assert script.code == int(code)


@pytest.mark.parametrize("has_release", [True, False])
def test_box_without_the_script_is_told_to_deploy(box, conn, has_release):
    if not has_release:
        (box.root / "current").unlink()
    message = r"there is no remote/gone.sh on .*; run: fab deploy"
    with Attended(conn, "gone.sh") as script, pytest.raises(BadInput, match=message):
        script.wait_for("ready", 20)
