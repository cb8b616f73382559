"""What `fab models` and `inv models` share: one set of flags, for models on a box or on this machine.

    act(place, ModelFlags(get="heartmula-3b"))      # `place`: ops.ssh.models.OnBox, or Here

Lists, or does one thing. Asks before it deletes.
"""

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Protocol

from ops import ui
from ops.repository import ROOT
from ops.settings import child_env
from worker.amounts import size
from worker.errors import BadInput, UserError
from worker.models import fetch, find, remove, sets, verify
from worker.models.progress import Meter


@dataclass(frozen=True)
class ModelFlags:
    """What to do, one thing at a time; by default: list."""

    get: str = ""
    verify: bool = False
    remove: str = ""
    smoke: str = ""
    yes: bool = False
    dry_run: bool = False
    json: bool = False


class Place(Protocol):
    """Where models are.

    `goes_on`: what to say after Ctrl-C where a job goes on; `caution`: what to know before a removal.
    """

    goes_on: str
    caution: str

    def listed(self) -> list[dict[str, Any]]:
        """The fields of worker.models.find.Found, of every set."""

    def remove(self, name: str) -> None:
        """Delete what there is of a set. Raises BadInput, UserError where it is in use."""

    def job(self, kind: str, name: str) -> int:
        """`get`, `verify` or `smoke`: print what it does; -> the exit code."""


def act(place: Place, flags: ModelFlags) -> int:
    """Do what the flags say; -> the exit code. Raises BadInput, UserError, Refused."""
    asked = [name for name in ("get", "verify", "remove", "smoke") if getattr(flags, name)]
    if len(asked) > 1:
        raise BadInput(f"--{asked[0]} and --{asked[1]} are two things; give one at a time")
    if flags.json and asked:
        raise BadInput(f"--json is for the list; leave --{asked[0]} out")
    if flags.get:
        return _jobs(place, "get", [sets.find(flags.get).name])
    if flags.smoke:
        return _jobs(place, "smoke", [sets.full_name(flags.smoke)])
    found = place.listed()
    if flags.remove:
        _remove(place, found, flags)
    elif flags.verify:
        return _verify(place, found)
    else:
        ui.show(found if flags.json else [_row(each) for each in found], json=flags.json)
    return 0


def _remove(place: Place, found: list[dict[str, Any]], flags: ModelFlags) -> None:
    name = sets.find(flags.remove).name
    rows = [_row(each) for each in found if each["name"] == name and each["n_bytes"]]
    if not rows:
        raise BadInput(f"there is nothing of the model {name}; see what there is: leave --remove out")
    if ui.agreed(rows, f"delete {name}?{place.caution}", yes=flags.yes, dry_run=flags.dry_run):
        place.remove(name)


def _verify(place: Place, found: list[dict[str, Any]]) -> int:
    names = [each["name"] for each in found if each["state"] in ("complete", "damaged")]
    others = [
        each
        for each in found
        if each["name"] not in names and (each["n_bytes"] or each["state"] == "unknown")
    ]
    if not names and not others:
        raise BadInput("no model is here; fetch one: --get NAME")
    for each in others:
        lacks = (
            f"; fetch what it lacks: --get {each['name']}"
            if each["state"] == "incomplete" and not each["note"]
            else ""
        )
        ui.say(f"{each['name']} is {_state(each)}{lacks}")
    return max(_jobs(place, "verify", names), 1 if others else 0)


def _jobs(place: Place, kind: str, names: list[str]) -> int:
    """One after another; -> the worst exit code. Ctrl-C ends all of it, where a box goes on with one."""
    codes = [0]
    try:
        codes.extend(place.job(kind, name) for name in names)
    except KeyboardInterrupt:
        if not place.goes_on:
            raise
        ui.say(f"\n{place.goes_on}")
        return 0
    return max(codes)


def _state(each: Mapping[str, Any]) -> str:
    return str(each["state"]) + (f": {each['note']}" if each["note"] else "")


def _row(each: Mapping[str, Any]) -> dict[str, str]:
    about = "" if each["about_bytes"] is None else f"about {size(each['about_bytes'])}"
    here = size(each["n_bytes"]) if each["n_bytes"] else ""
    return {
        "model": each["name"],
        "state": _state(each),
        "size": f"{here} of {about}" if each["state"] == "incomplete" else here or about,
        "verified": each["verified_at"],
        "licence": each["licence"],
        "folder": each["folder"],
    }


class Here:
    """This machine."""

    goes_on = ""
    caution = " (a worker that runs on this machine is not seen: stop it first)"

    def listed(self) -> list[dict[str, Any]]:
        return [asdict(each) for each in find.inventory(child_env())]

    def remove(self, name: str) -> None:
        n_bytes = remove.remove(name, child_env(), tell=ui.say)
        ui.say(f"{name} is removed: {size(n_bytes)} are free again")

    def job(self, kind: str, name: str) -> int:
        if kind == "smoke":
            command = [sys.executable, str(ROOT / "remote" / "smoke.py"), name]
            return subprocess.run(command, cwd=ROOT, env=child_env()).returncode
        return self._verify(name) if kind == "verify" else self._get(name)

    def _get(self, name: str) -> int:
        meter = Meter(lambda now: ui.say(f"fetching {name}: {now}"))
        got = fetch.get(name, child_env(), tell=ui.say, progress=meter)
        ui.say(got.summary())
        return 0

    def _verify(self, name: str) -> int:
        meter = Meter(lambda now: ui.say(f"verifying {name}: {now}"))
        try:
            found = verify.check(name, child_env(), meter)
        except UserError as error:  # others may be verified
            ui.say(f"error: {error}")
            return error.code
        for fault in found.faults:
            ui.say(f"{name}: {fault}")
        advice = f": inv models --get {name}" if found.faults and not found.unfit else ""
        ui.say(f"{found.summary()}{advice}")
        return found.code
