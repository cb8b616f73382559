"""python -m worker: run a prompts file on this machine.

    python -m worker --prompts prompts.txt --model rehearsal --output out/demo

What is not given is taken from the environment (MUSICGEN_MODEL, MUSICGEN_OUTPUT, MUSICGEN_S3_BUCKET,
MUSICGEN_S3_PREFIX, MUSICGEN_SLOTS, MUSICGEN_DTYPE, MUSICGEN_FADE_MS, MUSICGEN_CLAIM_TTL_S,
MUSICGEN_STATE_DIR, MUSICGEN_COMMERCIAL, MUSICGEN_PRICE_PAID_USD, HOURLY_COST_USD, RUN_ID).
The closing table goes to stdout, all else to stderr. A log and status.json are kept in
MUSICGEN_STATE_DIR and under runs/RUN_ID in the output.
Ctrl-C, SIGTERM or a terminal that is closed saves the songs in progress and ends; a second Ctrl-C or
SIGTERM ends at once.
Exit codes: 0 done, 1 a song is missing or the store failed, 2 bad input or settings, 75 interrupted.
"""

import signal

if __name__ == "__main__":
    # While the rest is imported, Ctrl-C ends the process without a traceback.
    signal.signal(signal.SIGINT, signal.SIG_DFL)

import argparse
import hashlib
import importlib
import io
import logging
import math
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, TextIO

from rich.console import Console

from worker import names, timestamps
from worker.amounts import duration
from worker.engine import Engine, LoadableEngine
from worker.errors import BadInput, Interrupted, UserError
from worker.host.notice import Interruption
from worker.host.scratch import scratch_folder, temporary_in_scratch
from worker.host.signals import listening
from worker.host.streams import make_lasting
from worker.models import heartmula
from worker.observe.console import ConsoleDisplay, say, show_summary
from worker.observe.heartbeat import Heartbeat
from worker.observe.run_log import RunLog
from worker.run.batch import run
from worker.run.claims import TTL_S
from worker.run.context import RunContext
from worker.run.observer import Observers
from worker.run.progress import ProgressMeter
from worker.run.request import RunRequest
from worker.songs import families, jobs, licences, lyrics
from worker.songs.checkpoint_file import tokens_key
from worker.songs.job import Job
from worker.songs.maker import checked_sampling, checked_solver, model_name
from worker.songs.summary import Price, Summary
from worker.store.base import Store
from worker.store.open import open_store

DEFAULT_MODEL = "facebook/musicgen-medium"

_MAX_FADE_MS = 10_000
_RUN_ID = re.compile(r"[A-Za-z0-9-]{1,100}")


def main(argv: list[str] | None = None, env: Mapping[str, str] = os.environ) -> int:
    """The exit code of a run; every error a user can cause is one `error:` line."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):  # a cp1252 console shows ? for what it lacks
            stream.reconfigure(errors="replace")
    logging.basicConfig(format="%(message)s", stream=sys.stderr)
    arguments = parser(env).parse_args(argv)
    for mistake in names.mistakes(env).values():
        say(_console(sys.stderr), f"warning: environment: {mistake}")
    try:
        with listening(env) as interruption:
            summary = generate(arguments, interruption, env)
    except UserError as error:
        for line in str(error).splitlines():
            say(_console(sys.stderr), f"error: {line}")
        return error.code
    except KeyboardInterrupt:
        print("error: stopped; run it again to resume", file=sys.stderr)
        return 75
    return 1 if summary.is_failed else 0


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
        "--model",
        default=env.get("MUSICGEN_MODEL") or DEFAULT_MODEL,
        help="hub id, folder, heartmula, rehearsal",
    )
    p.add_argument(
        "--only", nargs="+", action="extend", default=[], metavar="NAME", help="make these songs only"
    )
    p.add_argument("--hourly-cost", default=env.get("HOURLY_COST_USD") or None, help="USD per hour")
    p.add_argument("--price-basis", default="as set", help="what the hourly cost is, for the records")
    p.add_argument(
        "--price-paid",
        default=env.get("MUSICGEN_PRICE_PAID_USD") or None,
        help="USD per hour that is really paid, for the records",
    )
    p.add_argument(
        "--claim-ttl",
        default=env.get("MUSICGEN_CLAIM_TTL_S") or TTL_S,
        help="seconds without a heartbeat before another worker takes the song (%(default)s)",
    )
    p.add_argument(
        "--commercial",
        action="store_true",
        help="refuse a model whose weights may not be used commercially",
    )
    p.add_argument(
        "--start-over", action="store_true", help="begin songs again that were begun with other settings"
    )
    p.add_argument(
        "--verify", action="store_true", help="compare every finished song with its record's checksum"
    )
    p.add_argument(
        "--from-tokens",
        action="store_true",
        help="decode the songs whose tokens are kept and whose WAV is gone; generate nothing",
    )
    p.add_argument(
        "--run-id", default=env.get("RUN_ID") or timestamps.new_run_id(), help="names this run's files"
    )
    p.add_argument(
        "--fade-ms",
        default=env.get("MUSICGEN_FADE_MS") or 0,
        help="milliseconds over which a song's cut end fades out (%(default)s: it is cut)",
    )
    p.add_argument("--device", help="cpu, cuda or cuda:N (the GPU if there is one)")
    p.add_argument(
        "--dtype", default=env.get("MUSICGEN_DTYPE") or None, help="auto, fp32, fp32-kv16, bf16, fp16"
    )
    p.add_argument(
        "--slots", default=env.get("MUSICGEN_SLOTS") or None, help="songs at once (as memory allows)"
    )
    p.add_argument("--stride", type=float, help="seconds between MusicGen's 30 s windows (18)")
    p.add_argument(
        "--guidance-scale", type=float, help="how closely to follow the prompt (3; HeartMuLa: 1.5)"
    )
    p.add_argument("--top-k", type=int, help="tokens to choose from; 0: all (250; HeartMuLa: 50)")
    p.add_argument("--temperature", type=float, help="higher is more random (1)")
    p.add_argument("--codec-steps", type=int, help="steps from tokens to sound (HeartMuLa alone; 10)")
    p.add_argument(
        "--codec-guidance",
        type=float,
        help="how closely the sound follows the tokens; up to 1: unguided (HeartMuLa alone; 1.25)",
    )
    return p


def generate(arguments: argparse.Namespace, interruption: Interruption, env: Mapping[str, str]) -> Summary:
    """Check everything that can be checked, then run."""
    family = families.of(arguments.model)
    if arguments.commercial or _is_commercial(env.get("MUSICGEN_COMMERCIAL")):
        licences.refuse_commercial_use(arguments.model)
    listed = jobs.load(arguments.prompts, family)
    store = open_store(arguments.output)
    sampling = checked_sampling(
        family,
        guidance_scale=arguments.guidance_scale,
        top_k=arguments.top_k,
        temperature=arguments.temperature,
        stride_s=arguments.stride,
    )
    solver = checked_solver(
        family, codec_steps=arguments.codec_steps, codec_guidance=arguments.codec_guidance
    )
    if not _RUN_ID.fullmatch(arguments.run_id):
        raise BadInput(f"run id {arguments.run_id!r} names no folder; use letters, digits and - only")
    slots = _slots(arguments.slots)
    ttl_s = _amount(arguments.claim_ttl, "claim ttl", "seconds", "120")
    selected = jobs.select(listed, arguments.only)
    if arguments.from_tokens:
        selected = _with_tokens(selected, store)
    request = RunRequest(
        jobs=listed,
        selected=selected,
        model=model_name(arguments.model),
        price=price(arguments.hourly_cost, arguments.price_basis, arguments.price_paid),
        run_id=arguments.run_id,
        family=family,
        licence=licences.licence_of(arguments.model),
        sampling=sampling,
        solver=solver,
        start_over=arguments.start_over,
        fade_s=_fade_s(arguments.fade_ms),
        verify=arguments.verify,
    )
    with ExitStack() as parts:
        folder = Path(env.get("MUSICGEN_STATE_DIR") or parts.enter_context(scratch_folder()))
        meter = ProgressMeter()
        display = parts.enter_context(ConsoleDisplay(_console(sys.stderr), meter))
        run_log = RunLog(folder, store, request.run_id, env=env)
        heartbeat = Heartbeat(folder, store, request, meter)
        context = RunContext(
            request,
            store,
            Observers(meter, display, run_log, heartbeat),
            meter,
            spare=_spare(store, env),
            interruption=interruption,
            claim_ttl_s=ttl_s,
        )

        def load_engine(dtype: str | None) -> Engine:
            if family is families.HEARTMULA:  # said before torch is imported, which takes seconds
                heartmula.refuse_absent(arguments.model, env)
            context.observer.note("loading", f"loading PyTorch and the model {arguments.model}")
            began_s = time.monotonic()
            # It imports torch: not for a run with nothing to do.
            kind: type[LoadableEngine] = importlib.import_module(family.engine).Engine
            options: dict[str, Any] = {} if solver is None else {"solver": solver}
            if family.stride_s is not None:
                options["stride_s"] = arguments.stride or family.stride_s
            with temporary_in_scratch():  # a model is written there, a kernel compiled
                engine = kind.load(
                    arguments.model,
                    device=arguments.device,
                    dtype=dtype or arguments.dtype,
                    slots=slots,
                    **options,
                )
            heartbeat.loaded(loaded := engine.describe())
            took = duration(time.monotonic() - began_s)
            on = f"{loaded['device']}, {loaded['precision']}, {loaded['slots']} songs at once at most"
            context.observer.note("loaded", f"loaded in {took}: {on}")
            return engine

        with ending_reported(run_log, heartbeat, context.budget.last_log_s) as ending:
            for each in lyrics.advice(selected, family):
                context.warn(each)
            summary = run(context, load_engine)
            if summary.is_failed:
                ending.state, ending.code = "failed", UserError.code
    show_summary(_console(sys.stdout), summary, store.location)
    return summary


@contextmanager
def ending_reported(run_log: RunLog, heartbeat: Heartbeat, last_log_s: float) -> Iterator["Ending"]:
    """Log and status from the first moment to the last, with the exit code."""
    logging.getLogger().addHandler(run_log.handler)
    run_log.start()
    heartbeat.start()
    ending = Ending()
    try:
        yield ending
    except BaseException as error:
        stopped = isinstance(error, Interrupted | KeyboardInterrupt)
        ending.code = error.code if isinstance(error, UserError) else Interrupted.code if stopped else 1
        ending.state = "interrupted" if stopped else "failed"
        text = str(error) if isinstance(error, UserError) else f"{type(error).__name__}: {error}"
        run_log.note("error", text, level="error")
        raise
    finally:
        logging.getLogger().removeHandler(run_log.handler)
        run_log.note("ended", f"ended: {ending.state}, exit code {ending.code}", **asdict(ending))
        until = time.monotonic() + last_log_s
        heartbeat.end(ending.state, ending.code)  # both upload side by side
        try:
            run_log.close(last_log_s)
        finally:  # a second Ctrl-C meanwhile must not leave a status that looks alive
            heartbeat.finish(ending.state, ending.code, max(0.5, until - time.monotonic()))


@dataclass
class Ending:
    """How a run ended: one of the states of its status, and the exit code."""

    state: str = "done"
    code: int = 0


def _with_tokens(selected: list[Job], store: Store) -> list[Job]:
    """Those of the jobs whose tokens are kept. Raises BadInput if there is none."""
    kept = store.list("tokens/")
    found = [job for job in selected if tokens_key(job.stem) in kept]
    if not found:
        raise BadInput(
            f"{store.location} keeps no tokens of these songs; make them with `inv generate`, or the worker "
            "without --from-tokens"
        )
    return found


def _spare(store: Store, env: Mapping[str, str]) -> Store | None:
    """A folder of this machine for the checkpoints that a bucket does not take."""
    if not store.location.startswith("s3://"):
        return None
    root = env.get("MUSICGEN_BOX_ROOT") or env.get("MUSICGEN_BOX_HOME") or "~/.musicgen"
    place = hashlib.sha256(store.location.encode()).hexdigest()[:8]
    return open_store(f"{root}/unsent/{place}")


def price(hourly: str | None, basis: str, paid: str | None = None) -> Price:
    """The hour's price as set; a machine without one is one's own and counts 0."""
    paid_usd = None if paid is None else _amount(paid, "price paid", "USD", "0.16")
    if hourly is None:
        return Price(0.0, "your own machine, counted as 0; set HOURLY_COST_USD to change that", paid_usd)
    return Price(_amount(hourly, "hourly cost", "USD", "0.40"), basis, paid_usd)


def _amount(text: str | float, what: str, unit: str, example: str) -> float:
    try:
        amount = float(text)
    except ValueError:
        amount = math.nan
    if not 0 <= amount < math.inf:
        raise BadInput(f"{what} {text!r} is not a number of 0 or more {unit}; write it like {example}")
    return amount


def _fade_s(text: str | float) -> float:
    fade_ms = _amount(text, "fade", "milliseconds", "20")
    if fade_ms > _MAX_FADE_MS:
        raise BadInput(f"a fade of {fade_ms:g} ms is too long; use at most {_MAX_FADE_MS:,} ms, like 20")
    return fade_ms / 1000


def _console(stream: TextIO) -> Console:
    """A file or pipe has no width: nothing is folded there."""
    return Console(file=stream, width=None if stream.isatty() else 200)


def _slots(text: str | None) -> int | None:
    if text is not None and not (text.isascii() and text.isdigit() and int(text[:9]) > 0):
        raise BadInput(f"slots {text!r} is not a whole number over 0; leave it out to have it chosen")
    return int(text) if text else None


def _is_commercial(setting: str | None) -> bool:
    if setting not in (None, "", "0", "1"):
        raise BadInput(f"MUSICGEN_COMMERCIAL={setting} is neither 0 nor 1; correct it")
    return setting == "1"


def _leave(code: int) -> None:
    """End the process, although a model may still be loading or a request hang in a thread."""
    if threading.active_count() == 1:
        sys.exit(code)
    logging.shutdown()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):  # closed: nobody reads it
            stream.flush()
    os._exit(code)


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)
    make_lasting()
    exit_code = 1
    try:
        exit_code = main()
    except Exception:
        traceback.print_exc()
    _leave(exit_code)
