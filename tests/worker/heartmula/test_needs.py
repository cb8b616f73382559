"""What a HeartMuLa is said to need is what its engine takes: its weights, its cache, what it spares."""

import pytest
import torch

from worker.decoding import device
from worker.family import Solver
from worker.heartmula import engine
from worker.heartmula.cache import Cache, CacheSize
from worker.heartmula.codec import Codec
from worker.heartmula.codec_weights import CodecWeights
from worker.models import heartmula_tree, needs, tiny_heartmula
from worker.models.heartmula_config import MulaConfig
from worker.models.heartmula_shapes import codec_shapes


def test_codec_s_part_is_the_weights_that_it_keeps(tmp_path, monkeypatch):
    tiny_heartmula.build(tmp_path)
    tree, read, call = heartmula_tree.check(tmp_path), set(), CodecWeights.__call__

    def recorded(self, name):
        read.add(self._prefix + name)
        return call(self, name)

    monkeypatch.setattr(CodecWeights, "__call__", recorded)
    Codec.load(tree, torch.device("cpu"), Solver())
    kept = {name for name in codec_shapes(tree.codec) if not any(each in name for each in needs._NOT_KEPT)}
    # Those networks' results are kept, and their weights are not: worker/heartmula/estimator.py.
    assert kept == {name for name in read if "adaln_single" not in name}


@pytest.mark.parametrize(("dtype", "name"), [(torch.bfloat16, "bf16"), (torch.float32, "fp32")])
def test_a_song_s_part_is_its_cache(dtype, name):
    sizes = MulaConfig().backbone
    found = {what: gb for gb, what in needs.of("heartmula", {"MUSICGEN_DTYPE": name}).gpu_parts}
    cache = Cache.n_bytes(sizes, CacheSize(1, 2, engine._USUAL_POSITIONS), dtype)
    assert found["a song's cache"] == cache / 1e9
    assert found["to spare"] == device.SPARE_BYTES / 1e9
