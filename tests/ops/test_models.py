"""Whether a model is here: in the cache of huggingface_hub, wherever that is, or in a folder."""

import pytest

from ops import models

SMALL = "facebook/musicgen-small"


def cached(cache, *files):
    """A snapshot of the small model with these files, in a cache."""
    snapshot = cache / "models--facebook--musicgen-small" / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    for name in files:
        (snapshot / name).write_bytes(b"")


@pytest.mark.parametrize(
    ("name", "below"),
    [("HF_HUB_CACHE", ""), ("HF_HOME", "hub"), ("XDG_CACHE_HOME", "huggingface/hub")],
)
def test_model_in_the_cache_is_not_downloaded(tmp_path, name, below):
    cached(tmp_path / below, "config.json", "model.safetensors")
    assert models.described(SMALL, {name: str(tmp_path)}) == f"model {SMALL}, which is on this machine"


def test_model_of_which_the_weights_are_lacking_is_downloaded(tmp_path):
    cached(tmp_path, "config.json")
    env = {"HF_HUB_CACHE": str(tmp_path)}
    assert models.described(SMALL, env) == f"model {SMALL}, 2.4 GB to download first"


def test_model_of_unknown_size_is_named_without_one(tmp_path):
    env = {"HF_HUB_CACHE": str(tmp_path)}
    assert models.described("someone/else", env) == "model someone/else, to be downloaded first"


def test_folder_and_rehearsal_need_no_download(tmp_path):
    assert models.download_bytes(str(tmp_path), {}) == models.download_bytes("rehearsal", {}) == 0
