"""`inv status`, `inv logs` and `inv kill-all` over every cloud: asked at once, shown together.

What one cloud answers hides nothing of another: one that does not answer, also by a fault of this program, is
a warning and exit code 1, and the others are shown and ended all the same. One without credentials here is
named, and not asked.
"""

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

from ops import clouds, ui
from ops.cloud import Cloud
from ops.settings import Settings
from worker.errors import BadInput, UserError
from worker.store.base import Store
from worker.store.open import open_store

T = TypeVar("T")
# How often a wait is interrupted: on Windows a Ctrl-C is only noticed then.
_POLL_S = 0.2


@dataclass(frozen=True)
class _Answers(Generic[T]):
    """What each cloud answered, in the order of the table, and why the others did not."""

    given: dict[str, T]
    failed: dict[str, BaseException]

    def warn(self) -> None:
        """Name each cloud that did not answer."""
        for line in self.reasons():
            ui.say(f"warning: could not ask {line}")

    def reasons(self) -> list[str]:
        """`AWS: it does not answer; ...` of each cloud that did not."""
        return [f"{name}: {_in_words(error)}" for name, error in self.failed.items()]

    def lines(self, of: Callable[[T], str]) -> list[str]:
        """A line of each; with the cloud's name where several were asked."""
        several = len(self.given) + len(self.failed) > 1
        return [f"{name}: " * several + of(answer) for name, answer in self.given.items()]

    def rows(self, of: Callable[[T], Sequence[dict[str, Any]]]) -> list[dict[str, Any]]:
        """The rows of all of them."""
        return [{"cloud": name} | row for name, answer in self.given.items() for row in of(answer)]


def show_status(settings: Settings, region: str, *, json: bool) -> bool:
    """Show what this project has; True if nothing is wrong."""
    settings.export_aws()  # progress comes from the bucket, also of machines elsewhere
    found = _ask_each(_to_ask(settings, region), lambda cloud: cloud.inventory(settings, region, ui.say))
    if json:
        ui.show(found.rows(lambda inventory: inventory.rows), json=True)
    else:
        for inventory, line in zip(
            found.given.values(), found.lines(lambda inventory: inventory.closing), strict=True
        ):
            for table in inventory.tables:
                ui.show(table, red=lambda row: bool(row.get("overdue")))
            ui.say(line)
    for inventory in found.given.values():
        for line in inventory.warnings:
            ui.say(f"warning: {line}")
    found.warn()
    for inventory in found.given.values():
        inventory.mend()
    return not found.failed and not any(inventory.wrong for inventory in found.given.values())


def kill_all(settings: Settings, region: str, *, dry_run: bool, yes: bool, json: bool) -> bool:
    """Show, ask, end and look again; True if nothing is left. Raises UserError if something may be."""
    settings.export_aws()
    asked = _to_ask(settings, region)
    found = _ask_each(asked, lambda cloud: cloud.doomed(settings, region, ui.say))
    for doomed in found.given.values():
        for line in [*doomed.unanswered, *doomed.notes]:
            ui.say(f"warning: {line}")
    found.warn()
    sure = not found.failed and not any(doomed.unanswered for doomed in found.given.values())
    listed = found.rows(lambda doomed: doomed.rows)
    if not listed:
        if json:
            ui.show([], json=True)
        for line in found.lines(lambda doomed: doomed.closing):
            ui.say(line)
        return sure
    if not ui.agreed(listed, "End all of it?", yes=yes, dry_run=dry_run, json=json):
        return sure
    ended = _ask_each(asked, lambda cloud: cloud.end_all(settings, region, ui.say))
    for line in ended.lines(
        lambda done: f"ended {done.n_ended}" + ("" if done.failures else f"; {done.closing}")
    ):
        ui.say(line)
    wrong = [line for done in ended.given.values() for line in done.failures]
    wrong += [f"could not ask {line}; something may be left" for line in ended.reasons()]
    if wrong:
        raise UserError("\n".join(wrong))
    return True


def show_logs(settings: Settings, run_id: str, console: str, lines: int) -> None:
    """Print a run's log, or what a machine has printed."""
    if lines < 0:
        raise BadInput("--lines is a number of lines; leave it out for all of them")
    settings.export_aws()
    if console:
        text = _console(settings, console)
    else:
        from ops.aws.launch import prepare  # here and below: boto3 takes a second

        bucket, prefix = prepare.output(settings)
        text = _log(settings, open_store(f"s3://{bucket}/{prefix}".rstrip("/")), run_id)
    ui.write("\n".join(text.splitlines()[-lines:] if lines else text.splitlines()))


def _log(settings: Settings, store: Store, run_id: str) -> str:
    """The log of a run, by default the newest; of one that has sent nothing yet, its machine's console."""
    from ops.aws import runs

    if run_id and (text := runs.log(store, run_id)) is not None:
        ui.say(f"run {run_id}")
        return text
    machine_of = _machines(settings, store.location)
    run_id = run_id or max([*machine_of, *runs.known(store)], default="")
    if not run_id:
        raise UserError(f"no run in {store.location} yet, and no machine for one; see: inv status")
    if (text := runs.log(store, run_id)) is not None:
        ui.say(f"run {run_id}")
        return text
    if run_id not in machine_of:
        raise UserError(f"run {run_id} has sent no log, and its machine has ended; see: inv status")
    ui.say(f"run {run_id} has sent no log yet; the console of {machine_of[run_id]}:")
    return _console(settings, machine_of[run_id])


def _machines(settings: Settings, output: str) -> dict[str, str]:
    """The machine of each run with this output; a cloud that does not answer is reported."""
    asked = [cloud for cloud in clouds.CLOUDS if not _not_set_up(cloud, settings)]
    found: dict[str, str] = {}
    for cloud in asked:
        try:
            found |= cloud.runs(settings, output, ui.say)
        except Exception as error:  # the bucket may have what was asked for
            ui.say(f"warning: could not look for machines: {_in_words(error)}")
    return found


def _console(settings: Settings, machine: str) -> str:
    cloud = clouds.of_id(machine)
    if cloud is None:
        raise BadInput(f"{machine} is not the id of a machine; see which there are: inv status")
    text = cloud.console(settings, machine)
    if not text.strip():
        raise UserError(f"{machine} has no console output yet; {cloud.name} may be some minutes behind")
    return text


def _to_ask(settings: Settings, region: str) -> list[Cloud]:
    """The clouds that are set up here, and that --region is about; each other one is named.

    If none is, all of them: their errors say what is missing.
    """
    why = {
        cloud.name: "--region is not about it"
        if region and not cloud.has_regions
        else _not_set_up(cloud, settings)
        for cloud in clouds.CLOUDS
    }
    asked = [cloud for cloud in clouds.CLOUDS if not why[cloud.name]]
    if not asked:
        return [cloud for cloud in clouds.CLOUDS if cloud.has_regions or not region]
    for name, reason in why.items():
        if reason:
            ui.say(f"{name} was not asked: {reason}")
    return asked


def _not_set_up(cloud: Cloud, settings: Settings) -> str:
    """Why there is nothing to ask it with; empty where that cannot be found out: asking it then says why."""
    try:
        return cloud.not_set_up(settings)
    except Exception:
        return ""


def _ask_each(asked: Sequence[Cloud], ask: Callable[[Cloud], T]) -> _Answers[T]:
    """All at once. Raises the error of the only one, or a UserError with all of them if none answered."""
    if len(asked) == 1:
        return _Answers({asked[0].name: ask(asked[0])}, {})
    given: dict[str, T] = {}
    failed: dict[str, BaseException] = {}

    def one(cloud: Cloud) -> None:
        try:
            given[cloud.name] = ask(cloud)
        except BaseException as error:
            failed[cloud.name] = error

    # Daemons: a Ctrl-C leaves at once, whatever a cloud is waiting for.
    threads = [threading.Thread(target=one, args=(cloud,), daemon=True) for cloud in asked]
    for thread in threads:
        thread.start()
    for thread in threads:
        while thread.is_alive():
            thread.join(_POLL_S)
    names = [cloud.name for cloud in asked]
    answers = _Answers(
        {name: given[name] for name in names if name in given},
        {name: failed[name] for name in names if name in failed},
    )
    if failed and not given:
        raise UserError("\n".join(answers.reasons()))
    return answers


def _in_words(error: BaseException) -> str:
    """An error in one line: also one that nobody meant for the user."""
    if isinstance(error, UserError):
        return str(error)
    said = " ".join(f"{type(error).__name__}: {error}".split())
    return f"this program failed ({said}); look in that cloud's console"
