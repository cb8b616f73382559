#!/usr/bin/env python3
"""A training on this box, from its repository to its goal: the job of `--job train`.

    python3 -B remote/train.py --config configs/a.yaml --clone URL --commit SHA    a repository at a commit
    python3 -B remote/train.py --config configs/a.yaml --tree ARCHIVE.tar.gz       or one that was shipped

Any training will do that is started as `python SCRIPT --config FILE [--resume CHECKPOINT]` and saves as
transformers' Trainer does. SCRIPT is scripts/train.py, else train.py beside the configuration.

How it is started: by Python 3.11 or newer of the image, whose torch the training may use, with the paths of
env.sh, the settings of worker.env, RUN_ID and MUSICGEN_STATE_DIR; in a process group of its own, which ends
with it. It needs the standard library only: the one part that needs the training's packages, reading YAML, is
a process in the training's Python (training/read_yaml.py), as that is only made here.
It asks for no lock, switches nothing off, and writes in the state folder `status.json` and `train.jsonl`
(training/progress.py), and `curves`: the folders of its event files, one a line. stdout and stderr are the
run's log, with all that the training prints.
SIGTERM, and SIGINT alike, is passed to the training as SIGTERM, which has --grace-s to save and end.

Exit codes: 0 its goal is reached, also if it was before; 1 it failed, 2 it was refused, and then one `error:`
line; 75 it ended before its goal: start it again to resume.
"""

from __future__ import annotations

import argparse
import errno
import math
import os
import signal
import sys
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from training import checkpoints, config, curves, environment, place, preflight, processes, supervise
from training.goal import goal, is_reached
from training.progress import Progress
from training.refusal import Failure, Refusal
from training.verdict import DONE, FAILED, INTERRUPTED, Verdict, judge

# The worker's and the box's own: the training's code is somebody else's.
_NOT_FOR_IT = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "RUNPOD_API_KEY")


def main() -> int:
    """Do it all; whatever ends it is one line."""
    given = arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        code, text = train(given)
    except (Refusal, Failure) as error:
        code, text = error.code, str(error)
    except OSError as error:
        code, text = FAILED, reason_of(error)
    except KeyboardInterrupt:
        code, text = INTERRUPTED, "stopped before the training began; start it again"
    if code == DONE:
        print(f"--- {text}", flush=True)
    else:
        print(f"error: {text}", file=sys.stderr, flush=True)
    return code


def arguments() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description="Train on this box, or resume.")
    parser.add_argument("--config", required=True, help="YAML file in the repository")
    source = parser.add_mutually_exclusive_group(required=True)
    source.add_argument("--clone", metavar="URL", help="git repository of the training")
    source.add_argument(
        "--tree", type=Path, metavar="ARCHIVE", help="the repository as a tar.gz that was shipped"
    )
    parser.add_argument("--commit", default="", help="with --clone: the commit, whole")
    parser.add_argument("--name", default="", help="folder on the volume (default: the repository's name)")
    parser.add_argument("--script", default="", help="what is run (default: see above)")
    parser.add_argument(
        "--requirements", default="", help="(default: beside the configuration, else at the top)"
    )
    parser.add_argument("--python", type=Path, help="an environment that is there already; none is made")
    parser.add_argument("--output-dir", help="where it saves, if not where the configuration says")
    parser.add_argument("--logging-dir", help="where its curves go, likewise")
    parser.add_argument(
        "--restart", action="store_true", help="from the beginning; earlier output is moved aside"
    )
    parser.add_argument(
        "--retries", type=int, default=2, help="after so many crashes it has failed (default: 2)"
    )
    parser.add_argument("--max-hours", type=float, help="stop after so long")
    parser.add_argument("--max-usd", type=float, help="stop after so much of --usd-per-hour")
    parser.add_argument("--usd-per-hour", type=float, help="price of this box (default: HOURLY_COST_USD)")
    parser.add_argument(
        "--stall-min", type=float, default=20, help="minutes without any sign of work (default: 20)"
    )
    parser.add_argument("--grace-s", type=float, default=280, help="seconds to save and end (default: 280)")
    return parser.parse_args()


def train(given: argparse.Namespace) -> tuple[int, str]:
    """Everything; -> the exit code and the last line."""
    began = time.monotonic()
    if missing := [name for name in ("MUSICGEN_BOX_ROOT", "MUSICGEN_BOX_HOME") if not os.environ.get(name)]:
        raise Refusal(f"{missing[0]} is not set; source remote/env.sh first")
    state = Path(os.environ["MUSICGEN_STATE_DIR"]) if os.environ.get("MUSICGEN_STATE_DIR") else None
    usd_per_hour = price(given)
    limits = limits_of(given, began, usd_per_hour)
    preflight.check_gpu()

    repository = place.folder(given.name, given.clone or "")
    if given.clone:
        place.clone(given.clone, given.commit, repository)
    else:
        place.unpack(given.tree, repository)
    place.link_data(repository)
    if state is not None:
        place.point_to_log(state / "log")
    print(f"--- {repository}{f' at {given.commit}' if given.clone else ''}", flush=True)

    if given.python:
        python = (
            given.python.absolute()
        )  # not resolved: a link in an environment is not the Python it leads to
    else:
        home = Path(os.environ["MUSICGEN_BOX_HOME"])
        python = environment.prepare(requirements_of(given, repository), home)
    settings = config.read(repository / given.config, python)
    settings = replace(
        settings,
        output_dir=given.output_dir or settings.output_dir,
        logging_dir=given.logging_dir or settings.logging_dir,
    )
    preflight.check_places(settings, repository, place.volume())
    progress = Progress(state, os.environ.get("RUN_ID", ""), given.config, usd_per_hour)
    training = Training(given, repository, python, settings, progress)
    if state is not None:  # for remote/tensorboard.sh
        (state / "curves").write_text(
            "".join(f"{folder}\n" for folder in training.folders_of_curves()), "utf-8"
        )
    if given.restart:
        training.move_output_aside()
    try:
        return training.run(limits)
    except Refusal as error:
        progress.ended(error.code, str(error))
        raise
    except OSError as error:
        progress.ended(FAILED, reason_of(error))
        raise


class Training:
    """One training in its repository, attempt after attempt."""

    def __init__(
        self,
        given: argparse.Namespace,
        repository: Path,
        python: Path,
        settings: config.Config,
        progress: Progress,
    ):
        self._given, self._repository, self._python = given, repository, python
        self._settings, self._progress = settings, progress
        self._output = repository / settings.output_dir
        self._command = [str(python), str(script_of(given, repository)), "--config", given.config]

    def move_output_aside(self) -> None:
        """Earlier checkpoints and curves stay, under another name."""
        now = time.strftime("%Y%m%dT%H%M%SZ", time.gmtime())
        for name in filter(None, (self._settings.output_dir, self._settings.logging_dir)):
            folder = self._repository / name
            if folder.exists():
                aside = folder.with_name(f"{folder.name}.before-{now}")
                folder.rename(aside)
                print(f"--- {folder} is now {aside.name}", flush=True)

    def run(self, limits: supervise.Limits) -> tuple[int, str]:
        """Attempts, until one is the last."""
        newest = self._newest()
        if newest is not None and self._is_finished():
            again = "start it with --restart to train anew"
            text = f"the training is finished already, at step {newest.step}; {again}"
            self._progress.step = self._progress.goal = newest.step
            self._progress.ended(DONE, text)
            return DONE, text
        signals = supervise.Signals()
        processes.adopt_orphans()
        failed_at: list[int] = []
        while True:
            verdict, step = self._attempt(newest, failed_at, limits, signals)
            if verdict.code is not None:
                self._progress.ended(verdict.code, verdict.text)
                return verdict.code, verdict.text
            failed_at.append(step)
            newest = self._newest()
            again = f"once more from {newest.folder.name}" if newest else "once more from the beginning"
            print(f"--- {verdict.text}; {again}", flush=True)
            self._progress.note("retry", verdict.text, level="warning", step=step)

    def _attempt(
        self,
        newest: checkpoints.Checkpoint | None,
        failed_at: list[int],
        limits: supervise.Limits,
        signals: supervise.Signals,
    ) -> tuple[Verdict, int]:
        """One of them; -> what its end means, and the step that it came to."""
        last = goal(checkpoints.state(newest.folder) if newest else {}, self._settings)
        remark = preflight.check_room(self._settings, self._repository, self._found(), last)
        if remark:
            print(f"--- {remark}", flush=True)
        command = [*self._command, *(["--resume", str(newest.folder)] if newest else [])]
        start = newest.step if newest else 0
        print(f"--- {' '.join(command)}", flush=True)
        self._progress.begun(len(failed_at) + 1, start, last, newest.folder.name if newest else "")
        ended = supervise.run(
            command,
            self._repository,
            self._environment(),
            curves.Curves(self.folders_of_curves()),
            limits,
            signals,
            self._look,
        )
        saved = checkpoints.newest(self._found())
        ended = replace(ended, saved=saved.step if saved else 0)
        ended = replace(ended, step=max(start, ended.step, ended.saved))
        if ended.code == 0 and not ended.asked and not self._found():
            elsewhere = "if it saves elsewhere, name that with --output-dir"
            text = f"the training ended, and there is no checkpoint in {self._output}; {elsewhere}"
            return Verdict(FAILED, text), ended.step
        return judge(ended, self._is_finished(), failed_at, self._given.retries, limits.why_until), ended.step

    def _look(self, points: list[curves.Point], n_bytes: int, asked: str) -> None:
        if self._progress.goal is None and points and (newest := checkpoints.newest(self._found())):
            # a goal in epochs is known once Trainer has counted the data
            self._progress.goal = goal(checkpoints.state(newest.folder), self._settings)
        self._progress.look(points, n_bytes, asked)

    def _newest(self) -> checkpoints.Checkpoint | None:
        """The newest valid checkpoint; broken ones are named and moved out of Trainer's way."""
        for broken in [one for one in self._found() if one.why_not]:
            moved = checkpoints.set_aside(broken)
            text = f"{broken.folder.name} is not valid: {broken.why_not}; it is now {moved}"
            print(f"--- {text}", flush=True)
            self._progress.note("broken", text, level="warning", step=broken.step)
        return checkpoints.newest(self._found())

    def _found(self) -> list[checkpoints.Checkpoint]:
        return checkpoints.find(self._output, self._settings.weights_only)

    def _is_finished(self) -> bool:
        newest = checkpoints.newest(self._found())
        return newest is not None and is_reached(checkpoints.state(newest.folder), self._settings)

    def folders_of_curves(self) -> list[Path]:
        """Where it may write event files."""
        runs = self._output / "runs"  # Trainer's default
        return [self._repository / self._settings.logging_dir, runs] if self._settings.logging_dir else [runs]

    def _environment(self) -> Mapping[str, str]:
        env = {name: value for name, value in os.environ.items() if name not in _NOT_FOR_IT}
        env["PYTHONPATH"] = str(self._repository)
        env["PATH"] = f"{self._python.parent}:{env.get('PATH', os.defpath)}"
        env["PYTHONUNBUFFERED"] = "1"
        return env


def reason_of(error: OSError) -> str:
    """What happened; what to do."""
    advice = "see that it can be read and written on this box"
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        advice = "free some space on the volume or make it larger"
    return f"{error.filename or 'a file'}: {error.strerror or error}; {advice}, then start it again"


def script_of(given: argparse.Namespace, repository: Path) -> Path:
    """The script to run. Raises Refusal."""
    names = [given.script] if given.script else ["scripts/train.py", f"{Path(given.config).parent}/train.py"]
    found = next((repository / name for name in names if (repository / name).is_file()), None)
    if found is None:
        raise Refusal(f"there is no {' nor '.join(names)} in {repository}; name the script with --script")
    return found


def requirements_of(given: argparse.Namespace, repository: Path) -> Path:
    """The file that the environment is made from; it may not be there."""
    if given.requirements:
        return repository / str(given.requirements)
    beside = (repository / given.config).with_name("requirements.txt")
    return beside if beside.is_file() else repository / "requirements.txt"


def price(given: argparse.Namespace) -> float:
    """USD per hour of this box; 0 if nobody said. Raises Refusal."""
    text = os.environ.get("HOURLY_COST_USD") or "0"
    try:
        usd = float(text) if given.usd_per_hour is None else given.usd_per_hour
    except ValueError:
        raise Refusal(f"HOURLY_COST_USD={text} is not a number; correct it in .env") from None
    if not 0 <= usd < math.inf:
        raise Refusal(f"{usd:g} is not a price per hour; correct HOURLY_COST_USD or --usd-per-hour")
    if given.max_usd is not None and usd == 0:
        raise Refusal("--max-usd needs the price of this box; give --usd-per-hour")
    return float(usd)


def limits_of(given: argparse.Namespace, began: float, usd_per_hour: float) -> supervise.Limits:
    """When to end it: the nearer one of the limits in time and in dollars."""
    hours = {}
    if given.max_hours is not None:
        hours[f"its limit of {given.max_hours:g} hours"] = given.max_hours
    if given.max_usd is not None:
        hours[f"its limit of ${given.max_usd:g}"] = given.max_usd / usd_per_hour
    why = min(hours, key=lambda name: hours[name], default="")
    return supervise.Limits(
        until=began + hours[why] * 3600 if why else None,
        why_until=why,
        stall_s=given.stall_min * 60,
        grace_s=given.grace_s,
    )


if __name__ == "__main__":
    sys.exit(main())
