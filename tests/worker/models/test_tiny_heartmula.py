"""The tiny HeartMuLa is written as heartlib writes its models, the same each time, and is not degenerate."""

import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file
from tokenizers import Tokenizer

from worker.models import tiny_heartmula
from worker.models.heartmula_tree import CODEC, INDEX, MULA, SINGLE

# The keys of heartlib's HeartMuLaConfig and HeartCodecConfig.
MULA_KEYS = """
    backbone_flavor decoder_flavor text_vocab_size audio_vocab_size audio_num_codebooks muq_dim
""".split()
CODEC_KEYS = """
    dim codebook_size decay commitment_weight threshold_ema_dead_code use_cosine_sim codebook_dim
    num_quantizers attention_head_dim in_channels norm_type num_attention_heads num_layers num_layers_2
    out_channels num_bands sample_rate causal num_samples downsample_factors downsample_kernel_sizes
    upsample_factors upsample_kernel_sizes latent_hidden_dim default_kernel_size delay_kernel_size
    init_channel res_kernel_size
""".split()
OF_TRANSFORMERS = ["architectures", "dtype", "model_type"]


def contents(folder):
    return {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in folder.glob("**/*")
        if path.is_file()
    }


def tensors(folder):
    files = folder.glob("*.safetensors")
    return {name: array for path in files for name, array in load_file(path).items()}


@pytest.mark.parametrize("shards", [1, 3])
def test_it_is_the_same_each_time(built, tmp_path, shards):
    tiny_heartmula.build(tmp_path, shards=shards)
    assert contents(tmp_path) == contents(built / ("single" if shards == 1 else "shards"))


def test_another_seed_changes_every_random_weight(built, tmp_path):
    tiny_heartmula.build(tmp_path, seed=1)
    old, new = tensors(built / "single" / MULA), tensors(tmp_path / MULA)
    assert not any(np.array_equal(old[name], new[name]) for name in old)


def test_it_has_the_files_of_the_real_one(built):
    assert contents(built / "single").keys() == {
        "gen_config.json",
        "tokenizer.json",
        f"{MULA}/config.json",
        f"{MULA}/{SINGLE}",
        f"{CODEC}/config.json",
        f"{CODEC}/{SINGLE}",
    }


def test_it_takes_two_megabytes(built):
    assert sum(map(len, contents(built / "single").values())) < 2e6


@pytest.mark.parametrize(("part", "keys"), [(MULA, MULA_KEYS), (CODEC, CODEC_KEYS)])
def test_its_configs_have_heartlibs_keys(built, part, keys):
    config = json.loads((built / "single" / part / "config.json").read_text("utf-8"))
    assert sorted(config) == sorted([*keys, *OF_TRANSFORMERS])


@pytest.mark.parametrize("part", [MULA, CODEC])
def test_shards_hold_what_the_single_file_holds(built, part):
    single, shards = tensors(built / "single" / part), tensors(built / "shards" / part)
    assert single.keys() == shards.keys()
    assert all(np.array_equal(single[name], shards[name]) for name in single)


@pytest.mark.parametrize("part", [MULA, CODEC])
def test_index_gives_the_size_of_all_shards(built, part):
    index = json.loads((built / "shards" / part / INDEX).read_text("utf-8"))
    n_bytes = sum(array.nbytes for array in tensors(built / "shards" / part).values())
    assert index["metadata"]["total_size"] == n_bytes


@pytest.mark.parametrize("part", [MULA, CODEC])
def test_no_matrix_has_two_equal_rows(built, part):
    """Else two tokens would sound alike."""
    for name, array in tensors(built / "single" / part).items():
        if array.ndim == 2 and "cluster_size" not in name:
            assert len(np.unique(array, axis=0)) == len(array), name


def test_quantisers_differ(built):
    codec = tensors(built / "single" / CODEC)
    books = [array for name, array in codec.items() if name.endswith("_codebook.embed")]
    assert len(books) == 8
    assert all(not np.array_equal(one, books[0]) for one in books[1:])


@pytest.fixture(scope="module")
def tokenizer(built):
    return Tokenizer.from_file(str(built / "single" / "tokenizer.json"))


@given(st.text(max_size=40))
def test_tokenizer_knows_every_text(tokenizer, text):
    assert tokenizer.decode(tokenizer.encode(text).ids, skip_special_tokens=False) == text


def test_texts_begin_and_end_with_the_tokens_that_the_config_names(built, tokenizer):
    generation = json.loads((built / "single" / "gen_config.json").read_text("utf-8"))
    assert generation["text_bos_id"] == tokenizer.token_to_id("<|begin_of_text|>")
    assert generation["text_eos_id"] == tokenizer.token_to_id("<|end_of_text|>")
    assert tokenizer.get_vocab_size() == tiny_heartmula.MULA_CONFIG.text_vocab_size
