"""What is found on this machine without a network: sets, and huggingface_hub's snapshots that are whole."""

import json

import pytest

from tests.fakes.hub import status
from tests.worker.models import trees
from worker.errors import UserError
from worker.models import find, manifest

SHARDS = ("model-1.safetensors", "model-2.safetensors")


@pytest.fixture
def snapshot(tmp_path):
    """A snapshot of the tiny model in huggingface_hub's cache, with these files."""

    def snapshot(commit, *names):
        folder = tmp_path / "hf" / "hub" / "models--demo--tiny" / "snapshots" / commit
        folder.mkdir(parents=True)
        index = json.dumps({"weight_map": dict(zip("ab", SHARDS, strict=True))}).encode()
        for name in names:
            its = trees.FILES.get(name, index if "index" in name else trees.weights(100))
            (folder / name).write_bytes(its)
        return folder

    return snapshot


@pytest.fixture
def here(tmp_path):
    return lambda: find.here(
        trees.NAME, {"HF_HOME": f"{tmp_path}/hf", "MUSICGEN_MODELS_DIR": f"{tmp_path}/m"}
    )


def test_whole_snapshot_is_used(snapshot, here):
    folder = snapshot("0123", "config.json", "model.safetensors")
    assert here() == (folder, "0123")


@pytest.mark.parametrize(
    "names",
    [
        ["config.json"],
        ["model.safetensors"],
        ["config.json", "model.safetensors.index.json", SHARDS[0]],
    ],
    ids=["no weights", "no config", "a shard is missing"],
)
def test_snapshot_that_is_not_whole_is_not_used(snapshot, here, names):
    snapshot("0123", *names)
    assert here() is None


def test_truncated_snapshot_is_not_used(snapshot, here):
    weights = snapshot("0123", "config.json", "model.safetensors") / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    assert here() is None


def test_snapshot_of_main_is_preferred(snapshot, here):
    for commit in ("0123", "4567", "89ab"):
        folder = snapshot(commit, "config.json", "model.safetensors")
    refs = folder.parents[1] / "refs"
    refs.mkdir()
    (refs / "main").write_text("4567")
    assert here().revision == "4567"


def test_complete_set_is_preferred_to_a_snapshot(get, env, snapshot, folder):
    snapshot("0123", "config.json", "model.safetensors")
    get()
    assert find.here(trees.NAME, env).folder == folder


def test_inventory_shows_what_is_complete_incomplete_damaged_and_absent(get, env, hub, folder):
    hub.push("demo/half", trees.FILES)
    get()
    hub.faults["model.safetensors"] = [status(503)] * 8
    with pytest.raises(UserError):
        get("demo/half")
    states = {found.name: (found.state, found.n_bytes > 0) for found in find.inventory(env)}
    assert states["demo/tiny"] == ("complete", True)
    assert states["demo/half"] == ("incomplete", True)
    assert states["heartmula-3b"] == states["facebook/musicgen-small"] == ("absent", False)
    (folder / "model.safetensors").write_bytes(b"")
    (tiny,) = [found for found in find.inventory(env) if found.name == "demo/tiny"]
    assert (tiny.state, tiny.note) == (
        "damaged",
        f"model.safetensors has 0 bytes instead of {len(trees.LARGE)}",
    )


@pytest.mark.parametrize("marker", ["a folder", "of a later version"])
def test_marker_that_cannot_be_read_is_a_row_and_does_not_hide_the_others(get, env, hub, folder, marker):
    hub.push("demo/other", trees.FILES)
    get()
    get("demo/other")
    path = folder / manifest.MARKER
    content = path.read_text().replace('"schema": 1', '"schema": 9')
    path.unlink()
    if marker == "a folder":
        path.mkdir()
    else:
        path.write_text(content)
    found = {each.name: each for each in find.inventory(env)}
    assert found["demo/other"].state == "complete" and found["demo/tiny"].state == "unknown"
    assert ("a folder stands where" if marker == "a folder" else "schema 9") in found["demo/tiny"].note
