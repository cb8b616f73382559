"""Whether a model is here: in the cache of huggingface_hub, wherever that is, or in a folder."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from ops import models
from tests.worker.models import trees
from worker.errors import BadInput
from worker.models import tiny_heartmula

SMALL = "facebook/musicgen-small"
SETTING = "MUSICGEN_HEARTMULA_DIR"


def cached(cache, *files):
    """A snapshot of the small model with these files, in a cache."""
    snapshot = cache / "models--facebook--musicgen-small" / "snapshots" / "0123abc"
    snapshot.mkdir(parents=True)
    for name in files:
        (snapshot / name).write_bytes(trees.weights(0) if name.endswith("safetensors") else b"{}")


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


@pytest.fixture
def adapter(tmp_path, monkeypatch):
    """An adapter folder of a base model, on a machine with peft."""
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "fakes" / "without_peft"))
    folder = tmp_path / "tune"
    folder.mkdir()
    (folder / "adapter_model.safetensors").write_bytes(b"")

    def of(base):
        (folder / "adapter_config.json").write_text(json.dumps({"base_model_name_or_path": base}))
        return str(folder)

    return of


def test_adapter_is_described_with_its_base_and_what_that_takes(adapter):
    model = adapter(SMALL)
    models.refuse_unsupported(model, {"HF_HOME": model})
    assert models.described(model, {"HF_HOME": model}) == (
        f"model {model}, an adapter of {SMALL}, 2.4 GB to download first"
    )


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("facebook/musicgen-melody", "model facebook/musicgen-melody is not supported"),
        (".", "is an adapter of an adapter"),
        (None, "names no base model"),
    ],
)
def test_adapter_whose_base_cannot_run_is_refused(adapter, base, message):
    with pytest.raises(BadInput, match=message):
        models.refuse_unsupported(adapter(base), {})


def test_adapter_beside_a_model_is_refused(adapter):
    model = adapter(SMALL)
    (Path(model) / "model.safetensors").write_bytes(b"")
    with pytest.raises(BadInput, match=r"holds both a model and an adapter; remove adapter_config\.json"):
        models.refuse_unsupported(model, {})


def test_adapter_without_weights_is_refused(adapter):
    model = adapter(SMALL)
    (Path(model) / "adapter_model.safetensors").unlink()
    with pytest.raises(BadInput, match=r"lacks adapter_model\.safetensors"):
        models.refuse_unsupported(model, {})


def test_adapter_is_refused_before_a_run_where_peft_is_missing(adapter, monkeypatch):
    model = adapter(SMALL)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(BadInput, match=f"holds an adapter .* of {SMALL}; install what merges it"):
        models.refuse_unsupported(model, {})


def test_misspelt_name_is_refused_and_a_folder_of_another_machine_is_not():
    with pytest.raises(BadInput, match=r"no model folder at hartmula; give .*heartmula or rehearsal"):
        models.refuse_unsupported("hartmula", {})
    models.refuse_unsupported("/workspace/models/mine", {})


# --- a HeartMuLa


@pytest.fixture
def tree(tmp_path):
    """A whole one, tiny."""
    tiny_heartmula.build(tmp_path / "ckpt")
    return tmp_path / "ckpt"


def named(tree):
    """How a user may name it: the model, and the environment."""
    return [(str(tree), {}), *((name, {SETTING: str(tree)}) for name in ("heartmula", "heartmula-3b"))]


@pytest.mark.parametrize(
    ("lacking", "said"),
    [
        ("tokenizer.json", r"lacks tokenizer\.json"),
        ("HeartCodec-oss/model.safetensors", r"HeartCodec-oss lacks model\.safetensors"),
    ],
)
def test_heartmula_that_lacks_a_file_is_refused_with_the_command_that_gets_it(tree, lacking, said):
    (tree / lacking).unlink()
    for model, env in named(tree):
        with pytest.raises(BadInput, match=f"{said}; fetch it: `inv models --get heartmula-3b`"):
            models.refuse_unsupported(model, env)


def test_heartmula_that_lacks_a_tensor_is_refused_with_its_name(tree):
    config = tree / "HeartMuLa-oss-3B" / "config.json"
    config.write_text(json.dumps(json.loads(config.read_text()) | {"decoder_flavor": "llama-300M"}))
    for model, env in named(tree):
        with pytest.raises(BadInput, match=r"lacks \d+ of \d+ weights: decoder\.layers\.1\..*; fetch it: "):
            models.refuse_unsupported(model, env)


def test_whole_heartmula_is_accepted_by_name_and_by_folder(tree):
    for model, env in named(tree):
        models.refuse_unsupported(model, env)


def test_heartmula_that_is_not_here_is_left_to_the_machine_that_runs_it(tmp_path):
    for env in ({SETTING: "/workspace/ckpt"}, {"MUSICGEN_MODELS_DIR": str(tmp_path)}):
        models.refuse_unsupported("heartmula", env)
    models.refuse_unsupported("heartmula-rehearsal", {})


def test_heartmula_that_is_not_here_is_described_with_the_commands_that_fetch_it(tmp_path):
    for name in ("heartmula", "heartmula-3b"):
        assert models.described(name, {"MUSICGEN_MODELS_DIR": str(tmp_path)}) == (
            f"model {name}, 22.4 GB to download first: on this machine `inv models --get heartmula-3b`, "
            "on a rented one `fab install`"
        )


def test_half_a_download_to_the_usual_folder_is_left_to_resume(tmp_path):
    begun = tmp_path / "heartmula-3b"
    begun.mkdir()
    (begun / "gen_config.json").write_text("{}")
    models.refuse_unsupported("heartmula", {"MUSICGEN_MODELS_DIR": str(tmp_path)})


def test_heartmula_is_checked_without_torch_and_numpy(tree):
    """A user's machine has neither."""
    without = "import sys; sys.modules.update(numpy=None, safetensors=None, torch=None);"
    check = f"from ops import models; models.refuse_unsupported({str(tree)!r}, {{}})"
    assert subprocess.run([sys.executable, "-c", f"{without} {check}"]).returncode == 0
