"""`inv models` on this machine: what there is, and one thing at a time with it."""

import json
import subprocess
import sys
from types import SimpleNamespace

import pytest

from ops.model_files import Here, ModelFlags, act
from ops.repository import ROOT
from tests.fakes import hub as hubs
from tests.worker.models import trees
from worker.errors import BadInput, Refused, UserError
from worker.models import verify


@pytest.fixture
def hub(monkeypatch, tmp_path):
    with hubs.serving(trees.repos()) as hub:
        for name, value in trees.env(hub, tmp_path / "models").items():
            monkeypatch.setenv(name, value)
        yield hub


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "models" / "demo--tiny"


@pytest.fixture
def listed(capsys):
    def listed():
        capsys.readouterr()
        assert act(Here(), ModelFlags(json=True)) == 0
        return {row["name"]: row for row in json.loads(capsys.readouterr().out)}

    return listed


def test_every_set_of_the_table_is_listed_without_a_network(hub, listed):
    found = listed()
    assert found["heartmula-3b"]["state"] == found["facebook/musicgen-small"]["state"] == "absent"
    assert hub.asked == []


def test_model_is_got_listed_verified_and_removed(hub, listed, folder, capsys):
    assert act(Here(), ModelFlags(get=trees.NAME)) == 0
    assert "demo/tiny is complete: 3.0 MB" in capsys.readouterr().err
    row = listed()[trees.NAME]
    assert (row["state"], row["folder"], row["revision"]) == ("complete", str(folder), hub.main[trees.NAME])
    assert row["verified_at"] and row["n_bytes"] == sum(map(len, trees.NEEDED.values()))
    assert act(Here(), ModelFlags(verify=True)) == 0
    assert "every checksum is right" in capsys.readouterr().err
    assert act(Here(), ModelFlags(remove=trees.NAME, yes=True)) == 0
    assert not folder.exists()


def test_table_says_size_and_time(hub, capsys):
    act(Here(), ModelFlags(get=trees.NAME))
    capsys.readouterr()
    act(Here(), ModelFlags())
    (line,) = [line for line in capsys.readouterr().out.splitlines() if trees.NAME in line]
    assert "complete" in line and "3.0 MB" in line and "Z" in line


def test_damaged_model_is_named_with_what_fetches_it_again(hub, folder, capsys):
    act(Here(), ModelFlags(get=trees.NAME))
    (folder / "tokenizer.json").write_bytes(bytes(len(trees.FILES["tokenizer.json"])))
    assert act(Here(), ModelFlags(verify=True)) == 1
    assert "inv models --get demo/tiny" in capsys.readouterr().err


def test_what_is_not_whole_is_named_by_every_verification_until_it_is(hub, folder, capsys):
    act(Here(), ModelFlags(get=trees.NAME))
    (folder / "tokenizer.json").write_bytes(bytes(len(trees.FILES["tokenizer.json"])))
    assert act(Here(), ModelFlags(verify=True)) == 1
    capsys.readouterr()
    assert act(Here(), ModelFlags(verify=True)) == 1
    assert "demo/tiny is incomplete; fetch what it lacks: --get demo/tiny" in capsys.readouterr().err
    act(Here(), ModelFlags(get=trees.NAME))
    assert act(Here(), ModelFlags(verify=True)) == 0


def test_disk_that_fails_under_one_model_does_not_keep_the_others_from_being_verified(
    hub, folder, capsys, monkeypatch
):
    hub.push("demo/other", trees.FILES)
    for name in (trees.NAME, "demo/other"):
        act(Here(), ModelFlags(get=name))
    check = verify.check

    def failing(name, *rest):
        if name == "demo/other":
            raise UserError("cannot use the disk; check it")
        return check(name, *rest)

    monkeypatch.setattr(verify, "check", failing)
    assert act(Here(), ModelFlags(verify=True)) == 1
    said = capsys.readouterr().err
    assert "error: cannot use the disk; check it" in said and "demo/tiny is whole" in said


def test_ctrl_c_ends_the_verification_of_all_models(hub, capsys):
    hub.push("demo/other", trees.FILES)
    for name in (trees.NAME, "demo/other"):
        act(Here(), ModelFlags(get=name))
    begun = []

    class Pressed(Here):
        goes_on = "the box goes on with it"

        def job(self, kind, name):
            begun.append(name)
            raise KeyboardInterrupt

    assert act(Pressed(), ModelFlags(verify=True)) == 0
    assert len(begun) == 1 and "the box goes on with it" in capsys.readouterr().err


def test_models_are_listed_and_fetched_where_there_is_no_numpy():
    """A user's machine need not have what the worker needs."""
    blocked = "import sys; sys.modules['numpy'] = None; import ops.ssh.models, ops.model_files, ops.models"
    subprocess.run([sys.executable, "-c", blocked], cwd=ROOT, check=True)


def test_removal_asks_and_a_dry_run_removes_nothing(hub, folder):
    act(Here(), ModelFlags(get=trees.NAME))
    with pytest.raises(Refused, match="--yes"):
        act(Here(), ModelFlags(remove=trees.NAME))
    assert act(Here(), ModelFlags(remove=trees.NAME, dry_run=True)) == 0
    assert (folder / "model.safetensors").exists()


def test_question_says_that_a_worker_of_this_machine_is_not_seen(hub, monkeypatch, capsys):
    act(Here(), ModelFlags(get=trees.NAME))
    monkeypatch.setattr("sys.stdin", SimpleNamespace(isatty=lambda: True, readline=lambda: "n"))
    with pytest.raises(Refused):
        act(Here(), ModelFlags(remove=trees.NAME))
    assert "a worker that runs on this machine is not seen: stop it first" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "why"),
    [
        (ModelFlags(get="a", remove="b"), "--get and --remove are two things"),
        (ModelFlags(get="a", json=True), "--json is for the list"),
        (ModelFlags(get="nothing-like-it"), "there is no model nothing-like-it"),
        (ModelFlags(remove="musicgen-small"), "there is nothing of the model facebook/musicgen-small"),
        (ModelFlags(verify=True), "no model is here"),
    ],
)
def test_what_cannot_be_done_is_one_line(hub, flags, why):
    with pytest.raises(BadInput, match=why) as caught:
        act(Here(), flags)
    assert "; " in str(caught.value) and "\n" not in str(caught.value)
