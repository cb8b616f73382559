"""Checkpoints: the rehearsal model, what a folder must hold, and the errors when it does not.

tests/worker/test_main.py has what `python -m worker` prints for an absent folder, file or hub.
"""

import importlib.util
import json
import re
import shutil
import socket
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoProcessor, MusicgenForConditionalGeneration

from tests.fakes import hub as hubs
from tests.parts import need
from tests.songs import tree
from tests.worker.models import trees
from worker.errors import BadInput
from worker.musicgen import Engine, pretrained, rehearsal

pytestmark = pytest.mark.xdist_group("engine")

WEIGHT = "decoder.model.decoder.layers.0.fc1.weight"


@pytest.fixture(scope="module")
def built(tmp_path_factory):
    """The rehearsal model as a folder; not to be changed."""
    folder = tmp_path_factory.mktemp("built")
    rehearsal.build(folder)
    return folder


@pytest.fixture
def folder(built, tmp_path):
    """A copy whose files can be damaged."""
    return shutil.copytree(built, tmp_path / "tiny")


def change_config(folder, part=None, **changes):
    path = folder / "config.json"
    config = json.loads(path.read_text("utf-8"))
    (config[part] if part else config).update(changes)
    path.write_text(json.dumps(config), "utf-8")


def change_weights(folder, change):
    path = folder / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, {"format": "pt"})


def refused(folder, message):
    """Loading is refused in one line with this message and what to do."""
    with pytest.raises(BadInput) as caught:
        pretrained.load(str(folder))
    text = str(caught.value)
    assert message in text
    assert "; " in text and "\n" not in text


# --- the rehearsal model


def test_rehearsal_is_built_of_the_same_bytes_each_time(built, tmp_path):
    rehearsal.build(tmp_path)
    assert tree(tmp_path) == tree(built)


def test_building_it_leaves_the_global_draws_alone(tmp_path):
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    rehearsal.build(tmp_path)
    assert torch.equal(torch.rand(3), expected)


def test_rehearsal_is_a_few_megabytes(built):
    assert sum(map(len, tree(built).values())) < 5_000_000


def test_rehearsal_generates_through_transformers_alone(built):
    processor = AutoProcessor.from_pretrained(built, local_files_only=True)
    model = MusicgenForConditionalGeneration.from_pretrained(built, local_files_only=True)
    audio = model.generate(**processor(text=["soft piano"], return_tensors="pt"), max_new_tokens=13)
    assert audio.shape == (1, 1, 10 * 640)


def test_rehearsal_prompts_that_differ_have_different_tokens(loaded):
    ids = [tuple(loaded.tokenizer(prompt).input_ids) for prompt in ("calm", "calm piano", "ca lm", "épic")]
    assert len(set(ids)) == 4


# --- folders


def test_folder_of_two_shards_is_the_model_in_one(built, tmp_path):
    whole = pretrained.load(str(built)).model
    whole.save_pretrained(tmp_path, max_shard_size="1MB")
    shutil.copy(built / "tokenizer.json", tmp_path)
    shutil.copy(built / "tokenizer_config.json", tmp_path)
    assert (tmp_path / "model.safetensors.index.json").exists()
    sharded = pretrained.load(str(tmp_path)).model.state_dict()
    assert all(torch.equal(weight, sharded[name]) for name, weight in whole.state_dict().items())


def test_folder_is_loaded_in_fp32_for_inference(built):
    model = pretrained.load(str(built)).model
    assert model.dtype == torch.float32 and not model.training


def narrowed(folder, dtype):
    """The checkpoint saved in half precision."""
    model = MusicgenForConditionalGeneration.from_pretrained(folder, local_files_only=True, dtype=dtype)
    model.save_pretrained(folder)
    return folder


def mapped(file):
    """The addresses at which a file is mapped into this process."""
    maps = Path("/proc/self/maps")
    need("/proc/self/maps", maps.exists())
    lines = [line.split() for line in maps.read_text("utf-8").splitlines() if line.endswith(f" {file}")]
    return [range(*(int(end, 16) for end in line[0].split("-"))) for line in lines]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_decoders_weights_stay_in_the_file(folder, dtype):
    decoder = pretrained.load(str(narrowed(folder, dtype))).model.decoder
    assert {weight.dtype for weight in decoder.parameters()} == {dtype}
    places = mapped(folder / "model.safetensors")  # not memory of their own, which could not be reclaimed
    assert all(any(weight.data_ptr() in place for place in places) for weight in decoder.parameters())


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_text_encoder_and_codec_are_in_fp32_whatever_is_stored(folder, dtype):
    model = pretrained.load(str(narrowed(folder, dtype))).model
    whole = MusicgenForConditionalGeneration.from_pretrained(
        folder, local_files_only=True, dtype=torch.float32
    )
    for part in ("text_encoder", "audio_encoder", "enc_to_dec_proj"):
        ours, theirs = getattr(model, part).state_dict(), getattr(whole, part).state_dict()
        assert all(torch.equal(ours[name], weight) for name, weight in theirs.items())
        assert {weight.dtype for weight in ours.values() if weight.is_floating_point()} == {torch.float32}


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_songs_of_a_half_checkpoint_are_those_of_its_weights_in_fp32(folder, dtype):
    loaded = pretrained.load(str(narrowed(folder, torch.float16)))
    tokens = Engine(loaded, slots=1, dtype=dtype).tokens(["calm"], 0.3)
    loaded.model.decoder.float()
    assert np.array_equal(Engine(loaded, slots=1, dtype=dtype).tokens(["calm"], 0.3), tokens)


def test_decoder_of_mixed_precisions_is_loaded_in_fp32(folder):
    change_weights(folder, lambda weights: weights.update({WEIGHT: weights[WEIGHT].half()}))
    assert pretrained.load(str(folder)).model.decoder.dtype == torch.float32


def test_model_of_a_folder_is_named_after_it(folder):
    assert pretrained.load(str(folder)).name == "tiny"


def test_revision_does_not_depend_on_where_the_folder_is(built, folder):
    assert pretrained.load(str(folder)).revision == pretrained.load(str(built)).revision


def test_revision_changes_with_the_weights(built, folder):
    change_weights(folder, lambda weights: [weight.mul_(1.01) for weight in weights.values()])
    assert pretrained.load(str(folder)).revision != pretrained.load(str(built)).revision


def test_revision_changes_with_the_config(built, folder):
    change_config(folder, note="another")
    assert pretrained.load(str(folder)).revision != pretrained.load(str(built)).revision


# --- models of the hub


def test_model_of_the_hub_is_fetched_once_with_progress_and_loaded(built, tmp_path, monkeypatch, caplog):
    with hubs.serving({"demo/tiny": tree(built) | {"pytorch_model.bin": b"old"}}) as hub:
        for name, value in trees.env(hub, tmp_path).items():
            monkeypatch.setenv(name, value)
        loaded = pretrained.load("demo/tiny")
        assert (loaded.name, loaded.revision) == ("demo/tiny", hub.main["demo/tiny"])
        assert "pytorch_model.bin" not in hub.fetched()
        assert re.search(r"^fetching the model: (\S+ MB) of \1", caplog.messages[-1], re.M)
        hub.asked.clear()
        assert pretrained.load("demo/tiny").revision == loaded.revision
        assert hub.asked == []


# --- faults


@pytest.mark.parametrize("model", ["nobody", "a b", "one/two/three", "../up", "C:\\models"])
def test_name_that_is_neither_folder_nor_id_is_refused(model):
    refused(model, f"no model folder at {model}")


def test_hub_that_cannot_be_reached_is_an_error(tmp_path, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = f"http://127.0.0.1:{server.getsockname()[1]}"
    monkeypatch.setenv("HF_ENDPOINT", closed)
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    refused("nobody/none", "model nobody/none is not on this machine and the hub cannot be reached")


@pytest.mark.parametrize(
    "text", ["{", '{"model_type": "musicgen"}', '{"model_type": "musicgen", "decoder": 7}']
)
def test_damaged_config_is_refused(folder, text):
    (folder / "config.json").write_text(text, "utf-8")
    refused(folder, "config.json is damaged")


@pytest.mark.parametrize("kind", ["musicgen_melody", "t5", "encodec", None])
def test_other_architectures_are_refused_by_name(folder, kind):
    change_config(folder, model_type=kind)
    refused(folder, f"holds a {kind!r} model; supported are MusicGen checkpoints without melody")


def test_config_that_is_not_an_object_is_refused(folder):
    (folder / "config.json").write_text("[]", "utf-8")
    refused(folder, "supported are MusicGen checkpoints without melody")


def test_codec_with_fewer_tokens_than_the_decoder_makes_is_refused(folder):
    change_config(folder, "audio_encoder", codebook_size=128)
    refused(folder, "makes tokens up to 256, and its codec knows 128")


@pytest.mark.parametrize(("channels", "n_codebooks"), [(3, 12), (2, 5)])
def test_channels_that_no_musicgen_has_are_refused(folder, channels, n_codebooks):
    change_config(folder, "decoder", audio_channels=channels, num_codebooks=n_codebooks)
    refused(folder, f"has {channels} channels and {n_codebooks} codebooks")


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("state_dict.bin", "is in audiocraft's own format; convert it"),
        ("pytorch_model.bin", "has its weights in pytorch_model.bin only; convert them"),
    ],
)
def test_other_formats_are_refused_with_what_makes_a_checkpoint_of_them(folder, file, message):
    (folder / "model.safetensors").rename(folder / file)
    refused(folder, message)


@pytest.mark.parametrize(
    ("part", "key", "value"),
    [
        ("decoder", "activation_function", "relu"),
        ("decoder", "scale_embedding", True),
        ("audio_encoder", "model_type", "dac"),
        ("audio_encoder", "audio_channels", 2),
    ],
)
def test_what_the_engine_would_compute_wrongly_is_refused(folder, part, key, value):
    change_config(folder, part, **{key: value})
    refused(folder, f"{part}.{key} {value!r}; only")


def test_missing_shard_is_named(folder):
    index = {"weight_map": {"a": "model.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index), "utf-8")
    refused(folder, "lacks model-00002-of-00002.safetensors")


@pytest.mark.parametrize("text", ["{", "{}", "[]", '{"weight_map": []}'])
def test_damaged_index_is_refused(folder, text):
    (folder / "model.safetensors.index.json").write_text(text, "utf-8")
    refused(folder, "model.safetensors.index.json is damaged")


def test_empty_weights_are_refused(folder):
    (folder / "model.safetensors").write_bytes(b"")
    refused(folder, "model.safetensors is truncated or damaged")


def test_weights_that_are_not_safetensors_are_refused(folder):
    (folder / "model.safetensors").write_bytes(b"version https://git-lfs.github.com/spec/v1\n" * 3)
    refused(folder, "model.safetensors is truncated or damaged")


@pytest.mark.parametrize("text", ["", "{", "{}"])
def test_damaged_tokenizer_is_refused(folder, text):
    (folder / "tokenizer.json").write_text(text, "utf-8")
    refused(folder, "cannot be loaded")


def test_folder_without_a_tokenizer_takes_that_of_its_text_encoder_and_says_so(folder, built, caplog):
    change_config(folder, "text_encoder", _name_or_path=str(built))
    (folder / "tokenizer.json").unlink()
    loaded = pretrained.load(str(folder))
    expected = pretrained.load(str(built)).tokenizer("calm piano").input_ids
    assert loaded.tokenizer("calm piano").input_ids == expected
    assert f"has no tokenizer: that of its text encoder, {built}, is used" in caplog.text


def test_folder_without_any_tokenizer_is_refused(folder, tmp_path):
    change_config(folder, "text_encoder", _name_or_path=str(tmp_path / "none"))
    (folder / "tokenizer.json").unlink()
    refused(folder, "cannot be loaded from")


@pytest.mark.parametrize("name", [WEIGHT, "audio_encoder.quantizer.layers.0.codebook.embed"])
def test_missing_weight_is_named(folder, name):
    change_weights(folder, lambda weights: weights.pop(name))
    refused(folder, f"lacks 1 weight ({name}")


def test_weight_of_a_wrong_shape_is_named(folder):
    change_weights(folder, lambda weights: weights.update({WEIGHT: torch.zeros(4, 4)}))
    refused(folder, f"{WEIGHT} has the shape (4, 4) where config.json asks for (128, 64)")


def test_more_layers_than_there_are_weights_for_are_refused(folder):
    change_config(folder, "decoder", num_hidden_layers=4)
    refused(folder, "lacks 16 weights (decoder.model.decoder.layers.3")


# --- adapters (PEFT)


@pytest.fixture
def peft(monkeypatch):
    """The real one where it is installed, else a stand-in that merges LoRA alone."""
    if importlib.util.find_spec("peft") is None:
        monkeypatch.syspath_prepend(str(Path(__file__).parents[2] / "fakes" / "without_peft"))
    yield
    if "without_peft" in str(getattr(sys.modules.get("peft"), "__file__", "")):
        sys.modules.pop("peft")


@pytest.fixture
def tune(built, tmp_path):
    """An adapter of the rehearsal model, and the changes that it makes to weights, by their names."""
    folder = tmp_path / "tune"
    folder.mkdir()
    draw, changes, weights = torch.Generator().manual_seed(1), {}, {}
    for name in pretrained.load(str(built)).model.state_dict():
        if name.endswith("q_proj.weight"):
            a, b = torch.randn(2, 64, generator=draw), torch.randn(64, 2, generator=draw)
            key = f"base_model.model.{name.removesuffix('.weight')}"
            weights |= {f"{key}.lora_A.weight": a, f"{key}.lora_B.weight": b}
            changes[name] = 2 * b @ a  # lora_alpha / r
    save_file(weights, folder / "adapter_model.safetensors", {"format": "pt"})
    config = {"peft_type": "LORA", "r": 2, "lora_alpha": 4, "target_modules": ["q_proj"]}
    config |= {"base_model_name_or_path": str(built), "inference_mode": True}
    (folder / "adapter_config.json").write_text(json.dumps(config), "utf-8")
    return folder, changes


def change_adapter(folder, **changes):
    path = folder / "adapter_config.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | changes), "utf-8")


def test_adapter_is_merged_into_its_base(peft, tune, built):
    folder, changes = tune
    before, loaded = pretrained.load(str(built)), pretrained.load(str(folder))
    after = loaded.model.state_dict()
    assert after.keys() == before.model.state_dict().keys() and len(changes) == 6
    for name, weight in before.model.state_dict().items():
        assert torch.allclose(after[name], weight + changes.get(name, 0), atol=1e-5)
    assert loaded.name == "tune" and not loaded.model.training
    assert loaded.tokenizer("calm piano").input_ids == before.tokenizer("calm piano").input_ids


def test_revision_of_an_adapter_covers_its_weights_its_settings_and_its_base(peft, tune, folder):
    adapter, _ = tune
    change_adapter(adapter, base_model_name_or_path=str(folder))
    found = [pretrained.load(str(adapter)).revision]
    moved = folder.rename(folder.parent / "moved")
    change_adapter(adapter, base_model_name_or_path="../moved")
    assert pretrained.load(str(adapter)).revision == found[0]
    change_weights(moved, lambda weights: [weight.mul_(1.01) for weight in weights.values()])
    found.append(pretrained.load(str(adapter)).revision)
    change_adapter(adapter, lora_alpha=8)
    found.append(pretrained.load(str(adapter)).revision)
    path = adapter / "adapter_model.safetensors"
    save_file({name: weight * 2 for name, weight in load_file(path).items()}, path, {"format": "pt"})
    found.append(pretrained.load(str(adapter)).revision)
    assert len(set(found)) == 4


def test_adapter_of_a_model_that_is_not_supported_is_refused(peft, tune, folder):
    change_config(folder, model_type="musicgen_melody")
    change_adapter(tune[0], base_model_name_or_path=str(folder))
    refused(tune[0], "holds a 'musicgen_melody' model")


def test_adapter_that_lacks_weights_is_refused(peft, tune):
    path = tune[0] / "adapter_model.safetensors"
    weights = load_file(path)
    weights.pop(next(iter(weights)))
    save_file(weights, path, {"format": "pt"})
    refused(tune[0], "missing adapter keys")


def test_adapter_without_peft_is_refused_with_both_ways_out(tune, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    refused(tune[0], "install what merges it (uv pip install peft), or merge it: peft.PeftModel")
