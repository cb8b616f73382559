"""What nvidia-smi says of this machine's GPUs."""

from __future__ import annotations

import shutil
import subprocess

_ANSWER_S = 20


def utilization() -> float | None:
    """Per cent of the busiest GPU; None where nothing tells."""
    values = [float(word) for word in _ask("utilization.gpu") if word.replace(".", "", 1).isdigit()]
    return max(values, default=None)


def is_lost() -> bool:
    """True if this machine had a GPU, as it has NVIDIA's tools, and now has none: a pod that was resumed."""
    return shutil.which("nvidia-smi") is not None and not _ask("name")


def _ask(field: str) -> list[str]:
    command = ["nvidia-smi", f"--query-gpu={field}", "--format=csv,noheader,nounits"]
    try:
        ran = subprocess.run(command, capture_output=True, text=True, timeout=_ANSWER_S)
    except (OSError, subprocess.TimeoutExpired):
        return []
    return [line.strip() for line in ran.stdout.splitlines()] if ran.returncode == 0 else []
