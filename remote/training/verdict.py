"""What the end of an attempt means: done, stopped, once more, or failed for good, with advice."""

from __future__ import annotations

import re
import signal
from dataclasses import dataclass

from .supervise import Ended

DONE, FAILED, INTERRUPTED = 0, 1, 75

_DISK_FULL = re.compile(
    r"no space left on device|disk quota exceeded|os error (28|122)\b|errno (28|122)\b"
    # torch says no more than this
    r"|PytorchStreamWriter failed writing",
    re.I,
)
_GPU_MEMORY = re.compile(
    r"CUDA out of memory|OutOfMemoryError|CUDA error: out of memory|CUBLAS_STATUS_ALLOC_FAILED"
)
_MEMORY = re.compile(r"^MemoryError|DefaultCPUAllocator: .*allocate memory|Cannot allocate memory", re.M)


@dataclass(frozen=True)
class Verdict:
    """`code`: train.py's exit code; None: start it again. `text`: what happened; what to do."""

    code: int | None
    text: str


def judge(ended: Ended, finished: bool, failed_at: list[int], retries: int, limit: str = "") -> Verdict:
    """What this end means. `finished`: a checkpoint is at the goal.

    `failed_at`: the steps at which the attempts before it crashed. `limit`: what its limit is called.
    """
    at = f"at step {ended.step}" if ended.step else "before its first step"
    again = f"start it again to resume from step {ended.saved}" if ended.saved else "start it again"
    if finished and (ended.code == 0 or ended.asked):
        return Verdict(DONE, "the training is finished")
    if ended.asked == "signal":
        return Verdict(INTERRUPTED, f"the training was stopped {at}; {again}")
    if ended.asked == "limit":
        return Verdict(INTERRUPTED, f"the training was stopped {at} by {limit}; {again}")
    if ended.asked == "stall":
        advice = f"see the log, then {again}"
        return Verdict(FAILED, f"the training hung {at}: no step, no output, no work on the GPU; {advice}")
    if ended.code == 0:
        why = "it ended by itself before its goal"
        return Verdict(INTERRUPTED, f"the training is not finished: {why}, {at}; {again}")
    how = _how(ended.code)
    if finished:
        at = "after its last step"
    if _DISK_FULL.search(ended.tail):
        advice = f"free some space on the volume or make it larger, then {again}"
        return Verdict(FAILED, f"the disk is full: the training {how} {at}; {advice}")
    if _GPU_MEMORY.search(ended.tail):
        advice = f"make its batches smaller, or rent a GPU with more memory, then {again}"
        return Verdict(FAILED, f"the GPU's memory is too small: the training {how} {at}; {advice}")
    if ended.oom_killed or _MEMORY.search(ended.tail):
        advice = f"use fewer data loader workers, or rent a machine with more RAM, then {again}"
        return Verdict(FAILED, f"the RAM is too small: the training {how} {at}; {advice}")
    if ended.step in failed_at:
        return Verdict(
            FAILED, f"the training {how} twice {at}; see the log above, correct it, then start it again"
        )
    if len(failed_at) >= retries:
        times = "" if not failed_at else f", after {len(failed_at)} retries"
        return Verdict(FAILED, f"the training {how} {at}{times}; see the log above, then {again}")
    return Verdict(None, f"the training {how} {at}")


def _how(code: int) -> str:
    if code >= 0:
        return f"failed with exit code {code}"
    try:
        return f"was killed by {signal.Signals(-code).name}"
    except ValueError:
        return f"was killed by signal {-code}"
