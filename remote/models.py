#!/usr/bin/env python3
"""The models on this box: list, get, verify, remove.

    python -B remote/models.py list [--json]
    python -B remote/models.py get|verify|remove NAME [--json]

Runs in the worker's environment, from a release's folder, with the paths of env.sh and the settings of
worker.env; `bash remote/busy.sh models LIMIT_S -- ...` has the watchdog count it as work. Prints a line from
time to time, with --json a JSON object at the end; the same is in state/models/NAME.json all the time.
Exit codes: 0 done, 1 failed or damaged, 2 a wrong argument or setting, or files that are no model, 75
stopped; then one `error:` line. Prints no secret.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any

import check

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))  # the release, for `worker`

from worker import amounts, timestamps
from worker.errors import BadInput, Interrupted, UserError
from worker.host.streams import make_lasting
from worker.models import fetch, find, places, remove, sets, verify
from worker.models.progress import Meter, Snapshot
from worker.songs import adapter

SCHEMA = 1
EVERY_S = 5.0


def main() -> int:
    """Do what is asked; every error that a user can cause is one line."""
    parser = argparse.ArgumentParser(description="List, get, verify or remove models on this box.")
    tasks = parser.add_subparsers(dest="task", required=True)
    tasks.add_parser("list").add_argument("--json", action="store_true")
    for task in ("get", "verify", "remove"):
        one = tasks.add_parser(task)
        one.add_argument("name")
        one.add_argument("--json", action="store_true")
    arguments = parser.parse_args()
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    try:
        return run(arguments)
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        return error.code
    except KeyboardInterrupt:
        print("error: stopped; run it again to resume", file=sys.stderr)
        return Interrupted.code


def run(arguments: argparse.Namespace) -> int:
    """Do what is asked; -> the exit code."""
    try:
        env = check.box_environment()
    except subprocess.CalledProcessError:
        raise UserError("the settings of this box cannot be read; run the install phase again") from None
    if arguments.task == "list":
        show_list(find.inventory(env), as_json=arguments.json)
        return 0
    wanted = sets.find(arguments.name)
    state = StateFile(env, wanted.name)
    work = {"get": get, "verify": verify_set, "remove": remove_set}[arguments.task]
    done = work(wanted.name, env, state)
    if arguments.json:
        print(json.dumps(done))
    return int(done.get("code", 0))


class StateFile:
    """state/models/NAME.json: what is being done with a model. A full disk is no error."""

    def __init__(self, env: Mapping[str, str], name: str) -> None:
        folder = Path(env["MUSICGEN_BOX_ROOT"]) / "state" / "models"
        self._path = folder / f"{places.folder_name(name)}.json"
        self._known: dict[str, Any] = {"schema": SCHEMA, "model": name, "pid": os.getpid()}

    def write(self, state: str, now: Snapshot | None = None, error: str | None = None) -> None:
        """`state`: fetching, waiting, verifying, done, damaged, failed or interrupted."""
        found = self._known | {"state": state, "updated_at": timestamps.now(), "error": error}
        found |= asdict(now) if now else {}
        unfinished = self._path.with_suffix(f".{os.getpid()}.new")
        try:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            unfinished.write_text(json.dumps(found) + "\n", "utf-8")
            unfinished.replace(self._path)
        except OSError:
            unfinished.unlink(missing_ok=True)

    def forget(self) -> None:
        """There is nothing to say of this model."""
        self._path.unlink(missing_ok=True)

    @contextmanager
    def kept(self, state: str) -> Iterator[None]:
        """This state, and how it ended if it failed."""
        self.write(state)
        try:
            yield
        except BadInput:
            self.forget()  # nothing was started
            raise
        except KeyboardInterrupt:
            self.write("interrupted")
            raise
        except UserError as error:
            self.write("failed", error=str(error))
            raise

    def meter(self, state: str) -> Callable[[int, int, str], None]:
        """Shows progress here and on stdout."""

        def show(now: Snapshot) -> None:
            say(f"{state} {self._known['model']}: {now}")
            self.write(state, now)

        return Meter(show, every_s=EVERY_S)


def get(name: str, env: Mapping[str, str], state: StateFile) -> dict[str, Any]:
    """Have it complete here."""

    def tell(line: str) -> None:
        say(f"{name}: {line}")
        if "waiting" in line:
            state.write("waiting")

    with state.kept("fetching"):
        got = fetch.get(name, env, tell=tell, progress=state.meter("fetching"))
    state.write("done")
    say(got.summary())
    return asdict(got) | {"folder": str(got.folder)}


def verify_set(name: str, env: Mapping[str, str], state: StateFile) -> dict[str, Any]:
    """Compare every file with its checksum."""
    with state.kept("verifying"):
        found = verify.check(name, env, state.meter("verifying"))
    state.write("damaged" if found.faults else "done")
    for fault in found.faults:
        say(f"{name}: {fault}")
    if found.faults:
        print(f"error: {found.summary()}", file=sys.stderr)
    else:
        say(found.summary())
    faults = [fault._asdict() for fault in found.faults]
    return found._asdict() | {"folder": str(found.folder), "faults": faults}


def remove_set(name: str, env: Mapping[str, str], state: StateFile) -> dict[str, Any]:
    """Delete it, unless a run uses it."""
    if user := used_by(name, env):
        raise UserError(f"the model {name} is in use by {user}; stop that first (fab stop)")
    n_bytes = remove.remove(name, env, tell=lambda line: say(f"{name}: {line}"))
    state.forget()
    say(f"{name} is removed: {amounts.size(n_bytes)} are free again")
    return {"name": name, "n_bytes": n_bytes}


def used_by(name: str, env: Mapping[str, str]) -> str:
    """What on this box has the model loaded, or may be about to: a run, or a trial; "" if nothing has.

    A run of another box on the same network volume is not seen: its lock is on its own disk.
    """
    if tried_by(name, env):
        return "a trial (--smoke)"
    if not check.run_is_on(env):
        return ""
    if is_of_set(env.get("MUSICGEN_MODEL", ""), name, env):
        return "the run that is on"
    state = Path(env["MUSICGEN_BOX_ROOT"]) / "state" / "current"
    try:
        status = json.loads((state / "status.json").read_text("utf-8"))
        run_id, model = status["run_id"], status["model"]
    except (OSError, ValueError, KeyError, TypeError):
        return "the run that is starting"  # with which model is not known yet
    # Of a model folder, only its own name is known.
    is_it = is_of_set(str(model), name, env) or model == places.folder_of(sets.find(name), env).name
    return f"run {run_id}" if is_it else ""


def tried_by(name: str, env: Mapping[str, str]) -> bool:
    """True if a `--smoke` is on that uses the model, or one of which it is not known."""
    home = Path(env["MUSICGEN_BOX_HOME"])
    for busy in home.glob("busy/smoke-*"):
        if not check.is_held(busy):
            continue
        try:
            model = (home / "models" / busy.name / "model").read_text("utf-8").strip()
        except OSError:
            return True
        if is_of_set(model, name, env):
            return True
    return False


def is_of_set(model: str, name: str, env: Mapping[str, str]) -> bool:
    """True if a worker with this MODEL, a name or a folder, loads files of the set."""
    with suppress(BadInput):
        model = adapter.base_model(model)
    if sets.full_name(model) == name:
        return True
    folder = places.folder_of(sets.find(name), env).resolve()
    return bool(model) and places.expanded(model).resolve().is_relative_to(folder)


def show_list(found: list[find.Found], *, as_json: bool) -> None:
    """A row each: what there is, and of what is not here what it would take."""
    if as_json:
        print(json.dumps([asdict(each) for each in found]))
        return
    for each in found:
        about = "" if each.about_bytes is None else f" of about {amounts.size(each.about_bytes)}"
        here = amounts.size(each.n_bytes) + about if each.n_bytes else about.removeprefix(" of ")
        note = f"; {each.note}" if each.note else ""
        print(f"{each.state:<10} {each.name}  {here}  {each.licence}  {each.folder}{note}")


def say(line: str) -> None:
    """A line for whoever follows."""
    print(line, flush=True)


if __name__ == "__main__":
    make_lasting()  # whoever follows may go; the download does not
    code = main()
    sys.stdout.flush()
    if threading.active_count() > 1:  # a request may still hang in a thread
        os._exit(code)
    sys.exit(code)
