"""python -m bench: measure the engine against transformers and against this machine's limits.

Every comparison is interleaved in one process. Results go to bench/results/*.json;
docs/benchmarks.md is written from all of them.
"""

import argparse

import torch
import transformers

from bench import figures
from bench.cases import CASES, Bench
from bench.report import write_report


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
    made: list[figures.Figure] = []
    for name in arguments.only:
        for figure in getattr(bench, name)():
            made.append(figure)
            print(figure.line(), flush=True)
    kind = bench.device.type if bench.device.type != "cpu" else torch.backends.cpu.get_cpu_capability()
    path = figures.FOLDER / f"{arguments.size}-{kind.lower()}.json"
    kept = figures.Kept(path, f"musicgen-{arguments.size}, {kind}", CASES)
    kept.replace(arguments.only, made, figures.machine(bench.device, "python -m bench"))
    write_report()


if __name__ == "__main__":
    main()
