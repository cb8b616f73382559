"""Write docs/benchmarks.md from bench/results/ and the arithmetic: python -m bench.report."""

import json
from pathlib import Path
from typing import Any

from bench import cards, figures
from ops.repository import ROOT

PAGE = ROOT / "docs" / "benchmarks.md"

HEAD = """# Benchmarks

Made by `uv run inv bench`; do not edit. Weights are random. A MusicGen has its real size. A HeartMuLa has it
on a GPU, and on a CPU a tenth of it: 20 layers of width 1,152 and a depth decoder of two (the real ones: 28
of 3,072, and three), and a codec of a third of the real widths. Every comparison is interleaved in one
process, and a ratio is taken within each repetition. The figures are medians with the least and greatest
value. [engine.md](engine.md) explains how the engine works.

MusicGen is compared with transformers. HeartMuLa is compared with a plain loop over the same weights that
does what heartlib does: one song, two rows, a cache of its own (`bench/plain_heartmula.py`).
"""


def write_report() -> None:
    """Write the page."""
    PAGE.write_text(page(), "utf-8", newline="\n")


def page() -> str:
    """What docs/benchmarks.md has to say today."""
    kept = sorted(figures.FOLDER.glob("*.json"))
    return "\n".join([HEAD, *(section(path) for path in kept), cards.section()])


def section(path: Path) -> str:
    """One model on one kind of device: a table for each case, with the machine it was measured on."""
    content = json.loads(path.read_text("utf-8"))
    parts = [f"## {content['title']}", ""]
    for case, m in content["measured"].items():
        rows = [r for r in content["rows"] if r["case"] == case]
        if rows:
            parts += [
                f"**{case}**: {m['device']}, {m['threads']} threads, {m['vector']}, torch {m['torch']}, "
                f"transformers {m['transformers']}, {m['date']}, commit {m['commit']}, `{m['command']}`",
                "",
                "| what | median | spread | at least | reached |",
                "|---|---|---|---|---|",
                *(row(r) for r in rows),
                "",
            ]
    return "\n".join(parts)


def row(r: dict[str, Any]) -> str:
    """One figure as a line of the table."""
    v, goal = r["value"], r["at_least"]
    if v is None:
        return f"| {r['what']} | {r['note']} | | | |"
    spread = f"{v['least']:.3g} to {v['greatest']:.3g}, n = {v['n']}" if v["n"] > 1 else ""
    reached = "" if goal is None else "yes" if v["median"] >= goal else "no"
    what = f"{r['what']} ({r['note']})" if r["note"] else r["what"]
    wanted = "" if goal is None else f"{goal:g} {r['unit']}"
    return f"| {what} | {v['median']:.3g} {r['unit']} | {spread} | {wanted} | {reached} |"


if __name__ == "__main__":
    write_report()
