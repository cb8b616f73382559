"""python -m bench: measure an engine against what others use, and against this machine's limits.

Every comparison is interleaved in one process. Results go to bench/results/*.json;
docs/benchmarks.md is written from all of them.
"""

import argparse

import torch
import transformers

from bench import figures, heartmula_cases, musicgen_cases
from bench.report import write_report

FAMILIES: dict[str, type[musicgen_cases.Bench] | type[heartmula_cases.Bench]] = {
    "musicgen": musicgen_cases.Bench,
    "heartmula": heartmula_cases.Bench,
}


def main() -> None:
    """Run the cases, print each figure, and write all of them to a file."""
    before = argparse.ArgumentParser(add_help=False)
    before.add_argument("--family", default="musicgen", choices=FAMILIES)
    family = FAMILIES[before.parse_known_args()[0].family]
    parser = argparse.ArgumentParser("python -m bench", description=__doc__, parents=[before])
    parser.add_argument("--size", choices=family.SIZES)
    parser.add_argument("--only", nargs="+", default=family.USUAL, choices=family.CASES)
    parser.add_argument("--repetitions", type=int, default=5)
    parser.add_argument("--frames", type=int, default=50)
    parser.add_argument("--slots", type=int, default=16)
    parser.add_argument("--device")
    arguments = parser.parse_args()
    transformers.logging.set_verbosity_error()
    bench = family(arguments.size, arguments.device, arguments.repetitions, arguments.frames, arguments.slots)
    made: list[figures.Figure] = []
    for name in arguments.only:
        for figure in getattr(bench, name)():
            made.append(figure)
            print(figure.line(), flush=True)
    kind = bench.device.type if bench.device.type != "cpu" else torch.backends.cpu.get_cpu_capability()
    path = figures.FOLDER / f"{bench.kept_as}-{kind.lower()}.json"
    kept = figures.Kept(path, f"{bench.model}, {kind}", family.CASES)
    kept.replace(arguments.only, made, figures.machine(bench.device, "python -m bench"))
    write_report()


if __name__ == "__main__":
    main()
