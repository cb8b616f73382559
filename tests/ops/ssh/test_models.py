"""`fab models`: what is on a box, fetched by a job that goes on, verified, removed, tried."""

import fcntl
import json
import signal
import sys

import pytest

from ops import release
from ops.repository import ROOT
from ops.ssh import models, ship
from ops.ssh.models import OnBox
from tests.fakes import hub as hubs
from tests.ops.ssh.connect import connected
from tests.worker.models import trees
from worker.errors import Interrupted, UserError

# Makes a song in no time, as `python -m worker` would.
WORKER = """
import json, os, sys
from pathlib import Path

Path.home().joinpath("seen.json").write_text(json.dumps(dict(os.environ)))
given = dict(word.removeprefix("--").split("=", 1) for word in sys.argv[1:])
print("loaded in 0 s")
print("made smoke.wav, $0.00")
print("songs are in", given["output"])
if given["model"] == "broken":
    sys.exit("error: no such model; give another")
records = Path(given["output"]) / "records"
records.mkdir(parents=True)
silent = given["model"] == "silent"
quality = {"duration_s": 5.0, "silence_s": 5.0 if silent else 0.1, "lufs": None if silent else -20.0}
quality["flags"] = ["silent"] * silent
made = {"model": given["model"], "device": "cpu", "precision": "fp32", "seconds": 5.0, "generation_s": 1.5}
(records / "smoke_0.json").write_text(json.dumps(made | {"quality": quality}))
"""


@pytest.fixture
def hub():
    with hubs.serving(trees.repos()) as hub:
        yield hub


@pytest.fixture
def conn(box, hub, tmp_path):
    """A box with our code and an environment, whose hub is that one."""
    code = [*(ROOT / "remote").glob("*"), *(ROOT / "worker").rglob("*.py")]
    files = {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in code if path.is_file()}
    files |= {"prompts.txt": b"rain ; 1 ; rain\n", "worker/__main__.py": WORKER.encode()}
    python = box.box_home / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    box.variables["HF_ENDPOINT"] = hub.url
    box.write_shell()
    with connected(box, tmp_path) as conn:
        ship.send(conn, release.bundle(files))
        yield conn


def test_model_is_got_listed_verified_and_removed(fab, conn, box):
    got = fab("models", "--get", trees.NAME)
    assert got.returncode == 0, got.stderr
    assert "demo/tiny is complete: 3.0 MB" in got.stdout
    rows = {row["name"]: row for row in json.loads(fab("models", "--json").stdout)}
    assert rows[trees.NAME]["state"] == "complete" and rows[trees.NAME]["verified_at"]
    assert rows["heartmula-3b"]["state"] == "absent"
    assert "every checksum is right" in fab("models", "--verify").stdout
    refused = fab("models", "--remove", trees.NAME)
    assert refused.returncode == 3 and "--yes" in refused.stderr
    assert fab("models", "--remove", trees.NAME, "--yes").returncode == 0
    assert list(box.root.parent.glob("models/demo--tiny/*")) == []


def test_damaged_file_is_named_and_alone_fetched_again(fab, conn, box, hub):
    fab("models", "--get", trees.NAME)
    (box.root.parent / "models" / "demo--tiny" / "tokenizer.json").write_bytes(b"x")
    checked = fab("models", "--verify")
    assert checked.returncode == 1 and "tokenizer.json" in checked.stdout
    hub.asked.clear()
    assert fab("models", "--get", trees.NAME).returncode == 0
    assert hub.fetched() == ["tokenizer.json"]


def test_ctrl_c_ends_the_following_and_the_same_command_joins_it_again(fab, conn, box, hub):
    hub.pause_s = 0.3
    with fab.start("models", "--get", trees.NAME) as process:
        assert next(line for line in process.stdout if b"are to come" in line)
        process.send_signal(signal.SIGINT)
        assert "the box goes on with it" in process.stderr.read().decode()
        assert process.wait(60) == 0
    again = fab("models", "--get", trees.NAME)
    assert again.returncode == 0, again.stderr
    assert "demo/tiny is complete" in again.stdout
    assert len(hub.fetched()) == len(set(hub.fetched()))


def test_install_has_what_the_run_needs_and_says_what_it_could_not_get(conn, hub, capfd):
    OnBox(conn).have("rehearsal")
    OnBox(conn).have("/some/folder")
    assert hub.asked == []
    OnBox(conn).have(trees.NAME)
    assert "demo/tiny is complete" in capfd.readouterr().out
    with pytest.raises(UserError, match="nobody/nothing is not complete on the box"):
        OnBox(conn).have("nobody/nothing")


def test_ctrl_c_while_the_model_comes_stops_the_phases(conn, monkeypatch):
    def pressed(*_, **__):
        raise KeyboardInterrupt

    monkeypatch.setattr(models.run_log, "follow", pressed)
    with pytest.raises(Interrupted, match="the box goes on with it"):
        OnBox(conn).have(trees.NAME)


@pytest.mark.parametrize(
    ("model", "code", "said"),
    [
        (
            "rehearsal",
            0,
            "it works, so this environment is valid: rehearsal on cpu, fp32: 5 of 5 s, -20.0 LUFS",
        ),
        ("silent", 1, "NO: silent on cpu, fp32: 5 of 5 s, silent, 5 s of silence"),
        ("broken", 1, "error: no such model"),
    ],
)
def test_smoke_says_what_it_heard(fab, conn, model, code, said):
    done = fab("models", "--smoke", model)
    assert (done.returncode, said in done.stdout) == (code, True), done.stdout + done.stderr
    assert "loaded in 0 s" in done.stdout and "songs are in" not in done.stdout


def test_smoke_has_the_boxs_settings_and_the_whole_name(fab, conn, box):
    (box.box_home / "worker.env").write_text("HF_TOKEN=hf_PLANTED\nHF_ENDPOINT=http://mirror\n")
    done = fab("models", "--smoke", "musicgen-small")
    assert "valid: facebook/musicgen-small on cpu" in done.stdout, done.stdout + done.stderr
    seen = json.loads((box.home / "seen.json").read_text())
    assert (seen["HF_TOKEN"], seen["HF_ENDPOINT"]) == ("hf_PLANTED", "http://mirror")
    assert "hf_PLANTED" not in done.stdout + done.stderr


def test_smoke_does_not_disturb_a_run(fab, conn, box):
    with (box.box_home / "worker.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = fab("models", "--smoke", "rehearsal")
    assert (done.returncode, "error: a run is on" in done.stdout) == (1, True), done.stdout + done.stderr
