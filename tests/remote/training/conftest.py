"""A box on which train.py starts the stand-in for a training, from a shipped tree."""

import json
import os
import signal
import subprocess
import sys
import tarfile
from pathlib import Path

import pytest
import yaml

from tests.remote.boxes import REPOSITORY, until

TRAINER = REPOSITORY / "tests" / "fakes" / "trainer.py"


class Box:
    """Folders of a box. The training's repository has `scripts/train.py` and `a.yaml`."""

    def __init__(self, folder: Path):
        self.volume, self.home = folder / "workspace", folder / "home"
        self.state = self.volume / "musicgen" / "state" / "RUN"
        self.repository = self.volume / "training"
        self.state.mkdir(parents=True)
        self.home.mkdir()
        self.files: dict[str, bytes] = {"scripts/train.py": TRAINER.read_bytes()}
        self.env = {
            "PATH": os.environ["PATH"],
            "LANG": "C.UTF-8",
            "HOME": str(self.home),
            "MUSICGEN_WORKSPACE": str(self.volume),
            "MUSICGEN_BOX_ROOT": str(self.volume / "musicgen"),
            "MUSICGEN_BOX_HOME": str(self.home),
            "MUSICGEN_STATE_DIR": str(self.state),
            "RUN_ID": "20261122T195059Z-ab12",
            "PYTHONDONTWRITEBYTECODE": "1",
        }
        self.configure()

    def configure(self, **keys: object) -> None:
        config = {
            "output_dir": "out",
            "logging_dir": "logs",
            "max_steps": 8,
            "save_steps": 2,
            "save_total_limit": 2,
        }
        self.files["a.yaml"] = yaml.safe_dump(config | keys).encode()

    def command(self, *arguments: str) -> list[str]:
        archive = self.volume / "tree.tar.gz"
        with tarfile.open(archive, "w:gz") as tar:
            for name, content in self.files.items():
                path = self.volume / ".content"
                path.write_bytes(content)
                tar.add(path, name)
        given = ["--config", "a.yaml", "--tree", str(archive), "--python", sys.executable, *arguments]
        return [sys.executable, str(REPOSITORY / "remote" / "train.py"), *given]

    def train(self, *arguments: str, **env: str) -> "subprocess.CompletedProcess[str]":
        """To its end, in a session of its own."""
        with self.start(*arguments, **env) as process:
            out, err = process.communicate(timeout=60)
        return subprocess.CompletedProcess(process.args, process.returncode, out, err)

    def start(self, *arguments: str, **env: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            self.command(*arguments),
            env=self.env | env,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            start_new_session=True,
        )

    def stopped(self, process: "subprocess.Popen[str]", number: int = signal.SIGTERM) -> tuple[int, str, str]:
        """Exit code and output after this signal."""
        os.kill(process.pid, number)
        out, err = process.communicate(timeout=60)
        return process.returncode, out, err

    def starts(self) -> list[dict]:
        """How the training was started, each time."""
        file = self.repository / "logs" / "starts.jsonl"
        return [json.loads(line) for line in file.read_text().splitlines()] if file.exists() else []

    def resumed(self) -> list[str]:
        """From which checkpoint, each time; `-` for none."""
        lines = [start["argv"] for start in self.starts()]
        return [
            argv[argv.index("--resume") + 1].rpartition("/")[2] if "--resume" in argv else "-"
            for argv in lines
        ]

    def status(self) -> dict:
        return json.loads((self.state / "status.json").read_text())

    def lines(self, event: str) -> list[dict]:
        found = [json.loads(line) for line in (self.state / "train.jsonl").read_text().splitlines()]
        return [line for line in found if line["event"] == event]

    def until_step(self, step: int) -> None:
        until(lambda: (self.repository / "out" / f"checkpoint-{step}" / "trainer_state.json").exists())


@pytest.fixture
def box(tmp_path):
    return Box(tmp_path)
