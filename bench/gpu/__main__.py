"""python -m bench.gpu: measure the engine on a GPU, in under ten minutes, without downloads.

The most important figures come first; each is printed as it comes and kept in bench/results/ at once,
and docs/benchmarks.md is written at the end. --pretend runs the same on a CPU with a tiny model.
Its figures say nothing about a GPU: they go to out/bench/, never into the docs.
Exit code 1 when something could not be measured, 2 without a GPU.
"""

import argparse
import re
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
import transformers

from bench import models
from bench.figures import FOLDER, Fault, Figure, Kept, machine
from bench.gpu import heartmula
from bench.gpu.cases import CASES, PRETENDED, Gpu, Scale
from bench.gpu.heartmula import HeartMula
from bench.gpu.limit import LeftOut, within
from bench.report import write_report
from ops.repository import ROOT
from worker.amounts import duration
from worker.errors import BadInput, UserError
from worker.musicgen import pretrained

LIMIT_S = 540.0
PRETENDED_FILE = ROOT / "out" / "bench" / "gpu-pretended.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure; -> the exit code."""
    parser = argparse.ArgumentParser("python -m bench.gpu", description=__doc__)
    parser.add_argument("--model", default="", help="checkpoint folder or hub id (default: random weights)")
    sizes = (*models.SIZES, heartmula.NAME)
    parser.add_argument("--size", default="small", choices=sizes, help="of the random weights")
    parser.add_argument("--limit-s", type=float, default=LIMIT_S, help="seconds (default: 540)")
    parser.add_argument("--pretend", action="store_true", help="on the CPU, with a tiny model")
    chosen = parser.parse_args(arguments)
    transformers.logging.set_verbosity_error()
    began = time.monotonic()
    try:
        where = torch.device("cpu") if chosen.pretend else gpu()
        if chosen.size == heartmula.NAME:
            return sing(where, chosen.limit_s, pretend=chosen.pretend)
        named = chosen.model or ("rehearsal" if chosen.pretend else "")
        loaded = pretrained.load(named) if named else models.build(chosen.size)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    left_s = chosen.limit_s - (time.monotonic() - began)
    if chosen.pretend:
        kept = Kept(PRETENDED_FILE, "pretended", CASES)
        return measure(Gpu(loaded, where, PRETENDED), where, kept, left_s)
    card, model = torch.cuda.get_device_name(where), chosen.model or f"musicgen-{chosen.size}"
    kept = Kept(
        FOLDER / f"gpu-{file_name(card)}-{file_name(Path(model).name)}.json", f"{model}, {card}", CASES
    )
    code = measure(Gpu(loaded, where, Scale()), where, kept, left_s)
    write_report()
    return code


def sing(where: torch.device, limit_s: float, *, pretend: bool) -> int:
    """Measure HeartMuLa; -> the exit code."""
    if pretend:
        kept = Kept(PRETENDED_FILE, "pretended", heartmula.CASES)
        return measure(HeartMula(where, heartmula.PRETENDED), where, kept, limit_s)
    card = torch.cuda.get_device_name(where)
    path = FOLDER / f"gpu-{file_name(card)}-{heartmula.NAME}.json"
    kept = Kept(path, f"{heartmula.NAME}, random weights, {card}", heartmula.CASES)
    code = measure(HeartMula(where, heartmula.FULL), where, kept, limit_s)
    write_report()
    return code


def gpu() -> torch.device:
    """The GPU. Raises BadInput without one."""
    if not torch.cuda.is_available():
        raise BadInput(
            "there is no GPU that torch can use; run this on a rented machine, or rehearse it with --pretend"
        )
    return torch.device("cuda", torch.cuda.current_device())


def measure(gpu: Gpu | HeartMula, where: torch.device, kept: Kept, limit_s: float) -> int:
    """Print each figure and keep it; -> 1 if something failed."""
    began = time.monotonic()
    made: list[Figure] = []
    left_out: list[LeftOut] = []
    for figure in within(limit_s, gpu.measurements(), gpu.recover):
        print(figure.line(), flush=True)
        if isinstance(figure, LeftOut):
            left_out.append(figure)
        else:
            made.append(figure)
            kept.replace({f.case for f in made}, made, machine(where, "python -m bench.gpu"))
    failed = [figure for figure in made if isinstance(figure, Fault)]
    print(
        f"{len(made) - len(failed)} figures in {duration(time.monotonic() - began)}, {len(failed)} failed, "
        f"{len(left_out)} left out; kept in {kept.path}"
    )
    return 1 if failed else 0


def file_name(text: str) -> str:
    """Of a card or model: `nvidia-l40s`."""
    return re.sub(r"[^a-z0-9.]+", "-", text.lower()).strip("-")


if __name__ == "__main__":
    sys.exit(main())
