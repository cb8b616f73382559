"""remote/models.py on a stand-in box: what it prints, writes for `fab status`, and refuses."""

import fcntl
import json
import signal
import subprocess
import sys

import pytest

from tests.fakes import hub as hubs
from tests.remote.boxes import REPOSITORY, until
from tests.worker.models import trees

SECRET = "hf_PLANTED"
SCRIPT = str(REPOSITORY / "remote" / "models.py")  # a box's release has the whole worker beside it


@pytest.fixture
def hub():
    with hubs.serving(trees.repos()) as hub:
        hub.gated[trees.NAME] = SECRET
        yield hub


@pytest.fixture
def models(box, hub):
    """Run it on the box, whose worker.env has the token."""
    box.settings(HF_TOKEN=SECRET, HF_ENDPOINT=hub.url)

    def models(*arguments):
        return subprocess.run(
            [sys.executable, "-B", SCRIPT, *arguments],
            env=box.env,
            capture_output=True,
            text=True,
            timeout=60,
        )

    return models


def state(box):
    return json.loads((box.root / "state" / "models" / "demo--tiny.json").read_text())


def test_model_is_fetched_verified_listed_and_removed(models, box, hub):
    got = models("get", trees.NAME, "--json")
    assert got.returncode == 0, got.stderr
    *lines, last = got.stdout.splitlines()
    folder = box.root / "models" / "demo--tiny"
    assert json.loads(last)["folder"] == str(folder)
    assert f"demo/tiny is complete: 3.0 MB in {folder}, verified; 3.0 MB came now" in lines
    assert state(box)["state"] == "done"

    checked = models("verify", trees.NAME)
    assert (checked.returncode, checked.stderr) == (0, "")
    assert "demo/tiny is whole: 4 files, 3.0 MB, every checksum is right" in checked.stdout

    (folder / "tokenizer.json").write_bytes(bytes(len(trees.FILES["tokenizer.json"])))
    checked = models("verify", trees.NAME, "--json")
    assert checked.returncode == 1
    assert (
        checked.stderr.startswith("error: demo/tiny has 1 file damaged") and checked.stderr.count("\n") == 1
    )
    assert [fault["path"] for fault in json.loads(checked.stdout.splitlines()[-1])["faults"]] == [
        "tokenizer.json"
    ]
    assert state(box)["state"] == "damaged"

    rows = {row["name"]: row for row in json.loads(models("list", "--json").stdout)}
    assert rows["demo/tiny"]["state"] == "incomplete" and rows["heartmula-3b"]["state"] == "absent"

    assert SECRET not in json.dumps(state(box))
    removed = models("remove", trees.NAME)
    assert removed.returncode == 0 and not folder.exists()
    assert list((box.root / "state" / "models").iterdir()) == []
    for done in (got, checked, removed):
        assert SECRET not in done.stdout + done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("get", "nobody"), 2, "error: there is no model nobody; name one of musicgen-small"),
        (("get", "demo/none"), 2, "error: no model demo/none on the hub; check the name"),
        (("verify", trees.NAME), 2, "error: the model demo/tiny is not complete in"),
        (("remove", trees.NAME), 2, "error: there is nothing of the model demo/tiny"),
    ],
)
def test_fault_is_one_line_and_a_code(models, arguments, code, message):
    done = models(*arguments)
    assert (done.returncode, done.stderr.startswith(message)) == (code, True), done.stderr
    assert done.stderr.count("\n") == 1


def test_model_of_a_run_is_not_removed(models, box):
    assert models("get", trees.NAME).returncode == 0
    box.start("status=" + json.dumps({"run_id": "r", "model": trees.NAME}))
    until((box.state / "status.json").exists)
    refused = models("remove", trees.NAME)
    assert (refused.returncode, refused.stderr) == (
        1,
        "error: the model demo/tiny is in use by run r; stop that first (fab stop)\n",
    )


@pytest.mark.parametrize("how", ["folder", "link", "alias"])
def test_model_that_a_run_has_by_its_folder_is_not_removed(models, box, hub, tmp_path, how):
    assert models("get", trees.NAME).returncode == 0
    folder = box.root / "models" / "demo--tiny"
    (tmp_path / "link").symlink_to(folder)
    given = {"folder": str(folder), "link": str(tmp_path / "link"), "alias": trees.NAME}[how]
    box.settings(HF_ENDPOINT=hub.url, MUSICGEN_MODEL=given)
    with (box.home / "worker.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        refused = models("remove", trees.NAME)
    assert refused.returncode == 1 and "in use by the run that is on" in refused.stderr
    assert models("remove", trees.NAME).returncode == 0


@pytest.mark.parametrize(("model", "is_used"), [(trees.NAME, True), ("demo/other", False), (None, True)])
def test_model_that_is_tried_is_not_removed(models, box, model, is_used):
    assert models("get", trees.NAME).returncode == 0
    job = box.home / "models" / "smoke-x"
    job.mkdir(parents=True)
    if model:
        (job / "model").write_text(f"{model}\n")
    (box.home / "busy").mkdir(exist_ok=True)
    with (box.home / "busy" / "smoke-x").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = models("remove", trees.NAME)
    assert ("in use by a trial (--smoke)" in done.stderr) == is_used
    assert done.returncode == int(is_used)


@pytest.fixture
def started(models, box, hub):
    """Start a `get` that takes its time, with a pipe for what it prints."""
    hub.pause_s = 0.1
    process = subprocess.Popen(
        [sys.executable, "-B", SCRIPT, "get", trees.NAME],
        env=box.env,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    with process:
        until(lambda: hub.sent_bytes > 2_000_000)  # it writes 1 MiB at a time
        yield process


def test_stopped_download_says_so_and_is_resumed(started, models, box, hub):
    started.send_signal(signal.SIGTERM)
    out, err = started.communicate()
    assert (started.returncode, err) == (75, "error: stopped; run it again to resume\n")
    assert state(box)["state"] == "interrupted" and SECRET not in out
    hub.pause_s = 0
    hub.asked.clear()
    assert models("get", trees.NAME).returncode == 0
    assert max(asked.start for asked in hub.asked) > 0


def test_download_goes_on_when_nobody_reads_what_it_prints(started, box):
    started.stdout.close()
    started.stderr.close()
    assert started.wait(timeout=60) == 0
    assert (box.root / "models" / "demo--tiny" / ".complete.json").exists()
