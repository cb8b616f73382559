"""python -m worker: run a prompts file on this machine.

    python -m worker --prompts prompts.txt --model rehearsal --output out/demo

What is not given is taken from the environment (MUSICGEN_MODEL, MUSICGEN_OUTPUT, MUSICGEN_S3_BUCKET,
MUSICGEN_S3_PREFIX, MUSICGEN_SLOTS, MUSICGEN_DTYPE, HOURLY_COST_USD, RUN_ID).
The closing table goes to stdout, all else to stderr.
Exit codes: 0 done, 1 a song or the store failed, 2 bad input or settings, 75 interrupted.
"""

import argparse
import io
import logging
import math
import os
import re
import secrets
import signal
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from pathlib import Path
from typing import TextIO

from rich.console import Console

from worker import jobs
from worker.batch import Order, Price, Summary, run
from worker.engine import Engine, Sampling
from worker.errors import BadInput, UserError
from worker.progress import ProgressDisplay, show_summary
from worker.records import model_name
from worker.store import open_store

DEFAULT_MODEL = "facebook/musicgen-medium"

_RUN_ID = re.compile(r"[A-Za-z0-9-]{1,100}")


def main(argv: list[str] | None = None, env: Mapping[str, str] = os.environ) -> int:
    """The exit code of a run; every error a user can cause is one `error:` line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a cp1252 console shows ? for what it lacks
            stream.reconfigure(errors="replace")
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    arguments = parser(env).parse_args(argv)
    # The same end as Ctrl-C: what is finished is kept and accounted for.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        summary = generate(arguments)
    except UserError as error:
        for line in str(error).splitlines():
            print(f"error: {line}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("error: stopped; run it again to go on", file=sys.stderr)
        return 75
    return 1 if summary.failed else 0


def parser(env: Mapping[str, str]) -> argparse.ArgumentParser:
    """The command line, with the environment's values as defaults."""
    bucket, prefix = env.get("MUSICGEN_S3_BUCKET"), env.get("MUSICGEN_S3_PREFIX", "").strip("/")
    in_bucket = f"s3://{bucket}/{prefix}".rstrip("/") if bucket else "out/songs"
    p = argparse.ArgumentParser("python -m worker", description="Make the songs of a prompts file.")
    p.add_argument("--prompts", type=Path, default=Path("prompts.txt"), help="the job list (%(default)s)")
    p.add_argument(
        "--output", default=env.get("MUSICGEN_OUTPUT") or in_bucket, help="folder or s3:// address"
    )
    p.add_argument(
        "--model", default=env.get("MUSICGEN_MODEL") or DEFAULT_MODEL, help="hub id, folder, rehearsal"
    )
    p.add_argument(
        "--only", nargs="+", action="extend", default=[], metavar="NAME", help="make these songs only"
    )
    p.add_argument("--hourly-cost", default=env.get("HOURLY_COST_USD") or None, help="USD per hour")
    p.add_argument("--price-basis", default="as set", help="what the hourly cost is, for the records")
    p.add_argument("--run-id", default=env.get("RUN_ID") or new_run_id(), help="names this run's files")
    p.add_argument("--device", help="cpu, cuda or cuda:N (the GPU if there is one)")
    p.add_argument("--dtype", default=env.get("MUSICGEN_DTYPE") or None, help="auto, fp32, bf16, fp16")
    p.add_argument(
        "--slots", default=env.get("MUSICGEN_SLOTS") or None, help="songs at once (as memory allows)"
    )
    p.add_argument("--stride", type=float, default=18.0, help="seconds between 30 s windows (%(default)s)")
    p.add_argument("--guidance-scale", type=float, default=3.0, help="how closely to follow the prompt")
    p.add_argument("--top-k", type=int, default=250, help="tokens to choose from; 0: all")
    p.add_argument("--temperature", type=float, default=1.0, help="higher is more random")
    return p


def generate(arguments: argparse.Namespace) -> Summary:
    """Check everything that can be checked, then run."""
    listed = jobs.load(arguments.prompts)
    store = open_store(arguments.output)
    sampling = Sampling(arguments.guidance_scale, arguments.top_k, arguments.temperature)
    _check_sampling(sampling, arguments.stride)
    if not _RUN_ID.fullmatch(arguments.run_id):
        raise BadInput(f"run id {arguments.run_id!r} names no folder; use letters, digits and - only")
    slots = _slots(arguments.slots)
    order = Order(
        jobs=listed,
        selected=jobs.select(listed, arguments.only),
        model=model_name(arguments.model),
        price=price(arguments.hourly_cost, arguments.price_basis),
        run_id=arguments.run_id,
        sampling=sampling,
    )

    def load_engine() -> Engine:
        from worker.musicgen import Engine  # imports torch: not for a run with nothing to do

        return Engine.load(
            arguments.model,
            device=arguments.device,
            dtype=arguments.dtype,
            slots=slots,
            stride_s=arguments.stride,
        )

    with ProgressDisplay(_console(sys.stderr)) as display:
        summary = run(order, store, load_engine, display)
    show_summary(_console(sys.stdout), summary, store.location)
    return summary


def price(hourly: str | None, basis: str) -> Price:
    """The hour's price as set; a machine without one is one's own and counts 0."""
    if hourly is None:
        return Price(0.0, "your own machine, counted as 0; set HOURLY_COST_USD to change that")
    try:
        amount = float(hourly)
    except ValueError:
        amount = math.nan
    if not 0 <= amount < math.inf:
        raise BadInput(f"hourly cost {hourly!r} is not a number of 0 or more; write it like 0.40")
    return Price(amount, basis)


def _console(stream: TextIO) -> Console:
    """A file or pipe has no width: nothing is folded there."""
    return Console(file=stream, width=None if stream.isatty() else 200)


def _slots(text: str | None) -> int | None:
    if text is not None and not (text.isascii() and text.isdigit() and int(text[:9]) > 0):
        raise BadInput(f"slots {text!r} is not a whole number over 0; leave it out to have it chosen")
    return int(text) if text else None


def new_run_id() -> str:
    """`YYYYMMDDTHHMMSSZ-xxxx`: sorts by time, unique among machines."""
    return f"{datetime.now(UTC):%Y%m%dT%H%M%SZ}-{secrets.token_hex(2)}"


def _check_sampling(sampling: Sampling, stride_s: float) -> None:
    if not 0 <= sampling.guidance_scale < math.inf:
        raise BadInput("--guidance-scale must be 0 or more; MusicGen's default is 3")
    if sampling.top_k < 0:
        raise BadInput("--top-k must be 0 or more; MusicGen's default is 250")
    if not 0 < sampling.temperature < math.inf:
        raise BadInput("--temperature must be over 0; MusicGen's default is 1")
    if not 1 <= stride_s < 30:
        raise BadInput("--stride must be from 1 to under 30 seconds; the default is 18")


if __name__ == "__main__":
    sys.exit(main())
