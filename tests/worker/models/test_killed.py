"""Killed at any moment, a `get` leaves no set that looks complete; the next one fetches what is missing."""

import os
import re
import shutil
import signal
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path

import pytest

from tests.fakes import hub as hubs
from tests.worker.models import trees
from worker.models import fetch, manifest, verify

pytestmark = pytest.mark.skipif(os.name == "nt", reason="forks")

# Imports once, then forks a process for each line that it is given: starting Python takes longer than a get.
FORKS = """
import os, sys
from worker.models import fetch
for name in sys.stdin:
    if (child := os.fork()) == 0:
        try:
            fetch.get(name.strip())
        finally:
            os._exit(0)
    print(child, flush=True)
    print(os.waitpid(child, 0)[1], flush=True)
"""
FILES = trees.FILES | {
    "model-1.safetensors": trees.weights(1_500_000, salt=1),
    "model-2.safetensors": trees.weights(900_000, salt=2),
}
NEEDED = {name: its for name, its in FILES.items() if name.endswith(("json", "safetensors"))}


@pytest.fixture
def slow_hub():
    """Some 0.3 s for all files."""
    with hubs.serving({trees.NAME: FILES}, pause_s=0.02) as hub:
        yield hub


@pytest.fixture
def killed(slow_hub, tmp_path):
    """Start a `get` of its own process and kill it after so many seconds; -> True if it was alive by then."""
    env = {"PATH": os.environ["PATH"]} | trees.env(slow_hub, tmp_path / "models")
    command = [sys.executable, "-c", FORKS]
    root = Path(__file__).parents[3]
    with subprocess.Popen(
        command, env=env, cwd=root, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as forks:

        def killed(after_s):
            forks.stdin.write(f"{trees.NAME}\n")
            forks.stdin.flush()
            child = int(forks.stdout.readline())
            time.sleep(after_s)
            with suppress(ProcessLookupError):  # it is done
                os.kill(child, signal.SIGKILL)
            return int(forks.stdout.readline()) == signal.SIGKILL

        yield killed
        forks.stdin.close()


def here(folder):
    """Bytes of each file that is there, whole or not."""
    found = {}
    for path in folder.rglob("*"):
        if part := re.fullmatch(r"\.(.+)\.[0-9a-f]{8}\.[0-9a-f]{8}\.part", path.name):
            found[part[1]] = max(found.get(part[1], 0), path.stat().st_size)
        elif path.name in NEEDED:
            found[path.name] = path.stat().st_size
    return found


def test_killed_at_twenty_moments_it_never_looks_complete_and_loses_nothing(killed, tmp_path, rng):
    folder = tmp_path / "models" / "demo--tiny"
    n_killed = 0
    for _ in range(20):
        n_killed += killed(rng.uniform(0, 0.35))
        if not verify.quick(folder):
            assert verify.full(folder) == []
            shutil.rmtree(folder)
    assert n_killed > 5
    killed(0.1)

    there = here(folder)
    # Another hub with the same: the first may still be sending to the killed.
    with hubs.serving({trees.NAME: FILES}) as hub:
        got = fetch.get(trees.NAME, trees.env(hub, tmp_path / "models"))
    assert verify.full(folder) == []
    assert hub.sent_bytes == got.came_bytes == got.n_bytes - sum(there.values())
    left = sorted(path.name for path in folder.iterdir() if path.suffix == manifest.UNFINISHED)
    assert left == []
