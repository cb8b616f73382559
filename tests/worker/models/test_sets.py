"""The table of model sets, and where they lie."""

from pathlib import Path

import pytest

from worker.errors import BadInput
from worker.models import places, sets
from worker.models.fetch import needed
from worker.models.manifest import File

FILE = File(1, "sha256", "00")


def test_alias_names_the_same_set():
    assert sets.find("musicgen-stereo-large") is sets.find("facebook/musicgen-stereo-large")


def test_other_hub_ids_are_sets_of_one_repository():
    assert [part.repo for part in sets.find("someone/else").parts] == ["someone/else"]


@pytest.mark.parametrize("name", ["nobody", "a b", "../up", "/tmp", "rehearsal", ""])
def test_what_is_neither_a_set_nor_an_id_is_refused_with_the_names(name):
    with pytest.raises(BadInput, match=r"musicgen-small, .*heartmula-3b, or a Hugging Face id"):
        sets.find(name)


def test_model_that_is_known_not_to_run_is_refused():
    with pytest.raises(BadInput, match="is not supported"):
        sets.find("facebook/musicgen-melody")


def test_only_needed_files_of_the_repositorys_own_folder_are_taken():
    listing = ["config.json", "model-00001-of-00002.safetensors", "spiece.model", "pytorch_model.bin"]
    listing += ["onnx/model.safetensors", "README.md", "../x.json", ".gitattributes", "..json"]
    (part,) = sets.find("musicgen-small").parts
    assert list(needed(part, dict.fromkeys(listing, FILE))) == sorted(listing[:3])


@pytest.mark.parametrize("index", [True, False])
def test_of_weights_that_are_there_whole_and_in_shards_one_is_taken(index):
    shards = [f"model-0000{n}-of-00002.safetensors" for n in (1, 2)]
    listing = ["config.json", "model.safetensors", "other.safetensors", *shards]
    listing += ["model.safetensors.index.json"] * index
    (part,) = sets.find("musicgen-small").parts
    assert ("model.safetensors" in needed(part, dict.fromkeys(listing, FILE))) == (not index)
    assert {*shards, "other.safetensors"} <= needed(part, dict.fromkeys(listing, FILE)).keys()


def test_folder_is_as_set_else_below_the_boxs_root_else_in_the_users_cache():
    small, heart = sets.find("musicgen-small"), sets.find("heartmula-3b")
    assert places.folder_of(small, {"MUSICGEN_MODELS_DIR": "/m"}) == Path("/m/facebook--musicgen-small")
    assert places.folder_of(small, {"MUSICGEN_BOX_ROOT": "/b"}) == Path("/b/models/facebook--musicgen-small")
    assert places.folder_of(heart, {}) == Path.home() / ".cache/musicgen/models/heartmula-3b"
    assert places.folder_of(heart, {"MUSICGEN_HEARTMULA_DIR": "/ckpt"}) == Path("/ckpt")
