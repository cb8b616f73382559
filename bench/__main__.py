"""python -m bench: measure the engine against transformers and against this machine's limits.

Every comparison is interleaved in one process. Results go to bench/results/*.json;
docs/benchmarks.md is written from all of them.
"""

import argparse
import json
import platform
import sys
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path

import torch
import transformers

from bench.cases import CASES, Bench, Figure
from bench.report import write_report
from ops import repository


def main() -> None:
    """Run the cases, print each figure, and write all of them to a file."""
    parser = argparse.ArgumentParser("python -m bench", description=__doc__)
    parser.add_argument("--size", default="small", choices=("small", "medium", "large"))
    # The memory of decoding an hour of audio takes as long as all others together.
    usual = [case for case in CASES if case != "memory"]
    parser.add_argument("--only", nargs="+", default=usual, choices=CASES)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--frames", type=int, default=50)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--device")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    bench = Bench(arguments.size, arguments.device, arguments.repetitions, arguments.frames, arguments.slots)
    rows: list[Figure] = []
    for name in arguments.only:
        for row in getattr(bench, name)():
            rows.append(row)
            print(line(row), flush=True)
    kept = repository.ROOT / "bench" / "results" / f"{arguments.size}-{bench.device.type}.json"
    kept.parent.mkdir(exist_ok=True)
    before = json.loads(kept.read_text("utf-8")) if kept.exists() else {"rows": [], "measured": {}}
    others = [row for row in before["rows"] if row["case"] not in arguments.only]
    content = {
        "measured": before["measured"] | dict.fromkeys(arguments.only, machine(bench.device)),
        "rows": sorted([asdict(row) for row in rows] + others, key=lambda row: CASES.index(row["case"])),
    }
    kept.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")
    write_report()


def line(row: Figure) -> str:
    """One figure as text."""
    goal = f", at least {row.at_least:g}" if row.at_least is not None else ""
    v = row.value
    spread = f" ({v.least:.3g} to {v.greatest:.3g}, n={v.n})" if v.n > 1 else ""
    return f"{row.case:6} {row.what}: {v.median:.3g} {row.unit}{spread}{goal}"


def machine(device: torch.device) -> dict[str, str]:
    """The machine, versions and command that the figures come from."""
    name = platform.processor() or platform.machine()
    if device.type == "cuda":
        name = torch.cuda.get_device_name(device)
    elif Path("/proc/cpuinfo").exists():
        lines = Path("/proc/cpuinfo").read_text("utf-8").splitlines()
        name = next((text.partition(":")[2].strip() for text in lines if "model name" in text), name)
    return {
        "device": name,
        "threads": str(torch.get_num_threads()),
        "vector": torch.backends.cpu.get_cpu_capability(),
        "torch": torch.__version__,
        "transformers": transformers.__version__,
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
        "commit": repository.head(),
        "command": " ".join(["python -m bench", *sys.argv[1:]]),
    }


if __name__ == "__main__":
    main()
