"""Stands for a training of Trainer, in milliseconds: what it does at which step its configuration says.

Its checkpoints have every file that Trainer's have, and no content; its curves are TensorBoard's event files.
"""

import argparse
import json
import os
import signal
import struct
import subprocess
import sys
import time
import zipfile
from pathlib import Path

import yaml


def archive(path: Path) -> None:
    """An empty torch archive."""
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("archive/data.pkl", b"")


def save(output: Path, step: int, goal: int) -> None:
    """A checkpoint, in Trainer's order."""
    folder = output / f"checkpoint-{step}"
    folder.mkdir(parents=True, exist_ok=True)
    layout = json.dumps({"a": {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}}).encode()
    (folder / "model.safetensors").write_bytes(struct.pack("<Q", len(layout)) + layout + bytes(4))
    for name in ("optimizer.pt", "scheduler.pt", "rng_state.pth"):
        archive(folder / name)
    state = {"global_step": step, "max_steps": goal, "num_train_epochs": 1}
    (folder / "trainer_state.json").write_text(json.dumps(state))


def varint(value: int) -> bytes:
    """A protobuf's number, below 2 ** 14."""
    return bytes([value & 0x7F | 0x80, value >> 7]) if value > 0x7F else bytes([value])


def block(number: int, content: bytes) -> bytes:
    """A protobuf's field with content."""
    return varint(number << 3 | 2) + varint(len(content)) + content


def log(file: Path, step: int, loss: float) -> None:
    """One scalar, as an event."""
    value = block(1, b"train/loss") + varint(2 << 3 | 5) + struct.pack("<f", loss)
    event = varint(2 << 3) + varint(step) + block(5, block(1, value))
    with file.open("ab") as opened:
        opened.write(struct.pack("<QI", len(event), 0) + event + bytes(4))


def main() -> None:
    """Train."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--config")
    parser.add_argument("--resume")
    given = parser.parse_args()
    config = yaml.safe_load(Path(given.config).read_text())
    output, logs = Path(config["output_dir"]), Path(config["logging_dir"])
    goal, every = config.get("max_steps") or config["steps"], config["save_steps"]
    logs.mkdir(parents=True, exist_ok=True)
    runs = logs / "starts.jsonl"
    with runs.open("a") as file:
        seen = {"argv": sys.argv, "env": dict(os.environ), "cwd": str(Path.cwd()), "pid": os.getpid()}
        file.write(json.dumps(seen) + "\n")
    attempt = len(runs.read_text().splitlines())
    asked = []
    if config.get("jit"):
        signal.signal(signal.SIGTERM, lambda *_: asked.append(1))
    if config.get("deaf"):
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if config.get("child"):
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        (logs / "child").write_text(str(child.pid))
    step = int(given.resume.rpartition("-")[2]) if given.resume else 0
    events = logs / f"events.out.tfevents.{attempt}"
    print("training", flush=True)
    while step < goal:
        time.sleep(config.get("step_s", 0))
        if [attempt, step] in config.get("fail", []):
            print(config.get("text", "it failed"), flush=True)
            sys.exit(3)
        if [attempt, step] in config.get("half", []):
            save(output, step + 1, goal)
            (output / f"checkpoint-{step + 1}" / "optimizer.pt").write_bytes(b"PK half")
            os.kill(os.getpid(), signal.SIGKILL)
        if step == config.get("hang_at"):
            (logs / "hanging").touch()
            time.sleep(60)
        step += 1
        log(events, step, config.get("loss", 1 / step))
        if asked or step % every == 0 or step == goal:
            save(output, step, goal)
        if asked:
            return
        if step == config.get("leave_at"):
            return


if __name__ == "__main__":
    main()
