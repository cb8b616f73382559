"""A HeartMuLa folder is whole, or one line says what is wrong with it and what to do."""

import json
import re
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from tests.worker.models.files import written
from worker.errors import BadInput
from worker.models import tiny_heartmula
from worker.models.heartmula_tree import (
    CODEC,
    FETCH,
    FILES,
    INDEX,
    MULA,
    NEW_CODEC,
    OLD_CODEC,
    SINGLE,
    Unfit,
    check,
)

NEW_MODEL = "HeartMuLa/HeartMuLa-oss-3B-happy-new-year"
OLD_MODEL = "HeartMuLa/HeartMuLa-oss-3B"
NORM = "backbone.norm.scale"
FIRST, SECOND = "model-00001-of-00003.safetensors", "model-00002-of-00003.safetensors"


def refused(folder, why, **asked):
    """The folder is refused in one line that holds `why`."""
    with pytest.raises(BadInput) as caught:
        check(folder, **asked)
    text = str(caught.value)
    assert why in text.replace(f"{folder}/", "").replace("\\", "/")
    assert text.endswith(f"; {FETCH}")
    assert "\n" not in text
    return text


@contextmanager
def weights(folder, file=SINGLE):
    """The file's tensors, which may be changed; the file is then written anew."""
    tensors = {name: array.copy() for name, array in load_file(folder / file).items()}
    yield tensors
    save_file(tensors, folder / file, metadata={"format": "pt"})


@contextmanager
def edited(path):
    content = json.loads(path.read_text("utf-8"))
    yield content
    path.write_text(json.dumps(content), "utf-8")


@pytest.mark.parametrize("kind", ["single", "shards"])
def test_whole_tree_passes(built, kind):
    found = check(built / kind, finite=True)
    assert (found.mula, found.codec) == (tiny_heartmula.MULA_CONFIG, tiny_heartmula.CODEC_CONFIG)
    assert found.generation == tiny_heartmula.GENERATION


def test_every_tensor_is_located_in_its_file(built):
    found = check(built / "shards")
    for path, tensors in (found.mula_weights | found.codec_weights).items():
        for name, array in load_file(path).items():
            tensor = tensors[name]
            assert path.read_bytes()[tensor.start :][: tensor.n_bytes] == array.tobytes()


def test_tree_as_transformers_saves_it_passes(tree):
    """With more in its configs, and a mask that was saved along."""
    for part in (MULA, CODEC):
        with edited(tree / part / "config.json") as config:
            config |= {"torch_dtype": "float32", "transformers_version": "4.57.0"}
    (tree / MULA / "README.md").write_text("---\nlicense: apache-2.0\n---\n", "utf-8")
    with weights(tree / MULA) as tensors:
        tensors["backbone_causal_mask"] = np.tri(8, dtype=bool)
    check(tree)


@pytest.mark.parametrize("dtype", ["F16", "BF16"])
def test_tree_in_half_precision_passes(tree, dtype):
    for part in (MULA, CODEC):
        halves = {}
        for name, array in load_file(tree / part / SINGLE).items():
            half = array.astype(np.float16).tobytes() if dtype == "F16" else upper_halves(array)
            halves[name] = (dtype, list(array.shape), half)
        written(tree / part / SINGLE, halves)
    check(tree, finite=True)


def upper_halves(array):
    return array.astype("<f4").reshape(-1).view("<u2")[1::2].tobytes()


def test_folder_that_is_not_there_is_refused(tmp_path):
    refused(tmp_path / "none", "there is no folder")


def test_empty_folder_is_refused(tmp_path):
    refused(tmp_path, "is empty")


@pytest.mark.parametrize("name", FILES)
def test_missing_file_is_named(tree, name):
    (tree / name).unlink()
    refused(tree, f"lacks {name}")


def test_tree_from_one_of_three_repositories_lacks_the_models(tree):
    shutil.rmtree(tree / MULA)
    shutil.rmtree(tree / CODEC)
    refused(tree, f"lacks {MULA}/config.json, {CODEC}/config.json")


@pytest.mark.skipif(sys.platform == "win32", reason="links need rights there")
@pytest.mark.parametrize("name", [FILES[0], f"{MULA}/{SINGLE}", f"{CODEC}/{SINGLE}"])
def test_link_that_leads_nowhere_is_a_missing_file(tree, name):
    (tree / name).unlink()
    (tree / name).symlink_to("gone")
    refused(tree, f"lacks {Path(name).name}")


@pytest.mark.parametrize("part", [MULA, CODEC])
def test_model_without_weights_is_refused(tree, part):
    (tree / part / SINGLE).unlink()
    refused(tree, f"{part} lacks {SINGLE}")


def test_empty_model_folder_is_refused(tree):
    shutil.rmtree(tree / CODEC)
    (tree / CODEC).mkdir()
    refused(tree, f"lacks {CODEC}/config.json")


@pytest.mark.parametrize("name", [*FILES, f"{MULA}/{INDEX}"])
@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"<!doctype html>", b"[" * 100_000])
def test_what_is_not_json_is_refused(shards, name, content):
    (shards / name).write_bytes(content)
    refused(shards, f"{name} is damaged")


def test_unknown_flavour_is_refused_by_name(tree):
    with edited(tree / MULA / "config.json") as config:
        config["backbone_flavor"] = "llama-70B"
    refused(tree, "config.json: backbone_flavor is 'llama-70B', known are llama-3B, llama-7B")


def test_another_kind_of_model_is_refused(tree):
    with edited(tree / CODEC / "config.json") as config:
        config["model_type"] = "encodec"
    refused(tree, "describes a 'encodec' model, not heartcodec")


def test_codec_in_the_models_place_is_refused(tree):
    shutil.rmtree(tree / MULA)
    shutil.copytree(tree / CODEC, tree / MULA)
    refused(tree, "describes a 'heartcodec' model, not heartmula")


def test_half_a_file_is_refused_with_both_sizes(tree):
    path = tree / CODEC / SINGLE
    path.write_bytes(path.read_bytes()[:700_000])
    refused(tree, f"{CODEC}/{SINGLE} is truncated (0.7 MB of 1.5 MB)")


def test_half_a_shard_is_refused(shards):
    path = shards / MULA / SECOND
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    refused(shards, f"{SECOND} is truncated")


def test_missing_shard_is_named(shards):
    (shards / MULA / SECOND).unlink()
    refused(shards, f"{MULA} lacks {SECOND}")


def test_shards_without_an_index_are_refused(shards):
    (shards / MULA / INDEX).unlink()
    refused(shards, f"{MULA} lacks {INDEX}")


@pytest.mark.parametrize("file", [SINGLE, "model-00004-of-00004.safetensors"])
def test_file_of_another_download_is_refused(shards, file):
    shutil.copy(shards / MULA / SECOND, shards / MULA / file)
    refused(shards, f"{MULA} holds {file}, which {INDEX} does not name")


@pytest.mark.parametrize("weight_map", [None, {}, [], {"a": 1}, {"a": "../model.safetensors"}, {"a": ""}])
def test_damaged_index_is_refused(shards, weight_map):
    with edited(shards / MULA / INDEX) as index:
        index["weight_map"] = weight_map
    refused(shards, f"{MULA}/{INDEX} is damaged")


def test_index_that_is_wrong_about_a_tensor_is_refused(shards):
    with edited(shards / MULA / INDEX) as index:
        assert index["weight_map"][NORM] == SECOND
        index["weight_map"][NORM] = FIRST
    refused(shards, f"is wrong: there is no {NORM} in {FIRST}")


def test_tensor_that_stands_in_two_shards_is_refused(shards):
    with weights(shards / MULA, FIRST) as tensors:
        tensors[NORM] = load_file(shards / MULA / SECOND)[NORM]
    refused(shards, f"{NORM} is both in {FIRST} and in {SECOND}")


def test_missing_tensor_is_named(tree):
    with weights(tree / MULA) as tensors:
        del tensors[NORM]
        n_wanted = len(tensors) + 1
    refused(tree, f"{MULA} lacks 1 of {n_wanted} weights: {NORM}")


def test_many_missing_tensors_are_three_and_a_number(tree):
    with weights(tree / CODEC) as tensors:
        gone = [name for name in tensors if name.startswith("scalar_model")]
        for name in gone:
            del tensors[name]
    text = refused(tree, f"{CODEC} lacks {len(gone)} of")
    assert f" and {len(gone) - 3} more; " in text


def test_wrong_shape_is_shown_beside_the_right_one(tree):
    with weights(tree / MULA) as tensors:
        tensors[NORM] = tensors[NORM][:-1].copy()
    refused(tree, f"{MULA}: {NORM} has the shape [31] where config.json asks for [32]")


def test_several_wrong_shapes_are_counted(tree):
    with weights(tree / MULA) as tensors:
        for name in ("audio_head", NORM, "muq_linear.bias"):
            tensors[name] = tensors[name][:-1].copy()
    refused(tree, "and 2 more")


def test_transposed_weight_is_refused(tree):
    with weights(tree / MULA) as tensors:
        tensors["projection.weight"] = np.ascontiguousarray(tensors["projection.weight"].T)
    refused(tree, "projection.weight has the shape [32, 24] where config.json asks for [24, 32]")


@pytest.mark.parametrize("dtype", [np.int32, np.float64, bool])
def test_weight_that_is_no_supported_float_is_refused(tree, dtype):
    with weights(tree / MULA) as tensors:
        tensors[NORM] = tensors[NORM].astype(dtype)
    refused(tree, f"{NORM} is ")


def test_weights_of_a_deeper_model_are_refused(tree):
    with weights(tree / MULA) as tensors:
        tensors |= {name.replace(".0.", ".7."): array for name, array in tensors.items() if ".0." in name}
    refused(tree, f"{MULA} has weights of more layers than config.json says: backbone.layers.7.")


def test_codec_of_other_codebooks_is_refused(tree):
    with edited(tree / CODEC / "config.json") as config:
        config["num_quantizers"] = 4
    refused(tree, "the model makes 8 codebooks, its codec knows 4")


def test_end_token_beyond_the_codecs_codes_is_refused(tree):
    with edited(tree / "gen_config.json") as generation:
        generation["audio_eos_id"] = 8193
    refused(tree, "ends a song at token 8193, the codec has 64 codes")


def test_tokenizer_of_a_larger_model_is_refused(tree):
    with edited(tree / "tokenizer.json") as tokenizer:
        tokenizer["model"]["vocab"]["song"] = 128_000
    refused(tree, "the tokenizer goes up to token 128000, the model to 259")


@pytest.mark.parametrize("model", [None, [], {}, {"vocab": []}, {"vocab": {}}, {"vocab": {"a": "b"}}])
def test_another_kind_of_tokenizer_is_refused(tree, model):
    with edited(tree / "tokenizer.json") as tokenizer:
        tokenizer |= {"model": model, "added_tokens": []}
    refused(tree, "tokenizer.json is not a BPE tokenizer")


@pytest.mark.parametrize(("part", "name"), [(MULA, NORM), (CODEC, "flow_matching.cond_feature_emb.bias")])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_weight_that_is_not_finite_is_named(tree, part, name, bad):
    with weights(tree / part) as tensors:
        tensors[name][-1] = bad
    refused(tree, f"{part}/{SINGLE}: {name} holds NaN or infinity", finite=True)


def test_codec_tells_its_release(tmp_path):
    for release, flag in ((NEW_CODEC, (1,)), (OLD_CODEC, ())):
        tiny_heartmula.build(tmp_path, flag=flag)
        assert check(tmp_path).codec_release == release


def test_old_codec_with_a_new_model_is_refused(tmp_path):
    tiny_heartmula.build(tmp_path, flag=())
    refused(
        tmp_path,
        f"looks like a codec from {OLD_CODEC}, and {NEW_MODEL} needs that of {NEW_CODEC}",
        model=NEW_MODEL,
    )


@pytest.mark.parametrize("model", [OLD_MODEL, None])
def test_old_codec_passes_where_no_new_model_is_known_of(tmp_path, model):
    tiny_heartmula.build(tmp_path, flag=())
    check(tmp_path, model=model)


@pytest.mark.parametrize("model", [OLD_MODEL, NEW_MODEL])
def test_new_codec_goes_with_every_model(built, model):
    check(built / "single", model=model)


def test_codec_put_together_from_two_releases_is_refused(tree):
    flag = "flow_matching.vq_embed.layers.3._codebook.initted"
    with weights(tree / CODEC) as tensors:
        tensors[flag] = np.ones((), bool)
    refused(tree, f"{flag} has the shape [] where config.json asks for [1]")


def test_file_that_cannot_be_read_is_no_damage(tree):
    (tree / MULA / SINGLE).unlink()
    (tree / MULA / SINGLE).mkdir()
    with pytest.raises(BadInput, match=r"model\.safetensors cannot be read \(.+\); check its permissions"):
        check(tree)


def test_checking_loads_neither_torch_nor_numpy():
    code = (
        "import sys, worker.models.heartmula_tree; "
        "sys.exit(bool({'torch', 'transformers', 'numpy'} & set(sys.modules)))"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


@pytest.fixture(scope="module")
def spoiled(built, tmp_path_factory):
    """Both trees, each file's content, and each tensor's file: spoiled and mended again by one property."""
    folder = shutil.copytree(built, tmp_path_factory.mktemp("spoiled") / "trees")
    files = sorted(path for path in folder.glob("*/**/*") if path.is_file())
    tensors = [(path, name) for path in files if path.suffix == ".safetensors" for name in load_file(path)]
    return folder, {path: path.read_bytes() for path in files}, tensors


def root_of(folder, path):
    return folder / path.relative_to(folder).parts[0]


@given(st.data())
def test_tree_with_any_file_cut_anywhere_never_passes(spoiled, data):
    folder, contents, _ = spoiled
    path = data.draw(st.sampled_from(sorted(contents)))
    content = contents[path]
    path.write_bytes(content[: data.draw(st.integers(0, len(content) - 1))])
    try:
        refused(root_of(folder, path), "")
    finally:
        path.write_bytes(content)


@settings(max_examples=30)  # each writes a file of 500 tensors
@given(st.data(), st.booleans())
def test_tree_without_any_one_tensor_never_passes(spoiled, data, in_index_too):
    folder, contents, tensors = spoiled
    path, name = data.draw(st.sampled_from(tensors))
    index = path.parent / INDEX
    with weights(path.parent, path.name) as held:
        del held[name]
    if in_index_too and index in contents:
        with edited(index) as listed:
            del listed["weight_map"][name]
    try:
        assert name in refused(root_of(folder, path), "")
    finally:
        for each in {path, index} & contents.keys():
            each.write_bytes(contents[each])


@given(st.data())
def test_tree_without_any_one_file_never_passes(spoiled, data):
    folder, contents, _ = spoiled
    path = data.draw(st.sampled_from(sorted(contents)))
    path.unlink()
    try:
        assert re.search(rf"lacks .*{re.escape(path.name)}", refused(root_of(folder, path), ""))
    finally:
        path.write_bytes(contents[path])


def test_weights_that_cannot_be_read_without_numpy_are_one_line(tree, monkeypatch):
    monkeypatch.delitem(sys.modules, "worker.models.finite", raising=False)
    monkeypatch.setitem(sys.modules, "numpy", None)
    with pytest.raises(BadInput, match="takes numpy, which is not installed; install") as caught:
        check(tree, finite=True)
    assert not isinstance(caught.value, Unfit)
