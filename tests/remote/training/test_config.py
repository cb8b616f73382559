"""remote/training/config.py: what a training's configuration says, and which are refused."""

import sys
from pathlib import Path

import pytest

from remote.training.config import Config, parse, read
from remote.training.refusal import Refusal

WHISPER = """
model: {name: whisper, pretrained: openai/whisper-small}
data:
  audio_dirs:
    - data/audio_0
    - "data/audio: 1"   # a colon, and a comment
training:
  output_dir: 'checkpoints/baseline'
  logging_dir: logs/baseline
  save_steps: 500
  save_total_limit: 5
  num_epochs: 20
"""


def config_of(tmp_path, text):
    file = tmp_path / "a.yaml"
    file.write_text(text, "utf-8")
    return read(file, Path(sys.executable))


def test_keys_of_any_section_are_found_by_a_parser(tmp_path):
    assert config_of(tmp_path, WHISPER) == Config(
        output_dir="checkpoints/baseline",
        logging_dir="logs/baseline",
        audio_dirs=("data/audio_0", "data/audio: 1"),
        save_steps=500,
        save_total_limit=5,
        epochs=20.0,
        model="openai/whisper-small",
    )


def test_one_audio_folder_may_be_a_plain_text():
    assert parse({"output_dir": "o", "audio_dirs": "data"}, "a.yaml").audio_dirs == ("data",)


def test_no_limit_of_steps_is_none():
    assert parse({"output_dir": "o", "max_steps": -1}, "a.yaml").max_steps is None


def test_save_steps_as_a_share_is_not_known_yet():
    assert parse({"output_dir": "o", "save_steps": 0.1}, "a.yaml").save_steps is None


@pytest.mark.parametrize(
    ("loaded", "reason"),
    [
        ({"training": {"save_steps": 5}}, "has no output_dir"),
        ({"output_dir": ""}, "has no output_dir"),
        ({"output_dir": None}, "has no output_dir"),
        (None, "has no keys"),
        (["output_dir"], "has no keys"),
        ({"output_dir": "a", "training": {"output_dir": "b"}}, "more than once"),
        ({"output_dir": 5}, "output_dir is 5, not a text"),
        ({"output_dir": "a", "save_total_limit": "five"}, 'save_total_limit is "five", not a whole number'),
        ({"output_dir": "a", "save_total_limit": True}, "not a whole number"),
        ({"output_dir": "a", "audio_dirs": [1]}, "not a list of folders"),
    ],
)
def test_wrong_configuration_is_refused_with_its_name(loaded, reason):
    with pytest.raises(Refusal, match=r"^a\.yaml.*; ") as refused:
        parse(loaded, "a.yaml")
    assert reason in str(refused.value)


def test_same_value_twice_is_no_contradiction():
    assert parse({"output_dir": "a", "training": {"output_dir": "a"}}, "a.yaml").output_dir == "a"


def test_missing_file_is_refused(tmp_path):
    with pytest.raises(Refusal, match="there is no configuration"):
        read(tmp_path / "none.yaml", Path(sys.executable))


@pytest.mark.parametrize("text", ["output_dir: [a", "a: b: c", "\tx: 1"])
def test_what_is_not_yaml_is_refused_with_its_place(tmp_path, text):
    with pytest.raises(Refusal, match=r"is not YAML \(.*line \d.*\); correct it") as refused:
        config_of(tmp_path, text)
    assert "\n" not in str(refused.value)


def test_environment_without_a_parser_is_refused(tmp_path):
    (tmp_path / "a.yaml").write_text("output_dir: a")
    python = tmp_path / "python"  # its own interpreter, without this environment's packages
    python.write_text(f'#!/bin/sh\nexec "{sys._base_executable}" -S "$@"\n')
    python.chmod(0o755)
    with pytest.raises(Refusal, match="has no PyYAML; add pyyaml"):
        read(tmp_path / "a.yaml", python)
