"""Figures, and the files in bench/results/ that keep them: one for each model and kind of device
(a CPU's kind is its vector instructions)."""

import json
import platform
import sys
from collections.abc import Collection, Sequence
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch
import transformers

from bench.timing import Spread
from ops import repository

FOLDER = repository.ROOT / "bench" / "results"


@dataclass(frozen=True)
class Figure:
    """One measured figure. `at_least` is its goal; `note` is needed to read it.

    `value` is None where there is nothing to measure; `note` then says why.
    """

    case: str
    what: str
    unit: str
    value: Spread | None
    at_least: float | None = None
    note: str = ""

    def line(self) -> str:
        """The figure as text."""
        if self.value is None:
            return f"{self.case:6} {self.what}: {self.note}"
        v = self.value
        spread = f" ({v.least:.3g} to {v.greatest:.3g}, n={v.n})" if v.n > 1 else ""
        goal = f", at least {self.at_least:g}" if self.at_least is not None else ""
        note = f"; {self.note}" if self.note else ""
        return f"{self.case:6} {self.what}: {v.median:.3g} {self.unit}{spread}{goal}{note}"


@dataclass(frozen=True)
class Fault(Figure):
    """What could not be measured, because it failed."""


@dataclass(frozen=True)
class Kept:
    """A file of figures; `title` heads its section of docs/benchmarks.md, `cases` is their order there."""

    path: Path
    title: str
    cases: Sequence[str]

    def replace(self, measured: Collection[str], figures: Sequence[Figure], machine: dict[str, str]) -> None:
        """Write the figures of the measured cases, and keep those of all others."""
        before: dict[str, Any] = {"rows": [], "measured": {}}
        if self.path.exists():
            before = json.loads(self.path.read_text("utf-8"))
        others = [row for row in before["rows"] if row["case"] not in measured]
        rows = [asdict(figure) for figure in figures] + others
        content = {
            "title": self.title,
            "measured": before["measured"] | dict.fromkeys(measured, machine),
            "rows": sorted(rows, key=lambda row: self.cases.index(row["case"])),
        }
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self.path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", "utf-8")


def machine(device: torch.device, command: str) -> dict[str, str]:
    """The machine, versions and command that figures come from."""
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
        "command": " ".join([command, *sys.argv[1:]]),
    }
