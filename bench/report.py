"""Write docs/benchmarks.md from every file in bench/results/."""

import json
from pathlib import Path
from typing import Any

from ops.repository import ROOT

HEAD = """# Benchmarks

Made by `uv run inv bench`; do not edit. The model has MusicGen's real size and random weights. Every
comparison is interleaved in one process, and a ratio is taken within each repetition. The figures
are medians with the least and greatest value. [engine.md](engine.md) explains how the engine works.
"""


def write_report() -> None:
    """Write the page."""
    results = sorted((ROOT / "bench" / "results").glob("*.json"))
    parts = [HEAD, *(section(path) for path in results)]
    (ROOT / "docs" / "benchmarks.md").write_text("\n".join(parts), "utf-8", newline="\n")


def section(path: Path) -> str:
    """One model on one kind of device: a table for each case, with the machine it was measured on."""
    content = json.loads(path.read_text("utf-8"))
    parts = [f"## musicgen-{path.stem.partition('-')[0]}", ""]
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
    spread = f"{v['least']:.3g} to {v['greatest']:.3g}, n = {v['n']}" if v["n"] > 1 else ""
    reached = "" if goal is None else "yes" if v["median"] >= goal else "no"
    what = f"{r['what']} ({r['note']})" if r["note"] else r["what"]
    wanted = "" if goal is None else f"{goal:g} {r['unit']}"
    return f"| {what} | {v['median']:.3g} {r['unit']} | {spread} | {wanted} | {reached} |"
