"""remote/models.sh: what takes long is a job that goes on, can be joined, and keeps the box on."""

import os
import shutil
import signal
import sys
import time
from pathlib import Path

import pytest

from tests.fakes import hub as hubs
from tests.remote.boxes import REPOSITORY, until
from tests.worker.models import trees


def with_models(box, hub):
    """The box has the whole worker, an environment with its packages, and this hub."""
    shutil.rmtree(box.release / "worker")
    shutil.copytree(REPOSITORY / "worker", box.release / "worker")
    python = box.home / "venv" / "bin" / "python"
    python.unlink()
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    box.settings(HF_TOKEN="hf_PLANTED", HF_ENDPOINT=hub.url)


@pytest.fixture
def hub():
    """Its files take a second and more."""
    with hubs.serving(trees.repos(), pause_s=0.1) as hub:
        hub.gated[trees.NAME] = "hf_PLANTED"
        yield hub


@pytest.fixture
def started(box, hub):
    """A download that has begun, as a job."""
    with_models(box, hub)
    answer = box.json("models.sh", "start", "get", trees.NAME)
    assert not answer["joined"]
    return Path(answer["folder"])


def ended(folder):
    until((folder / "exit_code").exists)
    return (folder / "exit_code").read_text()


def test_job_goes_on_without_who_started_it_and_keeps_log_and_exit_code(started, box):
    assert ended(started) == "0\n"
    assert "demo/tiny is complete" in (started / "log").read_text()
    assert (box.root / "models" / "demo--tiny" / ".complete.json").exists()


def test_second_start_joins_the_first(started, box):
    assert box.json("models.sh", "start", "get", trees.NAME) == {"folder": str(started), "joined": True}
    assert ended(started) == "0\n"


def test_two_models_with_like_names_are_two_jobs(box, hub):
    with_models(box, hub)
    folders = {box.json("models.sh", "start", "get", name)["folder"] for name in ("demo/a-b", "demo-a/b")}
    for folder in folders:
        ended(Path(folder))
    assert len(folders) == 2


def test_killed_job_has_an_exit_code_and_a_new_one_resumes(started, box, hub):
    until(lambda: hub.sent_bytes > 300_000)
    os.killpg(_group_of_job(box), signal.SIGKILL)
    until(
        lambda: (
            box.sh("models.sh", "settle", str(started)).returncode == 0 and (started / "exit_code").exists()
        )
    )
    assert (started / "exit_code").read_text() == "137\n"
    assert not box.json("models.sh", "start", "get", trees.NAME)["joined"]
    assert ended(started) == "0\n"


def _group_of_job(box):
    """Its process group, which is a session of its own."""
    for stat in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = stat.read_bytes().split(b"\0")
        except OSError:
            continue
        if b"job" in words and str(box.root).encode() in b" ".join(words):
            return os.getpgid(int(stat.parent.name))
    raise AssertionError("no job is on")


def test_token_is_in_no_argument_and_not_in_the_log(started):
    for cmdline in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            assert b"hf_PLANTED" not in cmdline.read_bytes()
        except OSError:
            continue
    ended(started)
    assert "hf_PLANTED" not in (started / "log").read_text()


def test_download_longer_than_the_idle_limit_keeps_the_box_on(box, hub):
    """As 40 minutes with a limit of 30, in other units."""
    with_models(box, hub)
    hook = box.hook("off")
    box.settings(
        HF_TOKEN="hf_PLANTED",
        HF_ENDPOINT=hub.url,
        MUSICGEN_STOP_HOOK=str(hook),
        MUSICGEN_STOP_GRACE_S="0",
        MUSICGEN_IDLE_LIMIT_S="3",
    )
    hub.pause_s = 0.6  # twelve blocks: seven seconds
    folder = Path(box.json("models.sh", "start", "get", trees.NAME)["folder"])
    quick = {
        "MUSICGEN_WATCHDOG_POLL_S": "0.1",
        "MUSICGEN_WATCHDOG_GRACE_S": "0",
        "MUSICGEN_WATCHDOG_RETRY_S": "0.1",
    }
    box.json("watchdog.sh", "start", **quick)
    while not (folder / "exit_code").exists():
        assert box.calls("off") == [] or (folder / "exit_code").exists()
        time.sleep(0.05)
    assert (folder / "exit_code").read_text() == "0\n"
    until(lambda: box.calls("off"))


@pytest.mark.parametrize("words", [("get",), ("get", "a b"), ("get", "$(id)"), ("dance", "demo/tiny")])
def test_other_words_are_refused(box, hub, words):
    with_models(box, hub)
    done = box.sh("models.sh", "start", *words)
    assert done.returncode == 2 and done.stderr.startswith("error: write: models.sh start")


def test_box_without_an_environment_says_what_to_do(box):
    (box.home / "venv" / "bin" / "python").unlink()
    for words in (("list", "--json"), ("start", "get", "demo/tiny")):
        done = box.sh("models.sh", *words)
        assert (done.returncode, done.stderr) == (
            2,
            "error: the environment is missing on this box; run: fab install\n",
        )
