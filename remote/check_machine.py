"""Checks of the machine itself: programs, GPU, memory, disks, and what switches it off."""

import json
import math
import os
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from check_result import GB, Check, existing, line, model_name, needed, not_writable

TORCH = ["gpu_torch", "matrix_product", "precision", "gpu_memory"]


def check_tools() -> Iterator[Check]:
    """The programs that the session needs."""
    missing = [tool for tool in ("tmux", "flock") if not shutil.which(tool)]
    detail = f"missing: {', '.join(missing)}" if missing else "tmux and flock are there"
    remedy = "install util-linux" if "flock" in missing else "run the install phase" if missing else ""
    yield Check("tools", not missing, detail, remedy)


def check_gpu_driver() -> Iterator[Check]:
    """The GPU as the driver reports it."""
    remedy = "rent a machine with a GPU, or restart this one: a resumed pod may have lost its GPU"
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    try:
        ran = subprocess.run(query, capture_output=True, text=True)
    except FileNotFoundError:
        yield Check("gpu_driver", _without_gpu(), "there is no nvidia-smi", remedy)
        return
    lines = ran.stdout.strip().splitlines()
    if ran.returncode or not lines:
        detail = (ran.stderr or ran.stdout).strip().splitlines()
        yield Check("gpu_driver", _without_gpu(), detail[0] if detail else "nvidia-smi lists no GPU", remedy)
    else:
        yield Check("gpu_driver", True, "; ".join(lines))


def check_torch() -> Iterator[Check]:
    """The GPU as torch reports it: a real matrix product, the requested precision, memory."""
    names = TORCH
    try:
        import torch
    except Exception as error:  # a broken installation raises anything
        for name in names:
            yield Check(name, False, f"torch cannot be loaded: {line(error)}", "run the install phase")
        return
    wanted = os.environ.get("MUSICGEN_DTYPE") or "auto"
    if not torch.cuda.is_available():
        remedy = (
            f"this torch needs CUDA {torch.version.cuda}: rent a machine with a newer driver, "
            "or set MUSICGEN_TORCH=image and install again"
            if torch.version.cuda
            else "install a torch that is built for CUDA"
        )
        yield Check("gpu_torch", _without_gpu(), f"torch {torch.__version__} finds no GPU", remedy)
        yield Check("matrix_product", *_product(torch, "cpu", torch.float32))
        half = wanted in ("fp16", "bf16")
        yield Check(
            "precision", "warn" if half else True, "fp32 on the CPU", "unset MUSICGEN_DTYPE" if half else ""
        )
        yield Check("gpu_memory", _without_gpu(), "no GPU", remedy)
        return

    capability = torch.cuda.get_device_capability()
    yield Check(
        "gpu_torch",
        True,
        f"torch {torch.__version__} (CUDA {torch.version.cuda}) on {torch.cuda.get_device_name()}",
    )
    yield Check("matrix_product", *_product(torch, "cuda", torch.float16))
    has_bf16 = capability >= (8, 0)
    if wanted == "bf16" and not has_bf16:
        yield Check("precision", False, "this GPU has no bf16", "set MUSICGEN_DTYPE=fp16, or leave it empty")
    else:
        yield Check("precision", True, "fp16 and bf16" if has_bf16 else "fp16, no bf16")
    free, total = torch.cuda.mem_get_info()
    yield _gpu_memory(free, total)


def _gpu_memory(free: float, total: float) -> Check:
    """Whether the model fits beside what else is on the GPU."""
    need = needed()
    enough = free >= need.gpu_gb * GB
    detail = f"{free / GB:.1f} of {total / GB:.1f} GB free; {model_name()} needs {need.gpu()}"
    return Check(
        "gpu_memory", enough, detail, "" if enough else "stop what uses the GPU, or rent a larger one"
    )


def check_memory() -> Iterator[Check]:
    """RAM, through which the weights are loaded. In a container, its limit counts."""
    fields = dict(re.findall(r"(\w+):\s+(\d+) kB", Path("/proc/meminfo").read_text()))
    free = float(fields["MemAvailable"]) * 1024
    free = min(free, free_in_cgroup(Path("/sys/fs/cgroup")))
    need = needed().ram_gb
    ok = True if free >= need * GB else "warn"
    yield Check(
        "memory",
        ok,
        f"{free / GB:.1f} GB free, {need:.1f} GB needed",
        "" if ok is True else "rent a machine with more RAM",
    )


def free_in_cgroup(folder: Path) -> float:
    """Bytes below the memory limit of cgroup v2 or v1; infinite without one. The kernel's cache is free."""
    for limit, used, stat, cached in (
        ("memory.max", "memory.current", "memory.stat", "inactive_file"),
        (
            "memory/memory.limit_in_bytes",
            "memory/memory.usage_in_bytes",
            "memory/memory.stat",
            "total_inactive_file",
        ),
    ):
        if (folder / limit).exists() and (text := (folder / limit).read_text().strip()).isdigit():
            found = re.search(rf"^{cached} (\d+)", (folder / stat).read_text(), re.M)
            return int(text) - int((folder / used).read_text()) + (int(found[1]) if found else 0)
    return math.inf


def check_disk_system() -> Iterator[Check]:
    """This box's own disk: the environment and temporary files."""
    yield _disk("disk_system", Path(os.environ["MUSICGEN_BOX_HOME"]), fail_gb=1, warn_gb=4)


def check_disk_root() -> Iterator[Check]:
    """The box's root, which may be a network volume."""
    yield _disk("disk_root", Path(os.environ["MUSICGEN_BOX_ROOT"]), fail_gb=1, warn_gb=4)


def check_watchdog() -> Iterator[Check]:
    """Whether something switches this box off."""
    ran = subprocess.run(
        ["bash", str(Path(__file__).with_name("watchdog.sh")), "status"], capture_output=True, text=True
    )
    status = json.loads(ran.stdout)
    if not status["turns_off"]:
        at = f" (at {status['action']} is no executable)" if status["action"] else ""
        yield Check(
            "watchdog",
            "warn",
            f"nothing turns this box off; it bills until you stop it{at}",
            "stop it when the run has ended, or set MUSICGEN_STOP_HOOK",
        )
    elif not status["running"]:
        yield Check(
            "watchdog",
            "warn",
            "no watchdog is running: no deadline and no limit switches this box off",
            "start it: fab install, or fab run",
        )
    elif status["left_s"] is None:
        yield Check("watchdog", "warn", "there is no deadline; only the idle and progress limits hold")
    else:
        yield Check(
            "watchdog", True, f"this box switches off in {status['left_s'] / 3600:.1f} h at the latest"
        )


def _without_gpu() -> bool | str:
    """A rehearsal needs no GPU; any other model would take days without one."""
    return "warn" if model_name() in ("rehearsal", "heartmula-rehearsal") else False


def _product(torch: Any, device: str, dtype: Any) -> tuple[bool | str, str, str]:
    """A matrix product whose every element is known, which finds a device that computes wrongly."""
    n = 1024 if device == "cuda" else 256
    row = torch.arange(n, device=device, dtype=torch.float32).remainder(7)
    try:
        began_s = time.monotonic()
        found = (row.to(dtype).repeat(n, 1) @ torch.eye(n, device=device, dtype=dtype)).float().sum(1)
        right = bool(torch.all(found == row.sum()).item())
    except RuntimeError as error:
        return False, line(error), "restart this machine, or rent another"
    took = f"{n} x {n} in {str(dtype).rpartition('.')[2]}, {time.monotonic() - began_s:.2f} s"
    return (
        right,
        took if right else f"{took}: wrong result",
        "" if right else "rent another machine: this GPU is faulty",
    )


def _disk(name: str, folder: Path, fail_gb: float, warn_gb: float) -> Check:
    """Free space, and a real write."""
    folder = existing(folder)
    free = shutil.disk_usage(folder).free / GB
    if why := not_writable(folder):
        return Check(name, False, f"{folder}: {why}", "free space or take a larger disk")
    ok: bool | str = False if free < fail_gb else "warn" if free < warn_gb else True
    return Check(
        name,
        ok,
        f"{free:.1f} GB free in {folder}",
        "" if ok is True else "free space or take a larger disk",
    )
