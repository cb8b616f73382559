"""Look at a box: its GPU, disk, memory, processes. One command each, parsed into plain rows.

Whatever the box lacks is left out. Changes nothing.
"""

import csv
import re
from dataclasses import dataclass

from ops.ssh.box import Box
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
echo "{MARK}cgroup"
for f in cpu.max memory.max memory.current memory.stat cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us \\
  memory/memory.limit_in_bytes memory/memory.usage_in_bytes memory/memory.stat; do
  sed "s|^|$f |" "/sys/fs/cgroup/$f" 2> /dev/null
done
echo "{MARK}disk"; df -Pk "$1" "$2" / 2> /dev/null
echo "{MARK}network"; cat /proc/net/dev; sleep 1; echo; cat /proc/net/dev
echo "{MARK}top"; ps -eo pid,pcpu,pmem,etimes,comm --sort=-pcpu 2> /dev/null | head -n 9
echo "{MARK}oom"; dmesg -T 2> /dev/null | grep -iE 'out of memory|oom-kill|NVRM: Xid' | tail -n 5
exit 0
"""

# $1 home, $2 root, $3 the time to begin at (empty: the start of the newest run), $4 and $5 how many lines of
# the watchdog's log and of the kernel's were printed before.
_SYSTEM_LOG = rf"""
since=$3
if [ -z "$since" ]; then
  run=$(readlink "$2/state/current" 2> /dev/null) # 20261122T195059Z-ab12
  since=$(sed -nE 's/^(....)(..)(..)T(..)(..)(..)Z.*/\1-\2-\3T\4:\5:\6/p' <<< "${{run##*/}}")
fi
from() {{
  awk -v since="$since" '
    !on && match($0, /[0-9][0-9][0-9][0-9]-[0-9][0-9]-[0-9][0-9]T[0-9:]*/) && RSTART < 6 {{
      on = substr($0, RSTART, 19) >= since
    }}
    on || since == "begin"' | tail -n +"$(($1 + 1))"
}}
echo "{MARK}since"; echo "${{since:=begin}}"
echo "{MARK}watchdog"; from "$4" 2> /dev/null < "$1/watchdog.log"
echo "{MARK}kernel"
TZ=UTC dmesg --time-format iso 2> /dev/null | grep -iE 'memory|oom|NVRM|nvme|I/O error|killed' | from "$5"
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


@dataclass(frozen=True)
class Process:
    """One process of the box. `runs_s`: seconds since it was started."""

    pid: int
    cpu_percent: float
    memory_percent: float
    runs_s: float
    command: str


@dataclass(frozen=True)
class System:
    """The box itself. None: not reported. In a container, the load is the host's, the rest its own.

    `network`: bytes per second received and sent, by interface. `processes`: the busiest.
    """

    load_1min: float | None
    load_5min: float | None
    cores: float | None
    memory_free_gb: float | None
    memory_gb: float | None
    disks: list[Disk]
    network: dict[str, tuple[float, float]]
    kernel_errors: list[str]
    processes: list[Process]


def gpus(box: Box) -> list[Gpu]:
    """Every GPU. Raises UserError if there is none."""
    ran = box.run(GPU_QUERY)
    if ran.code or not (found := parse_gpus(ran.out)):
        raise UserError(f"no GPU found on {box.label} ({ran.reason()}); see what is missing: fab validate")
    return found


def system(box: Box) -> System:
    """CPU, memory, disks, network, kernel errors and processes, as the box reports them now."""
    return parse_system(box.shell(_SYSTEM, box.info.root, box.info.home).out)


def system_rows(system: System) -> list[dict[str, str]]:
    """All but the processes, as `fab system` shows it."""
    rows: dict[str, str] = {}
    if system.cores is not None:
        rows["CPU"] = f"load {system.load_1min} (1 min), {system.load_5min} (5 min), {system.cores:g} cores"
    if system.memory_gb is not None:
        rows["memory"] = f"{system.memory_free_gb:.1f} GB free of {system.memory_gb:.1f}"
    for disk in system.disks:
        rows[f"disk {disk.at}"] = f"{disk.free_gb:.1f} GB free of {disk.size_gb:.1f}"
    for name, (received, sent) in system.network.items():
        rows[f"network {name}"] = f"{received / 1e6:.2f} MB/s in, {sent / 1e6:.2f} MB/s out"
    for n, line in enumerate(system.kernel_errors, start=1):
        rows[f"kernel {n}"] = line
    return [{"what": name, "now": value} for name, value in rows.items()]


class SystemLog:
    """The logs of the watchdog and the kernel on a box since the newest run's start, each line once."""

    def __init__(self, box: Box) -> None:
        self._box = box
        self._since = ""
        self._n_seen = {"watchdog": 0, "kernel": 0}

    def new(self) -> list[str]:
        """The lines since the last call."""
        info, n_seen = self._box.info, [str(n) for n in self._n_seen.values()]
        found = sections(self._box.shell(_SYSTEM_LOG, info.home, info.root, self._since, *n_seen).out)
        self._since = found.get("since", "").strip()
        lines = {name: found.get(name, "").splitlines() for name in self._n_seen}
        for name, part in lines.items():
            self._n_seen[name] += len(part)
        return [line for part in lines.values() for line in part]


# --- parsers


def sections(text: str) -> dict[str, str]:
    """The parts of an output that begin with a line `=== NAME`."""
    parts = re.split(rf"^{MARK}(\w+)\n", text, flags=re.M)
    return dict(zip(parts[1::2], parts[2::2], strict=True))


def parse_system(text: str) -> System:
    """The output of _SYSTEM."""
    found = sections(text)
    load = [_number(word) for word in found.get("load", "").split()]
    load_1min, load_5min, cores = (load[0], load[1], load[-1]) if len(load) >= 6 else (None, None, None)
    memory = {name: int(kb) / 1e6 for name, kb in re.findall(r"(\w+):\s+(\d+) kB", found.get("memory", ""))}
    total, free = memory.get("MemTotal"), memory.get("MemAvailable")
    most_cores, most_memory, used = parse_cgroup(found.get("cgroup", ""))
    if cores and most_cores:
        cores = min(cores, most_cores)
    if total and free and most_memory and most_memory < total:
        total, free = most_memory, max(0.0, min(free, most_memory - used))
    return System(
        load_1min,
        load_5min,
        cores,
        memory_free_gb=free,
        memory_gb=total,
        disks=parse_disks(found.get("disk", "")),
        network=network_rates(found.get("network", "")),
        kernel_errors=found.get("oom", "").splitlines(),
        processes=[
            Process(int(pid), float(cpu), float(share), float(age), command)
            for pid, cpu, share, age, command in (
                line.split(maxsplit=4) for line in found.get("top", "").splitlines()[1:]
            )
        ],
    )


def parse_cgroup(text: str) -> tuple[float | None, float | None, float]:
    """A container's limits, of cgroup v2 or v1: cores, memory in GB, and how much of that is used.

    None: no limit. Lines are `FILE VALUE...`. Files that the kernel can drop from its cache are not in use.
    """
    values: dict[str, list[str]] = {}
    for file, *words in filter(None, map(str.split, text.splitlines())):
        is_stat = file.endswith("memory.stat")
        values[f"{file} {words[0]}" if is_stat else file] = words[1:] if is_stat else words

    def number(*names: str) -> float | None:
        return next((float(values[name][0]) for name in names if values.get(name, ["max"])[0] != "max"), None)

    quota = number("cpu.max", "cpu/cpu.cfs_quota_us")
    period = float(values["cpu.max"][1]) if "cpu.max" in values else number("cpu/cpu.cfs_period_us")
    limit = number("memory.max", "memory/memory.limit_in_bytes")
    used = number("memory.current", "memory/memory.usage_in_bytes") or 0.0
    cached = number("memory.stat inactive_file", "memory/memory.stat total_inactive_file") or 0.0
    return (
        quota / period if quota and period and quota > 0 else None,
        limit / 1e9 if limit else None,
        (used - cached) / 1e9,
    )


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
