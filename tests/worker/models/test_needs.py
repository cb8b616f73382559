"""What a model needs of a machine, from the shapes of its weights; by name, or by what a folder holds."""

import ast
import json
import math
from dataclasses import asdict
from pathlib import Path

import pytest

from worker.models import heartmula_tree, needs, sets
from worker.models.heartmula_config import CodecConfig, MulaConfig
from worker.models.heartmula_shapes import mula_shapes

SEVEN = MulaConfig("llama-7B", "llama-400M")


def tree(folder, mula):
    """A tree as far as its two config.json are needed."""
    for part, config in ((heartmula_tree.MULA, mula), (heartmula_tree.CODEC, CodecConfig())):
        (folder / part).mkdir(parents=True)
        (folder / part / "config.json").write_text(json.dumps(asdict(config)))
    (folder / "gen_config.json").write_text("{}")
    return str(folder)


def test_heartmula_needs_its_weights_its_codec_one_song_and_what_the_engine_spares():
    found = needs.of("heartmula", {})
    weights = sum(map(math.prod, mula_shapes(MulaConfig()).values())) * 2 / 1e9
    assert [round(gb, 1) for gb, _ in found.gpu_parts] == [round(weights, 1), 6.0, 0.9, 1.5]
    assert found.gpu_gb == pytest.approx(sum(gb for gb, _ in found.gpu_parts))
    assert found.gpu() == (
        "16.3 GB of GPU memory (7.9 language model, 6.0 codec, 0.9 a song's cache, 1.5 to spare)"
    )


def test_heartmula_of_7b_in_a_folder_needs_a_larger_gpu(tmp_path):
    found = needs.of(tree(tmp_path / "seven", SEVEN), {})
    assert 25 < found.gpu_gb < 26 and 40 < found.files_gb < 41


def test_a_name_means_the_tree_in_its_folder(tmp_path):
    env = {"MUSICGEN_HEARTMULA_DIR": tree(tmp_path / "seven", SEVEN)}
    assert needs.of("heartmula", env) == needs.of(env["MUSICGEN_HEARTMULA_DIR"], {})


@pytest.mark.parametrize("content", ["{", '{"backbone_flavor": "llama-9B"}', "[]"])
def test_a_config_that_cannot_be_read_is_taken_for_the_release(tmp_path, content):
    folder = Path(tree(tmp_path / "broken", SEVEN))
    (folder / heartmula_tree.MULA / "config.json").write_text(content)
    assert needs.of(str(folder), {}).gpu_gb == needs.of("heartmula", {}).gpu_gb


def test_weights_in_fp32_take_twice_the_memory():
    half, full = (needs.of("heartmula", {"MUSICGEN_DTYPE": dtype}) for dtype in ("bf16", "fp32"))
    assert full.gpu_gb - half.gpu_gb == pytest.approx(half.gpu_parts[0][0] + half.gpu_parts[2][0])


@pytest.mark.parametrize("model", ["rehearsal", "heartmula-rehearsal"])
def test_rehearsal_needs_next_to_nothing(model):
    assert (needs.of(model, {}).gpu_gb, needs.of(model, {}).files_gb) == (0.5, 0)


@pytest.mark.parametrize(
    ("model", "gpu_gb"),
    [
        ("facebook/musicgen-small", 2),
        ("musicgen-medium", 5),
        ("facebook/musicgen-stereo-large", 9),
        ("someone/tune", 5),
    ],
)
def test_musicgen_needs_what_its_size_does(model, gpu_gb):
    assert needs.of(model, {}).gpu_gb == gpu_gb


def test_files_are_those_of_the_set_and_musicgen_is_loaded_through_ram():
    for name, each in sets.NAMED.items():
        assert needs.of(name, {}).files_gb == pytest.approx(each.about_bytes / 1e9, abs=0.05)
    large = needs.of("facebook/musicgen-large", {})
    assert large.ram_gb == large.files_gb
    assert needs.of("heartmula", {}).ram_gb < 8  # its weights are mapped


def test_needs_are_known_on_the_oldest_python_of_a_box():
    """remote/check.py asks for them before there is an environment."""
    seen, todo = set(), ["worker.models.needs"]
    while todo:
        name = todo.pop()
        path = Path(needs.__file__).parents[2] / Path(*name.split("."))
        path = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        if name in seen or not path.exists():
            continue
        seen.add(name)
        source = path.read_text("utf-8")
        parsed = ast.parse(source, feature_version=(3, 10))
        assert "from datetime import UTC" not in source, name
        for node in parsed.body:
            if isinstance(node, ast.ImportFrom) and node.module:
                assert node.module.partition(".")[0] not in ("numpy", "safetensors", "torch"), name
                todo += [node.module, *(f"{node.module}.{each.name}" for each in node.names)]
    assert "worker.models.heartmula_shapes" in seen


def test_documented_needs_are_these(tmp_path):
    page = (Path(__file__).parents[3] / "docs" / "box.md").read_text("utf-8")
    folder = tree(tmp_path / "seven", SEVEN)
    models = [f"facebook/musicgen-{size}" for size in ("small", "medium", "large")]
    for shown, model in [
        *((f"`{m}`", m) for m in [*models, "heartmula-3b"]),
        ("a HeartMuLa of 7B in a folder", folder),
    ]:
        need = needs.of(model, {})
        assert f"| {shown} | {need.gpu_gb:.1f} GB | {need.ram_gb:.1f} GB | {need.files_gb:.1f} GB |\n" in page
