"""The run: a list of jobs becomes songs, records and a cost report in a store.

Checks everything first, has the songs made (worker/run/runner.py), and leaves report and summary,
whatever ends it. Does not print: an observer is informed of what happens.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeVar

from worker.engine import Engine
from worker.errors import BadInput, Interrupted
from worker.host.scratch import scratch_folder
from worker.run import checkpoints as saved
from worker.run import preflight
from worker.run.checkpoints import Checkpoints
from worker.run.claims import Claims
from worker.run.context import RunContext
from worker.run.finisher import Finisher
from worker.run.ledger import RunLedger
from worker.run.observer import Observers
from worker.run.queue import SongQueue, song_of
from worker.run.runner import LoadEngine, Runner
from worker.songs import families, maker, records
from worker.songs.job import Job
from worker.songs.maker import Maker
from worker.songs.summary import Summary
from worker.store.retry import Retry, TimedOut, answer

# How long the first look at the output waits for a store that does not answer.
_START_LIMIT_S = 60.0

Result = TypeVar("Result")


def run(run: RunContext, load_engine: LoadEngine) -> Summary:
    """Make the selected songs that are not done. The engine is loaded only when there are any.

    Raises BadInput before anything is written, UserError when the store fails, and Interrupted when
    it was asked to end; once the store has been tried, report and summary are written whatever happens.
    """
    request, store = run.request, run.store
    families.refuse_unfit(request.selected, request.family)
    at_start = Retry(run.observer.note, _START_LIMIT_S)
    look = partial(records.survey, store, request.jobs, verify=request.verify)
    found = _unless_stopped(run, lambda: at_start(look), "while it looked for what is done")
    maker.refuse_other_model(found.makers, request.model, store.location)
    ledger = RunLedger(run, found)
    run = replace(run, observer=Observers(ledger, run.observer))
    run.observer.planned(found, request)

    def end() -> Summary:
        ledger.close("failed" if ledger.summary.is_failed else "done")
        tidy = partial(saved.tidy, run.stores, ledger.done_stems, [job.stem for job in request.jobs])
        with suppress(TimedOut):  # the next run tidies
            answer(tidy, lambda: not run.interruption.notice)
        return ledger.summary

    def load(dtype: str | None) -> Engine:
        return _unless_stopped(run, lambda: load_engine(dtype), "while the model was loading")

    if not ledger.todo:
        return end()
    scratch = Path(tempfile.gettempdir())
    samples_per_s = request.family.sample_rate * request.family.channels
    for warning in preflight.check([job.seconds for job in ledger.todo], samples_per_s, scratch, store):
        run.warn(warning)
    with Claims(
        store,
        request.run_id,
        ttl_s=run.claim_ttl_s,
        say=run.warn,
        leave_s=run.budget.release_claims_s,
    ) as claims:
        with _reported(ledger, unless=BadInput):
            engine = load(None)
            settle = partial(_settle, run, engine, found, [job.stem for job in ledger.todo])
            _unless_stopped(run, lambda: run.retry(settle), "before the first song")
        ledger.summary.engine = engine.describe()
        with _reported(ledger), ExitStack() as parts:
            folder = parts.enter_context(scratch_folder())
            checkpoints = Checkpoints(run, claims)
            parts.callback(checkpoints.close, run.budget.upload_s)
            finisher = Finisher(run, folder, checkpoints, claims)
            queue = SongQueue(run, _that_fit(run, engine, ledger.todo), claims, checkpoints)
            Runner(run, queue, checkpoints, finisher, ledger)(engine, load)
        if run.interruption.no_new_songs and ledger.n_left:
            ledger.close_early("interrupted", run.interruption.reason)
            raise Interrupted(f"{run.interruption.reason}; {ledger.left}")
        return end()


def _unless_stopped(run: RunContext, action: Callable[[], Result], when: str) -> Result:
    """The action's result. A notice does not wait for it: it may take minutes, as loading a model does."""
    try:
        return answer(action, lambda: not run.interruption.notice)
    except TimedOut:
        reason = run.interruption.reason
        run.observer.note("stopping", reason)  # by it the box goes off or stays on
        raise Interrupted(f"{reason} {when}; run it again to resume") from None


def _settle(run: RunContext, engine: Engine, found: records.Survey, stems: list[str]) -> None:
    """Refuse settings that would mix songs of two kinds in one output, or replace paid work."""
    request = run.request
    mine = Maker.of(engine.describe(), request.sampling, request.solver)
    maker.settle(run.store, mine, found, start_over=request.start_over)
    if not request.start_over:
        saved.refuse_other_settings(run.stores, stems, lambda song: engine.check(song, request.sampling))


def _that_fit(run: RunContext, engine: Engine, jobs: Sequence[Job]) -> list[Job]:
    """The songs that the model has room for. The others have failed: before hours are spent on the rest."""
    fitting = []
    for job in jobs:
        try:
            engine.refuse_oversized(song_of(job))
            fitting.append(job)
        except BadInput as error:
            run.observer.failed(job.song, str(error))
    return fitting


@contextmanager
def _reported(ledger: RunLedger, *, unless: type[Exception] | tuple[()] = ()) -> Iterator[None]:
    """What is raised here is in the last summary, if the store takes that soon."""
    try:
        yield
    except unless:
        raise
    except BaseException as error:
        stopped = isinstance(error, KeyboardInterrupt | Interrupted)
        ledger.close_early("interrupted" if stopped else "failed", str(error) or type(error).__name__)
        if isinstance(error, KeyboardInterrupt):
            raise Interrupted(f"stopped at once; {ledger.left}") from None
        raise
