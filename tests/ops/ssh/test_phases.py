"""The four phases against a box on loopback: one whole run, and each test looks at one side of it."""

import io
import json
import os
import re
import secrets
import stat
import subprocess
import sys
import threading
from contextlib import suppress
from pathlib import Path

import pytest

from ops.settings import Settings
from ops.ssh.phases import Finding, checked_release, finding_rows, would_fail
from ops.ssh.terminal import ssh_command
from tests.fakes import box as boxes
from tests.ops.ssh.connect import connected
from worker.errors import BadInput
from worker.store.open import open_store

# One worker of xdist: the run is made once.
pytestmark = pytest.mark.xdist_group("whole-run")

# Made here, so that they are in no file of the project.
SECRET = secrets.token_urlsafe(30)
HF_TOKEN = f"hf_{secrets.token_hex(17)}"


class Spy:
    """Looks at every command line of this machine until it is stopped."""

    def __init__(self, secrets):
        self.secrets = secrets
        self.found = set()
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self.look)
        self.thread.start()

    def look(self):
        while not self.ended.wait(0.1):
            for entry in Path("/proc").glob("[0-9]*/cmdline"):
                with suppress(OSError):
                    line = entry.read_bytes()
                    self.found |= {(line, secret) for secret in self.secrets if secret.encode() in line}


@pytest.fixture(scope="module")
def whole(tmp_path_factory, s3_server, commands):
    """fab deploy install validate run logs, to the end, into a bucket that did not exist."""
    folder = tmp_path_factory.mktemp("whole")
    with boxes.serving(folder / "box") as box:
        box.bring_torch()
        here = folder / "user"
        here.mkdir()
        (here / "prompts.txt").write_text("rain ; 1 ; rain\nsun ; 2 ; sun\n")
        (here / ".env").write_text(f"HF_TOKEN={HF_TOKEN}\nAWS_SECRET_ACCESS_KEY={SECRET}\n")
        fab = boxes.Fab(here, box, commands)
        fab.env = {
            "AWS_ENDPOINT_URL": s3_server,
            "AWS_ACCESS_KEY_ID": "AKIAPLANTED",
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_DEFAULT_REGION": "us-east-1",
            "AWS_CONFIG_FILE": os.devnull,
            "AWS_SHARED_CREDENTIALS_FILE": os.devnull,
            "AWS_EC2_METADATA_DISABLED": "true",
            "MUSICGEN_S3_BUCKET": f"musicgen-test-{folder.parent.name}-{os.getpid()}",
            "MUSICGEN_S3_PREFIX": "album",
            "HOURLY_COST_USD": "0.86",
        }
        spy = Spy([SECRET, HF_TOKEN])
        done = {"deploy": fab("deploy"), "install": fab("install")}
        spy.secrets.append(json.loads((box.box_home / "aws.json").read_text())["SecretAccessKey"])
        done |= {"validate": fab("validate"), "run": fab("run", "--temperature", "0.9")}
        done |= {"second": fab("run"), "logs": fab("logs")}
        spy.ended.set()
        spy.thread.join()
        yield fab, box, done, spy


@pytest.mark.parametrize("phase", ["deploy", "install", "run", "logs"])
def test_phase_succeeds(whole, phase):
    _, _, done, _ = whole
    assert (done[phase].returncode, done[phase].stderr.count("error:")) == (0, 0), done[phase].stderr


def test_songs_and_report_are_in_the_bucket(whole, monkeypatch):
    fab, _, _, _ = whole
    for name, value in fab.env.items():
        monkeypatch.setenv(name, value)
    keys = open_store(f"s3://{fab.env['MUSICGEN_S3_BUCKET']}/album").list()
    assert {"rain_a0510318.wav", "sun_306dd450.wav", "cost_report.csv"} <= set(keys)


def test_sampling_reaches_the_worker_on_the_box(whole, monkeypatch):
    fab, _, _, _ = whole
    for name, value in fab.env.items():
        monkeypatch.setenv(name, value)
    place = json.loads(open_store(f"s3://{fab.env['MUSICGEN_S3_BUCKET']}/album").read("place.json"))
    assert place["sampling"]["temperature"] == 0.9


def test_validate_finds_what_this_box_has_and_lacks(whole):
    _, _, done, _ = whole
    found = done["validate"].stdout
    for what in ("bucket write", "matrix product", "packages", "gpu driver", "models dir"):
        assert re.search(f"\u2713 .* {what} ", found), what
    assert done["validate"].returncode == 0


def test_logs_show_the_run_from_its_beginning_to_its_exit_code(whole):
    _, box, done, _ = whole
    (log,) = box.root.glob("state/2*/log")
    assert done["logs"].stdout in log.read_text()
    assert done["logs"].stderr.splitlines()[-1].endswith("ended with exit code 0")


def test_second_start_while_one_runs_is_refused(whole):
    _, _, done, _ = whole
    assert done["second"].returncode == 1
    (line,) = [line for line in done["second"].stderr.splitlines() if line.startswith("error:")]
    assert re.fullmatch(r"error: the worker is already running \(run .*\); see it: fab logs, .*", line)


def test_no_secret_is_ever_on_a_command_line(whole):
    _, box, _, spy = whole
    assert spy.found == set()
    assert box.commands and not [secret for secret in spy.secrets if secret in box.commands]


def test_no_secret_is_said_or_written_where_others_read(whole):
    fab, box, done, spy = whole
    said = "".join(part.stdout + part.stderr for part in done.values())
    read = [*fab.here.rglob("*"), *box.root.rglob("*"), *box.home.rglob("*")]
    keep = {fab.here / ".env", box.box_home / "worker.env", box.box_home / "aws.json"}
    texts = {path: path.read_bytes() for path in read if path.is_file() and path not in keep}
    for secret in spy.secrets:
        assert secret not in said
        assert [path for path, text in texts.items() if secret.encode() in text] == []


def test_no_secret_is_in_debug_output(whole):
    fab, box, _, spy = whole
    done = [fab("-d", *task.split()) for task in ("install --renew", "status", "validate")]
    keys = json.loads((box.box_home / "aws.json").read_text())
    said = "".join(part.stdout + part.stderr for part in done)
    assert done[0].returncode == 0 and "sent the settings" in said
    for secret in (*spy.secrets, keys["SecretAccessKey"], keys["SessionToken"]):
        assert secret not in said
    assert "SecretAccessKey" not in said and "Authorization" not in said


def test_long_lived_keys_never_reach_the_box_and_what_does_is_private(whole):
    _, box, _, _ = whole
    for name in ("worker.env", "aws.json"):
        path = box.box_home / name
        assert SECRET.encode() not in path.read_bytes()
        assert stat.S_IMODE(path.stat().st_mode) == 0o600


def test_tmux_knows_no_secret(whole):
    _, box, _, spy = whole
    with connected(box, box.folder) as conn:
        conn.run("tmux new-session -d -s look")  # in the server that the worker's session began
        shown = conn.run("tmux show-environment -g").out
    assert not [secret for secret in spy.secrets if secret in shown]


def test_history_of_a_shell_there_knows_no_secret(whole):
    _, box, _, spy = whole
    with connected(box, box.folder) as conn:
        conn.run("true")
        terminal = [*ssh_command(conn), "-tt"]
    subprocess.run(terminal, input=b"echo looked around\nexit\n", capture_output=True, check=True)
    history = (box.home / ".bash_history").read_text()
    assert "looked around" in history
    assert not [secret for secret in spy.secrets if secret in history]


def test_status_shows_how_it_ended(whole):
    fab, _, _, _ = whole
    done = fab("status", "--json")
    (row,) = json.loads(done.stdout)
    assert (row["state"], row["status"]["songs"]["done"]) == ("ended with exit code 0 (done)", 2)
    assert row["watchdog"]["running"]


def test_box_that_was_set_up_by_hand_has_a_deadline_from_its_install_on(whole):
    fab, _, _, _ = whole
    (row,) = json.loads(fab("status", "--json").stdout)
    assert 7 * 3600 < row["watchdog"]["left_s"] <= 8 * 3600


def test_expired_credentials_are_said_and_renewed(whole):
    fab, box, _, _ = whole
    path = box.box_home / "aws.json"
    keys = json.loads(path.read_text())
    path.write_text(json.dumps(keys | {"Expiration": "2026-01-01T00:00:00Z"}))
    assert "EXPIRED; run: fab install --renew" in fab("status").stdout
    quick = box.root / "current" / "remote" / "torch.py"
    quick.write_text("raise ImportError('the real one takes seconds, and was asked before')")
    checked = fab("validate")
    quick.unlink()
    assert checked.returncode == 1
    assert re.match(r"error: the run would fail: .*credentials", checked.stderr)
    assert fab("install", "--renew").returncode == 0
    assert "EXPIRED" not in fab("status").stdout


def test_logs_of_a_box_that_is_gone_come_from_the_bucket(whole):
    fab, box, _, _ = whole
    (run,) = box.root.glob("state/2*")
    unknown = fab("-H", "root@127.0.0.1:1", "logs")
    assert (unknown.returncode, unknown.stdout) == (1, "")
    assert unknown.stderr.startswith("error: nothing listens at root@127.0.0.1:1; ")
    done = fab("-H", "root@127.0.0.1:1", "logs", "--lines", "5", "--run", run.name[-4:])
    assert done.returncode == 0, done.stderr
    assert re.search(r"^s3://\S+ has this of run ", done.stderr, re.M)
    assert "exit code 0" in done.stderr


def test_marks_are_those_that_the_console_has(monkeypatch):
    findings = [Finding("gpu", True, "fine", ""), Finding("disk", False, "full", "free it")]
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "cp1252"))
    assert [row[""] for row in finding_rows(findings)] == ["ok", "NO"]
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(io.BytesIO(), "utf-8"))
    assert [row[""] for row in finding_rows(findings)] == ["\u2713", "\u2717"]


def test_warning_stops_nothing():
    assert would_fail([Finding("gpu", "warn", "", ""), Finding("disk", False, "", "")]) == ["disk"]


def test_weights_that_forbid_commercial_use_are_refused_before_a_box_is_touched():
    with pytest.raises(BadInput, match="forbids commercial use"):
        checked_release(Settings(commercial="1"))
