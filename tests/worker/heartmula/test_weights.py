"""A checkpoint is loaded whole, however it is cut into files and in whatever precision it is stored."""

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file

from tests.worker.heartmula import songs
from tests.worker.heartmula.cases import CASES
from worker.heartmula.weights import Weights
from worker.models import heartmula_tree, tiny_heartmula
from worker.models.heartmula_shapes import mula_shapes
from worker.models.heartmula_tree import MULA, SINGLE

CASE = CASES["rehearsal-greedy"]


def song(tree, **how):
    return songs.alone(songs.model(tree, **how), songs.prompt_of(tree, CASE), CASE)


def test_every_tensor_has_the_shape_that_the_config_asks_for(trees):
    for tree in trees.values():
        weights = Weights(tree.mula_weights)
        for name, shape in mula_shapes(tree.mula).items():
            assert tuple(weights[name].shape) == shape


def test_shards_make_the_same_song_as_one_file(trees, tmp_path):
    tiny_heartmula.build(tmp_path, shards=3)
    assert np.array_equal(song(heartmula_tree.check(tmp_path)), song(trees["rehearsal"]))


def test_half_precision_files_are_read_as_the_numbers_they_hold(trees, tmp_path):
    """In fp32: the song of the rounded numbers."""
    tiny_heartmula.build(tmp_path)
    file = tmp_path / MULA / SINGLE
    rounded = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(file).items()}
    save_file(rounded, file, {"format": "pt"})
    half = song(heartmula_tree.check(tmp_path))
    save_file({name: tensor.float() for name, tensor in rounded.items()}, file, {"format": "pt"})
    assert np.array_equal(half, song(heartmula_tree.check(tmp_path)))


def test_name_that_is_not_there_is_an_error(trees):
    with pytest.raises(KeyError):
        Weights(trees["rehearsal"].mula_weights)["backbone.layers.2.sa_norm.scale"]
