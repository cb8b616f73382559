"""Whether other programs keep this machine busy."""

import os

from worker.amounts import count

# The load that a machine has of one program that uses all its cores, and some more.
_BUSY_PER_CORE = 1.5


def busy(load: float | None = None, n_cores: int | None = None) -> str:
    """`this machine is busy: load 14 on 2 cores`; empty if it is not, or has no load average (Windows).

    `load`: processes that run or wait, averaged over a minute. By default both are this machine's.
    """
    if load is None:
        load = os.getloadavg()[0] if hasattr(os, "getloadavg") else 0.0
    n_cores = n_cores or _n_cores()
    if load < _BUSY_PER_CORE * n_cores:
        return ""
    return f"this machine is busy: load {load:.0f} on {count(n_cores, 'core')}"


def _n_cores() -> int:
    """Those that this process may use, where the system tells."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
