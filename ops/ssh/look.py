"""Look at a box: its GPU, disk, memory, processes. One command each, parsed into plain rows.

Whatever the box lacks is left out. Changes nothing.
"""

import csv
import re
from dataclasses import dataclass

from ops.ssh.box import Box
from worker import amounts
from worker.errors import UserError

MARK = "=== "
_GPU_FIELDS = (
    "index",
    "name",
    "utilization.gpu",
    "memory.used",
    "memory.total",
    "temperature.gpu",
    "power.draw",
    "power.limit",
)
GPU_QUERY = f"nvidia-smi --query-gpu={','.join(_GPU_FIELDS)} --format=csv,noheader,nounits"


_SYSTEM = f"""
echo "{MARK}load"; cat /proc/loadavg; nproc
echo "{MARK}memory"; cat /proc/meminfo
echo "{MARK}disk"; df -Pk "$1" "$2" / 2> /dev/null
echo "{MARK}network"; cat /proc/net/dev; sleep 1; echo; cat /proc/net/dev
echo "{MARK}top"; ps -eo pid,pcpu,pmem,etimes,comm --sort=-pcpu 2> /dev/null | head -n 9
echo "{MARK}oom"; dmesg -T 2> /dev/null | grep -iE 'out of memory|oom-kill|NVRM: Xid' | tail -n 5
exit 0
"""

# $1 home, $2 and $3 how many lines of the watchdog's log and of the kernel's were printed before.
_SYSTEM_LOG = rf"""
echo "{MARK}watchdog"; tail -n +"$(($2 + 1))" "$1/watchdog.log" 2> /dev/null
echo "{MARK}kernel"
dmesg -T 2> /dev/null | grep -iE 'memory|oom|NVRM|nvme|I/O error|killed' | tail -n +"$(($3 + 1))"
exit 0
"""


@dataclass(frozen=True)
class Gpu:
    """One GPU as nvidia-smi reports it. None: not reported."""

    gpu: int
    name: str
    use_percent: float | None
    memory_used_mb: float | None
    memory_total_mb: float | None
    temperature_c: float | None
    power_w: float | None
    power_limit_w: float | None


@dataclass(frozen=True)
class Disk:
    """One file system of the box."""

    at: str
    free_gb: float
    size_gb: float


def gpus(box: Box) -> list[Gpu]:
    """Every GPU. Raises UserError if there is none."""
    ran = box.run(GPU_QUERY)
    if ran.code or not (found := parse_gpus(ran.out)):
        raise UserError(f"no GPU found on {box.label} ({ran.reason()}); see what is missing: fab validate")
    return found


def system(box: Box) -> tuple[list[dict[str, str]], list[dict[str, str]]]:
    """Rows of CPU, memory, disk, network and kernel errors; and rows of the busiest processes."""
    found = sections(box.shell(_SYSTEM, box.info.root, box.info.home).out)
    rows: dict[str, str] = {}
    load = found.get("load", "").split()
    if len(load) >= 6:
        rows["CPU"] = f"load {load[0]} (1 min), {load[1]} (5 min), {load[-1]} cores"
    memory = {name: int(kb) / 1e6 for name, kb in re.findall(r"(\w+):\s+(\d+) kB", found.get("memory", ""))}
    if "MemTotal" in memory:
        rows["memory"] = f"{memory.get('MemAvailable', 0):.1f} GB free of {memory['MemTotal']:.1f}"
    for disk in parse_disks(found.get("disk", "")):
        rows[f"disk {disk.at}"] = f"{disk.free_gb:.1f} GB free of {disk.size_gb:.1f}"
    for name, (received, sent) in network_rates(found.get("network", "")).items():
        rows[f"network {name}"] = f"{received / 1e6:.2f} MB/s in, {sent / 1e6:.2f} MB/s out"
    for n, line in enumerate(found.get("oom", "").splitlines(), start=1):
        rows[f"kernel {n}"] = line
    names = ("pid", "cpu", "memory", "runs_s", "command")
    top = [
        dict(zip(names, (pid, f"{cpu} %", f"{share} %", amounts.duration(float(age)), command), strict=True))
        for pid, cpu, share, age, command in (
            line.split(maxsplit=4) for line in found.get("top", "").splitlines()[1:]
        )
    ]
    return [{"what": name, "now": value} for name, value in rows.items()], top


class SystemLog:
    """The logs of the watchdog and the kernel on a box, each line once."""

    def __init__(self, box: Box) -> None:
        self._box = box
        self._n_seen = {"watchdog": 0, "kernel": 0}

    def new(self) -> list[str]:
        """The lines since the last call."""
        n_seen = [str(n) for n in self._n_seen.values()]
        found = sections(self._box.shell(_SYSTEM_LOG, self._box.info.home, *n_seen).out)
        lines = {name: found.get(name, "").splitlines() for name in self._n_seen}
        for name, part in lines.items():
            self._n_seen[name] += len(part)
        return [line for part in lines.values() for line in part]


# --- parsers


def sections(text: str) -> dict[str, str]:
    """The parts of an output that begin with a line `=== NAME`."""
    parts = re.split(rf"^{MARK}(\w+)\n", text, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def parse_gpus(text: str) -> list[Gpu]:
    """Rows of nvidia-smi's CSV; other lines are skipped."""
    found = []
    for row in csv.reader(text.splitlines(), skipinitialspace=True):
        if len(row) == len(_GPU_FIELDS) and row[0].isdigit():
            found.append(Gpu(int(row[0]), row[1], *map(_number, row[2:])))
    return found


def parse_disks(text: str) -> list[Disk]:
    """File systems of `df -Pk`, each once."""
    found: dict[str, Disk] = {}
    for line in text.splitlines()[1:]:
        words = line.split(maxsplit=5)
        if len(words) == 6 and words[1].isdigit():
            found.setdefault(words[0], Disk(words[5], int(words[3]) / 1e6, int(words[1]) / 1e6))
    return list(found.values())


def network_rates(text: str) -> dict[str, tuple[float, float]]:
    """Bytes per second, received and sent, from two readings of /proc/net/dev one second apart."""
    first, _, second = text.partition("\n\n")

    def counters(part: str) -> dict[str, tuple[int, int]]:
        lines = [line.partition(":") for line in part.splitlines() if ":" in line]
        return {name.strip(): (int(v.split()[0]), int(v.split()[8])) for name, _, v in lines}

    before, after = counters(first), counters(second)
    return {
        name: (after[name][0] - before[name][0], after[name][1] - before[name][1])
        for name in before
        if name in after and name != "lo"
    }


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None  # [N/A], [Not Supported]
