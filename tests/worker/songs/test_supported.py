"""worker/songs/supported.py: what name and config say; test_pretrained.py has the folders."""

import json

import pytest

from worker.errors import BadInput
from worker.songs import supported

MELODY = {"model_type": "musicgen_melody"}


@pytest.mark.parametrize(
    "model", ["facebook/musicgen-melody-large", "facebook/musicgen-stereo-melody", "facebook/audiogen-medium"]
)
def test_model_that_needs_more_than_text_is_refused_by_its_name(model):
    with pytest.raises(
        BadInput, match=f"^model {model} is not supported; supported are MusicGen checkpoints"
    ):
        supported.refuse(model, None)


def test_part_of_heartmula_is_refused_with_the_name_of_the_whole():
    with pytest.raises(BadInput, match="only a part of what HeartMuLa needs; name the whole: heartmula"):
        supported.refuse_by_name("HeartMuLa/HeartMuLa-oss-3B")


@pytest.mark.parametrize("kind", ["heartmula", "heartcodec"])
def test_folder_of_a_part_of_heartmula_is_refused_with_the_folder_of_the_whole(tmp_path, kind):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(BadInput, match="only a part of what HeartMuLa needs; name the folder that holds it"):
        supported.refuse(str(tmp_path), None)


@pytest.mark.parametrize(
    "model", ["facebook/musicgen-large", "facebook/musicgen-stereo-small", "someone/musicgen-melody-tune"]
)
def test_model_that_may_run_is_not_refused_by_its_name(model):
    supported.refuse(model, None)


def test_config_in_the_cache_is_judged(tmp_path):
    (tmp_path / "config.json").write_text(json.dumps(MELODY))
    with pytest.raises(BadInput, match=r"^model someone/else holds a 'musicgen_melody' model"):
        supported.refuse("someone/else", tmp_path)
