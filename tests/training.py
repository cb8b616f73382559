"""The example's training in a folder of a test, and what its checkpoints say."""

import json
import runpy
import subprocess
import sys
from pathlib import Path
from unittest.mock import patch

import yaml

from tests.fakes.trainings import EXAMPLE

SCRIPT = EXAMPLE / "train.py"


def prepare(folder: Path, **training: object) -> Path:
    """Fill a folder with audio and a configuration, with these keys replaced; -> the configuration."""
    config = yaml.safe_load((EXAMPLE / "config.yaml").read_text("utf-8"))
    config["training"] |= training
    file = folder / "config.yaml"
    file.write_text(yaml.safe_dump(config), "utf-8")
    with patch.object(
        sys, "argv", ["make_audio.py", *(str(folder / d) for d in config["data"]["audio_dirs"])]
    ):
        runpy.run_path(str(EXAMPLE / "make_audio.py"), run_name="__main__")
    return file


def train(python: Path, folder: Path, *arguments: str) -> "subprocess.CompletedProcess[str]":
    """The example itself, to its end."""
    command = [str(python), str(SCRIPT), "--config", "config.yaml", *arguments]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, timeout=300)


def losses(checkpoint: Path) -> dict[int, float]:
    """The loss of every step up to this checkpoint."""
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    return {entry["step"]: entry["loss"] for entry in history if "loss" in entry}
