"""The run: a list of jobs becomes songs, records and a cost report in a store.

Checks everything first, has the songs made (worker/run/runner.py), and leaves an account, whatever ends it.
Does not print: a `Watch` is told what happens.
"""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from worker.errors import BadInput, Interrupted
from worker.host.notice import Interruption
from worker.run import preflight as health
from worker.run.claims import TTL_S, Claims
from worker.run.ledger import Account
from worker.run.request import Order, Summary, Watch
from worker.run.runner import LoadEngine, Making
from worker.songs import records
from worker.songs.jobs import refuse_lyrics
from worker.store.base import Store
from worker.store.retry import Retry

# MusicGen's; asked for before a model is loaded, to know how large the songs will be.
_SAMPLE_RATE = 32_000


def run(
    order: Order,
    store: Store,
    load_engine: LoadEngine,
    watch: Watch,
    *,
    interruption: Interruption | None = None,
    spare: Store | None = None,
    claim_ttl_s: float = TTL_S,
) -> Summary:
    """Make the selected songs that are not done. The engine is loaded only when there are any.

    `spare`: a folder of this machine for what the store does not take.
    Raises BadInput before anything is written, UserError when the store fails, and Interrupted when
    it was asked to end; once the store has been tried, report and summary are written whatever happens.
    """
    interruption = interruption or Interruption()
    refuse_lyrics(order.selected)
    found = records.survey(store, order.jobs)
    records.refuse_other_model(found, order.model, None, store.location)
    account, retry = Account(order, store, found), Retry(watch.note)
    places = [store, *([spare] if spare else [])]

    def warn(text: str) -> None:
        watch.note("warning", text, level="warning")

    def end(state: str) -> Summary:
        account.close(state, retry, interruption)
        account.tidy(places)
        return account.summary

    def end_early(state: str, reason: str) -> None:
        if why_not := account.close_early(state, reason):
            warn(why_not)  # no more: why the run ends is what the user must hear

    @contextmanager
    def accounted_for(*, unless: type[Exception] | tuple[()] = ()) -> Iterator[None]:
        """What is raised here is in the last account, if that can be had soon."""
        try:
            yield
        except unless:
            raise
        except BaseException as error:
            stopped = isinstance(error, KeyboardInterrupt | Interrupted)
            end_early("interrupted" if stopped else "failed", str(error) or type(error).__name__)
            if isinstance(error, KeyboardInterrupt):
                raise Interrupted(f"stopped at once; {account.left}") from None
            raise

    watch.planned(found, order)
    todo = account.todo
    if not todo:
        return end("done")
    scratch = Path(tempfile.gettempdir())
    for warning in health.check([job.seconds for job in todo], _SAMPLE_RATE, scratch, store):
        warn(warning)
    with Claims(store, order.run_id, ttl_s=claim_ttl_s, say=warn) as claims:
        with accounted_for(unless=BadInput):
            engine = load_engine(None)
            revision = str(engine.describe()["revision"])
            records.refuse_other_model(found, order.model, revision, store.location)
        account.summary.engine = engine.describe()
        with accounted_for():
            make = Making(todo, order, store, spare, claims, account, retry, interruption, watch)
            make(engine, load_engine)
        if interruption.no_new_songs and account.n_left:
            end_early("interrupted", interruption.reason)
            raise Interrupted(f"{interruption.reason}; {account.left}")
        return end("failed" if account.summary.failed else "done")
