"""`fab models`: what is on a box, fetched by a job that goes on, verified, removed, tried."""

import fcntl
import json
import shutil
import signal
import sys
from pathlib import Path

import pytest

from ops import release
from ops.repository import ROOT
from ops.ssh import models, ship
from ops.ssh.models import OnBox
from tests.fakes import hub as hubs
from tests.fakes.hub import cut, flipped, status
from tests.ops.ssh.connect import connected
from tests.worker.models import trees
from worker.errors import Interrupted, UserError
from worker.models import sets, tiny_heartmula

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

# Finds a HeartMuLa as the engine does, and loads nothing.
LOADER = """
import os, sys

from worker.errors import UserError
from worker.models.heartmula import tree_of

try:
    print("loading", tree_of(os.environ["MUSICGEN_MODEL"], os.environ).folder)
except UserError as error:
    sys.exit(print(f"error: {error}") or error.code)
"""


@pytest.fixture
def hub():
    with hubs.serving(trees.repos()) as hub:
        yield hub


@pytest.fixture
def conn(box, hub, tmp_path):
    """A box with our code and an environment, whose hub is that one."""
    box.variables["HF_ENDPOINT"] = hub.url
    box.write_shell()
    with connected(box, tmp_path) as conn:
        prepare(box, conn)
        yield conn


def prepare(box, conn, worker=WORKER):
    """What `fab deploy` and `fab install` do, in no time."""
    code = [*(ROOT / "remote").glob("*"), *(ROOT / "worker").rglob("*.py")]
    files = {path.relative_to(ROOT).as_posix(): path.read_bytes() for path in code if path.is_file()}
    files |= {"prompts.txt": b"rain ; 1 ; rain\n", "worker/__main__.py": worker.encode()}
    python = box.box_home / "venv" / "bin" / "python"
    python.parent.mkdir(parents=True, exist_ok=True)
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    ship.send(conn, release.bundle(files))


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


@pytest.mark.parametrize(
    ("faults", "gated", "code", "said"),
    [
        (
            [cut(1_000_000), flipped(), status(429, Retry_After="1")],
            "",
            0,
            "is complete: 3.0 MB",
        ),
        ([flipped()] * 3, "", 1, "came 3 times with a wrong checksum"),
        ([status(429, Retry_After="7200")], "", 1, "the hub asks to wait 2 h 0 min"),
        ([], "hf_NOT_OURS", 2, "needs a licence accepted; accept it on its page"),
    ],
    ids=["those that pass", "wrong bytes", "too many questions", "gated"],
)
def test_get_through_faults_ends_complete_or_in_one_line(fab, conn, box, hub, faults, gated, code, said):
    hub.faults["model.safetensors"] = faults
    if gated:
        hub.gated[trees.NAME] = gated
    got = fab("models", "--get", trees.NAME)
    assert (got.returncode, said in got.stdout) == (code, True), got.stdout + got.stderr
    assert got.stdout.count("error: ") == bool(code)
    marker = box.root.parent / "models" / "demo--tiny" / ".complete.json"
    assert marker.exists() == (code == 0)


def test_wiped_home_and_wiped_volume_are_restored_by_the_same_commands(fab, conn, box, hub):
    assert fab("models", "--get", trees.NAME).returncode == 0
    hub.asked.clear()
    shutil.rmtree(box.box_home)
    prepare(box, conn)
    assert fab("models", "--get", trees.NAME).returncode == 0 and hub.asked == []
    shutil.rmtree(box.root)
    shutil.rmtree(box.root.parent / "models")
    prepare(box, conn)
    assert "3.0 MB came now" in fab("models", "--get", trees.NAME).stdout
    assert "every checksum is right" in fab("models", "--verify").stdout


@pytest.fixture
def singing(hub, tmp_path):
    """The hub has HeartMuLa's three repositories, with tiny files."""
    tiny_heartmula.build(tmp_path / "tree")
    for part in sets.find("heartmula-3b").parts:
        files = [path for path in (tmp_path / "tree" / part.folder).iterdir() if path.is_file()]
        hub.push(part.repo, {path.name: path.read_bytes() for path in files})


def test_run_of_heartmula_names_what_gets_it_and_then_uses_what_was_got(fab, conn, box, singing):
    fab.env |= {"MUSICGEN_MODEL": "heartmula"}
    prepare(box, conn, LOADER)
    (box.root / "current" / "remote" / "torch.py").write_text("raise ImportError('takes seconds')")
    ckpt = box.root.parent / "ckpt"

    def run():
        started = fab("run", "--keep-alive")
        return started, fab("logs", "--once").stdout

    def checked():
        (found,) = [row for row in json.loads(fab("validate", "--json").stdout) if row["name"] == "model"]
        return found["ok"], found["detail"], found["remedy"]

    started, log = run()
    assert started.returncode == 1 and "ended at once, exit code 2" in started.stderr
    assert f"error: there is no folder {ckpt}; fetch it: `" in log
    assert "on a box `fab models --get heartmula-3b`" in log
    got = fab("models", "--get", "heartmula-3b")
    assert got.returncode == 0, got.stdout + got.stderr
    assert checked() == (True, f"heartmula is whole in {ckpt}", "")
    started, log = run()
    assert started.returncode == 0 and f"loading {ckpt}" in log, started.stderr + log


def test_tree_of_three_repositories_is_real_files_on_the_volume_alone(fab, conn, box, hub, singing):
    got = fab("models", "--get", "heartmula-3b")
    assert got.returncode == 0, got.stdout + got.stderr
    (row,) = [row for row in json.loads(fab("models", "--json").stdout) if row["name"] == "heartmula-3b"]
    assert row["state"] == "complete"
    assert [path for path in Path(row["folder"]).rglob("*") if path.is_symlink()] == []
    weights = {path.parent for path in box.folder.rglob("*.safetensors")}
    assert weights == {Path(row["folder"], name) for name in ("HeartMuLa-oss-3B", "HeartCodec-oss")}
    assert Path(row["folder"]).is_relative_to(box.root.parent)


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
