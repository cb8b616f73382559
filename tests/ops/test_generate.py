"""Running the worker from `inv`: the user's paths and settings reach it, and its exit code comes back."""

import json
import os
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from ops import generate
from tests.songs import finish, listed
from worker.errors import BadInput, UserError
from worker.store.open import open_store

ROOT = Path(__file__).parents[2]
LINES = ["rain ; 1 ; rain", "sun ; 1 ; sun"]
RAIN, SUN = listed(*LINES)
(FOG,) = listed("fog ; 1 ; -fog")


def clean(patch, folder):
    """Start in this folder, without settings of the outside."""
    for name in ("HOURLY_COST_USD", "MUSICGEN_OUTPUT", "MUSICGEN_S3_BUCKET", "RUN_ID"):
        patch.delenv(name, raising=False)
    patch.chdir(folder)


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    """A folder of the user's, with a list whose songs are made already: the worker needs no torch."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    clean(monkeypatch, tmp_path)
    (tmp_path / "prompts.txt").write_text("\n".join(LINES))
    for job in (RAIN, SUN):
        finish(open_store("out"), job)
    yield tmp_path
    for number, handler in handlers.items():
        signal.signal(number, handler)


def run_worker(**changes):
    arguments = {
        "prompts": "prompts.txt",
        "output": "out",
        "model": "rehearsal",
        "hourly_cost": None,
    }
    return generate.run_worker(**(arguments | changes))


def summary(here):
    (path,) = here.glob("out/runs/*/summary.json")
    return json.loads(path.read_text("utf-8"))


def test_ctrl_c_after_a_run_ends_what_follows_it(here):
    before = signal.getsignal(signal.SIGINT)
    assert run_worker() == 0
    assert signal.getsignal(signal.SIGINT) is before


# --- what reaches the worker


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """The folder after one run: relative paths, two of three songs chosen, a price with its source."""
    folder = tmp_path_factory.mktemp("made")
    with pytest.MonkeyPatch.context() as patch:
        clean(patch, folder)
        (folder / "prompts.txt").write_text("fog ; 1 ; -fog\n" + "\n".join(LINES))
        for job in (FOG, SUN):
            finish(open_store("out"), job)
        assert run_worker(only=["-fog", "sun"], hourly_cost=generate.HourlyCost("1.25", "--hourly-cost")) == 0
    return folder


def test_relative_paths_start_where_the_user_is(made):
    assert summary(made)["done_before"] == [FOG.song, SUN.song]
    assert (made / "out" / "cost_report.csv").exists()


def test_chosen_songs_reach_the_worker_also_with_a_dash_first(made):
    assert summary(made)["asked"] == [FOG.song, SUN.song]


def test_price_and_where_it_is_from_reach_the_worker(made):
    assert summary(made)["price"] == {"hourly_usd": 1.25, "basis": "--hourly-cost", "paid_usd": None}


def test_home_is_expanded_in_the_output(here, monkeypatch):
    monkeypatch.setenv("HOME", str(here))
    monkeypatch.setenv("USERPROFILE", str(here))
    assert run_worker(output="~/out") == 0
    assert summary(here)["done_before"] == [RAIN.song, SUN.song]


def test_flags_reach_the_worker(here, capfd):
    (here / "out" / RAIN.song).write_bytes(bytes((here / "out" / RAIN.song).stat().st_size))
    assert run_worker(flags=["--verify"]) == 1
    assert f"MISSING {RAIN.song}: its content is not" in capfd.readouterr().out


def test_settings_of_the_env_file_reach_the_worker(here):
    (here / ".env").write_text("HOURLY_COST_USD=0.75\nRUN_ID=from-the-file\n")
    assert run_worker() == 0
    assert (summary(here)["run_id"], summary(here)["price"]["hourly_usd"]) == ("from-the-file", 0.75)


def test_model_that_is_known_not_to_run_starts_no_worker(here, monkeypatch):
    monkeypatch.setattr(subprocess, "Popen", None)
    with pytest.raises(BadInput, match="melody"):
        run_worker(model="facebook/musicgen-melody")


def test_exit_code_and_errors_pass_through(here, capfd):
    (here / "prompts.txt").write_text("fine ; 30 ; fine\nno seconds\n")
    assert run_worker() == 2
    assert f"error: {here / 'prompts.txt'}:2: 1 of 3 fields" in capfd.readouterr().err


STAND_IN = """#!/bin/sh
trap 'sleep 0.5; echo saved > saved.txt; exit 75' INT TERM
echo started > "$WHERE/started"
cd "$WHERE"
while :; do sleep 0.05; done
"""

PARENT = """
import signal, sys
from ops import generate
sys.executable = "./worker.sh"
generate.ROOT = "."
code = generate.run_worker(prompts="p", output="o", model="rehearsal", hourly_cost=None)
if sys.argv[1] == "Ctrl-C":
    signal.raise_signal(signal.SIGINT)  # `uv run` passes it on a second time, and may be late
sys.exit(code)
"""


@pytest.mark.skipif(os.name == "nt", reason="needs POSIX signals")
@pytest.mark.parametrize("pressed", ["Ctrl-C", "SIGTERM to inv"])
def test_stopped_worker_is_waited_for_while_it_saves(here, pressed):
    (here / "worker.sh").write_text(STAND_IN)
    (here / "worker.sh").chmod(0o755)
    env = os.environ | {"PYTHONPATH": str(ROOT), "WHERE": str(here)}
    command = [sys.executable, "-c", PARENT, pressed]
    parent = subprocess.Popen(command, cwd=here, env=env, start_new_session=True)
    try:
        last_s = time.monotonic() + 30
        while not (here / "started").exists() and time.monotonic() < last_s:
            time.sleep(0.02)
        if pressed == "Ctrl-C":
            os.killpg(parent.pid, signal.SIGINT)  # a terminal tells the whole group
        else:
            parent.terminate()
        assert parent.wait(timeout=120) == 75
        assert (here / "saved.txt").exists()
    finally:
        with suppress(ProcessLookupError):
            os.killpg(parent.pid, signal.SIGKILL)
        parent.wait()


def test_killed_worker_is_one_line(here, monkeypatch):
    original = subprocess.Popen

    def killed(*args, **options):
        process = original(*args, **options)
        process.kill()
        return process

    monkeypatch.setattr(generate.subprocess, "Popen", killed)
    with pytest.raises(UserError, match="killed by signal 9"):
        run_worker()
