"""A model that is not there yet comes under the eyes of whoever follows the log, and only once."""

import re
import sys

import pytest

from tests.fakes import hub as hubs
from tests.remote.boxes import until

MODEL = "demo/model"
# What worker/musicgen/pretrained.py asks of the hub, without the seconds that torch takes.
FETCH = f"""
from huggingface_hub import snapshot_download
print(snapshot_download({MODEL!r}, allow_patterns=["*.json", "*.safetensors"]))
"""
WEIGHTS = bytes(45_000_000)


@pytest.fixture
def hub():
    """45 MB of weights that take two seconds and more."""
    files = {"config.json": b"{}", "model.safetensors": WEIGHTS, "pytorch_model.bin": b"old"}
    with hubs.serving(MODEL, files, pause_s=0.06) as hub:
        yield hub


def test_weights_come_with_progress_in_the_log_and_never_again(box, hub):
    (box.release / "worker" / "__main__.py").write_text(FETCH)
    python = box.home / "venv" / "bin" / "python"
    python.unlink()
    python.write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    box.settings(MUSICGEN_MODEL=MODEL, HF_ENDPOINT=hub.url, MUSICGEN_TELL_S="1")

    box.json("session.sh", "start")
    until((box.state / "exit_code").exists)
    assert box.ended() == "0\n"
    log = (box.state / "log").read_text()
    come = [
        int(mb) for mb in re.findall(r"^--- \S+Z fetching the model: (\d+) MB are here, \d+ MB/s$", log, re.M)
    ]
    assert come and come == sorted(come) and 0 < come[0] <= 46
    assert ("GET", f"/{MODEL}/resolve/{hubs.COMMIT}/model.safetensors") in hub.asked
    assert not [path for _, path in hub.asked if path.endswith(".bin")]

    hub.asked.clear()
    box.json("session.sh", "start")
    until((box.state / "exit_code").exists)
    assert box.ended() == "0\n"
    assert not [path for method, path in hub.asked if method == "GET" and "/resolve/" in path]
    assert "fetching" not in (box.state / "log").read_text()
