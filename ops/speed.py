"""How fast a model makes music: as the newest run with this output was, else as assumed for its family.

The assumed figures are here and nowhere else. They are estimates, cautious ones, and none was measured with
this project's engine on a GPU; bench/results/ has what was measured, by device (ops/measured.py).
"""

import json
from contextlib import suppress
from dataclasses import dataclass

from worker.songs import families
from worker.songs.families import HEARTMULA_REHEARSAL
from worker.songs.model_names import REHEARSAL
from worker.store.base import Missing, Store

# Runs with an output whose speed is read, the newest first.
_RUNS_READ = 5


@dataclass(frozen=True)
class Speed:
    """Seconds of music per second, and where that figure is from."""

    rate: float
    basis: str


_OF_FAMILY = {
    families.MUSICGEN.name: Speed(
        1.5, "an estimate for one T4, never measured with this engine; without a GPU far slower"
    ),
    # heartlib's README: a song takes about as long as it is. On paper an A40 is 5 times as fast, and makes
    # 30 songs at once.
    families.HEARTMULA.name: Speed(
        1.0,
        "an estimate: its authors' figure for one song at a time on a large GPU, never measured with this "
        "engine; without a GPU far slower",
    ),
}
_OF_REHEARSAL = Speed(20.0, "assumed for two CPU cores")


def assumed(model: str) -> Speed:
    """That of a model before a run has measured it."""
    if model in (REHEARSAL, HEARTMULA_REHEARSAL):
        return _OF_REHEARSAL
    return _OF_FAMILY[families.of(model).name]


def of(model: str, store: Store, *, gpu_only: bool = False) -> Speed:
    """That of the newest run with this output, else the assumed one."""
    return measured(store, gpu_only=gpu_only) or assumed(model)


def measured(store: Store, *, gpu_only: bool = False) -> Speed | None:
    """That of the newest run with this output; None if there was none."""
    summaries = [key for key in store.list("runs/") if key.endswith("/summary.json")]
    for key in sorted(summaries, reverse=True)[:_RUNS_READ]:
        with suppress(Missing, ValueError, KeyError, TypeError):
            summary = json.loads(store.read(key))
            rate, device = float(summary["real_time_factor"]), str(summary["engine"]["device"])
            if rate > 0 and not (gpu_only and device == "cpu"):
                return Speed(rate, f"as in run {summary['run_id']} on {device}")
    return None
