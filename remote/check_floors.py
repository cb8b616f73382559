"""Whether this pod has what it was rented for: GPU memory, RAM and disk.

MUSICGEN_FLOORS_GB in the pod's environment has the three, like 48,32,100; a machine without it has no floors.
"""

import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

from check_result import GB, Check, existing, line

# What a machine reports is less than what it is called: an L40S of 48 GB has 44.99 GiB with error correction.
REPORTED = 0.92
GIB = 2**30
_LIMITS = ("memory.max", "memory/memory.limit_in_bytes")  # cgroup v2, v1


def check_floors() -> Iterator[Check]:
    """Each of the three against its floor."""
    text = os.environ.get("MUSICGEN_FLOORS_GB", "")
    if not text:
        yield Check("floors", True, "none are set for this machine")
        return
    try:
        gpu, ram, disk = (float(part) for part in text.split(","))
    except ValueError:
        yield Check(
            "floors", False, f"MUSICGEN_FLOORS_GB={text} is not three numbers", "write it like 48,32,100"
        )
        return
    try:
        found = (
            ("GPU memory", gpu_gib(), gpu),
            ("RAM", ram_gib(Path("/sys/fs/cgroup")), ram),
            ("disk", disk_gb(Path(os.environ["MUSICGEN_BOX_HOME"])), disk),
        )
    except (OSError, ValueError) as error:
        yield Check(
            "floors", False, f"cannot be measured: {line(error)}", "restart this pod, or rent another"
        )
        return
    low = [f"{has:.1f} GB of {what}, {need:g} needed" for what, has, need in found if has < need * REPORTED]
    detail = "; ".join(low) or ", ".join(f"{has:.1f} GB of {what}" for what, has, _ in found)
    yield Check(
        "floors", not low, detail, "rent another pod: inv pod.offers shows what will do" if low else ""
    )


def gpu_gib() -> float:
    """Memory of the smallest GPU in GiB; 0 without one. Raises ValueError for what is not a number."""
    query = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        ran = subprocess.run(query, capture_output=True, text=True)
    except FileNotFoundError:
        return 0.0
    mib = [float(each) for each in ran.stdout.split()] if ran.returncode == 0 else []
    return min(mib, default=0.0) / 1024


def ram_gib(cgroup: Path) -> float:
    """Memory of the container, which is what its host has unless it has a limit."""
    fields = dict(re.findall(r"(\w+):\s+(\d+) kB", Path("/proc/meminfo").read_text()))
    total = float(fields["MemTotal"]) * 1024
    for name in _LIMITS:
        if (cgroup / name).exists() and (text := (cgroup / name).read_text().strip()).isdigit():
            total = min(total, float(text))
    return total / GIB


def disk_gb(folder: Path) -> float:
    """Size of the disk that the folder is, or will be, on."""
    return shutil.disk_usage(existing(folder)).total / GB
