"""Run the worker on this machine, as a process of its own: `inv` itself never imports torch."""

import signal
import subprocess
import sys
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ops import models
from ops.repository import ROOT
from ops.settings import child_env
from worker.errors import Interrupted, UserError

_WINDOWS_CTRL_C = 0xC000013A  # the exit code of a process that Ctrl-C ended before it listened


@dataclass(frozen=True)
class HourlyCost:
    """What this machine costs in USD per hour, and where that figure comes from."""

    usd: str | float
    basis: str


def run_worker(
    *,
    prompts: str,
    output: str,
    model: str,
    hourly_cost: HourlyCost | None,
    only: Sequence[str] = (),
    flags: Sequence[str] = (),
) -> int:
    """Run `python -m worker` to its end; -> its exit code. Its output goes to this terminal.

    `flags`: further ones of the worker, such as `--verify`. Relative paths count from the user's folder.
    The terminal sends Ctrl-C to the worker, too: this waits while the worker saves its checkpoints and
    reports. Raises BadInput at once for a model that is known not to run.
    """
    models.refuse_unsupported(model, child_env())
    here = Path.cwd()
    argv = [
        sys.executable,
        "-m",
        "worker",
        f"--prompts={here / Path(prompts).expanduser()}",
        f"--model={_absolute(model)}",
    ]
    argv += [f"--output={output if '://' in output else here / Path(output).expanduser()}"]
    if hourly_cost:
        # With =, as a value may begin with a dash, like the basis "--hourly-cost" or a NAME.
        argv += [f"--hourly-cost={hourly_cost.usd}", f"--price-basis={hourly_cost.basis}"]
    argv += [f"--only={name}" for name in only]
    argv += flags
    stopped = threading.Event()
    before = signal.signal(signal.SIGINT, lambda *_: stopped.set())
    worker = subprocess.Popen(argv, cwd=ROOT, env=child_env())
    signal.signal(signal.SIGTERM, lambda *_: worker.terminate())
    code = worker.wait()
    # `uv run` may pass on a Ctrl-C that the terminal has sent already, as late as when Python ends.
    signal.signal(signal.SIGINT, signal.SIG_IGN if stopped.is_set() else before)
    if code in (-signal.SIGINT, -signal.SIGTERM, _WINDOWS_CTRL_C):
        raise Interrupted("stopped at once; run it again to resume")
    if code < 0:
        raise UserError(f"the worker was killed by signal {-code} (out of memory?); run it again to resume")
    return code


def _absolute(model: str) -> str:
    folder = Path(model).expanduser()
    return str(folder.resolve()) if folder.is_dir() else model
