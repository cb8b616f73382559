"""End everything of this project: machines, spot requests, volumes, schedules, snapshots of no image.

Images stay: `inv image --remove` removes them.

Machines are ended as soon as they are listed: another question may hang for minutes. Then spot requests
are cancelled, as a persistent one starts another machine in place of the ended one; all of it is listed
again until nothing is left. What cannot be ended is named, and nothing counts as ended
before AWS no longer lists it.
"""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ops.aws import schedule
from ops.aws.fleet.status import RegionInventory, look, n_images, problems
from ops.aws.machines import Machine
from ops.aws.regions import ask_each
from ops.aws.session import Aws
from worker.errors import UserError
from worker.timestamps import stamp

Tell = Callable[[str], None]

POLL_S = 3.0
LIMIT_S = 300.0
# Lists at least so often, however slow AWS is; a region may answer the next time.
_LEAST_LOOKS = 3


@dataclass
class KillResult:
    """What was ended, what is left, and the regions and questions that got no answer."""

    ended: list[str] = field(default_factory=list)
    left: list[str] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    n_images: int = 0  # that stay
    n_regions: int = 0  # that answered


def rows(found: dict[str, RegionInventory]) -> list[dict[str, Any]]:
    """Everything that would be ended."""
    shown: list[dict[str, Any]] = []
    for region, here in found.items():
        for machine in here.machines:
            since = stamp(machine.launched_at)
            detail = f"{machine.instance_type}, {machine.state}, launched {since}"
            shown.append({"what": "machine", "id": machine.id, "region": region, "detail": detail})
        shown += [
            {"what": left.what, "id": left.id, "region": left.region, "detail": left.detail}
            for left in here.leftovers
        ]
    return shown


def kill(aws: Aws, regions: Sequence[str], tell: Tell) -> KillResult:
    """End all of it, and list again until nothing is left or LIMIT_S have passed.

    Each region ends what it shows as soon as it shows it, whatever another region or question does.
    """
    end_s = time.monotonic() + LIMIT_S
    killing = _Killing(aws, tell)
    looks = 0
    while True:
        found = ask_each(regions, killing.look_and_end)
        killing.done.problems, killing.done.n_images = problems(found), n_images(found)
        killing.done.n_regions = len(found.answers)
        killing.done.left = [row["id"] for row in rows(found.answers)]
        looks += 1
        unsure = killing.done.problems and looks < _LEAST_LOOKS
        if not killing.done.left and not unsure:
            return killing.done
        if looks > _LEAST_LOOKS and time.monotonic() > end_s:
            return killing.done
        time.sleep(POLL_S)


class _Killing:
    """What one `kill` has ended and said so far; several regions use it at once."""

    def __init__(self, aws: Aws, tell: Tell) -> None:
        self._aws, self._tell = aws, tell
        self.done = KillResult()
        self._warned: set[str] = set()
        self._lock = threading.Lock()

    def look_and_end(self, region: str) -> RegionInventory:
        def end_first(found: list[Machine]) -> None:
            alive = [machine.id for machine in found if machine.state != "shutting-down"]
            self._end(region, "terminate_instances", "InstanceIds", alive)

        here = look(self._aws, region, end_first)
        for operation, parameter, ids in _in_order(here):
            self._end(region, operation, parameter, ids)
        for name in _ids(here, "schedule"):
            self._try(name, lambda name=name: schedule.remove(self._aws, name, region))  # type: ignore[misc]
        return here

    def _end(self, region: str, operation: str, parameter: str, ids: Sequence[str]) -> None:
        """In one call, where EC2 takes several; if it refuses that, one by one: one may be protected."""

        def call(value: object) -> object:
            return self._aws.end("ec2", operation, region=region, **{parameter: value})

        if parameter.endswith("Ids") and len(ids) > 1:
            try:
                call(list(ids))
            except UserError:
                pass  # its reason comes with the one that it is about
            else:
                for each in ids:
                    self._ended(each)
                return
        for each in ids:
            value = [each] if parameter.endswith("Ids") else each
            self._try(each, lambda value=value: call(value))  # type: ignore[misc]

    def _try(self, what: str, call: Callable[[], object]) -> None:
        try:
            call()
        except UserError as error:
            self._failed(what, error)
        else:
            self._ended(what)

    def _failed(self, what: str, error: UserError) -> None:
        with self._lock:
            if what not in self._warned:
                self._tell(f"warning: {what}: {error}")
            self._warned.add(what)

    def _ended(self, what: str) -> None:
        with self._lock:
            if what not in self.done.ended:
                self._tell(f"ending {what}")
                self.done.ended.append(what)


def _ids(here: RegionInventory, kind: str) -> list[str]:
    return [left.id for left in here.leftovers if left.what == kind]


def _in_order(here: RegionInventory) -> list[tuple[str, str, list[str]]]:
    """What ends each kind of thing but the machines: EC2's operation, the parameter for the ids, the ids."""
    return [
        ("cancel_spot_instance_requests", "SpotInstanceRequestIds", _ids(here, "spot request")),
        ("delete_volume", "VolumeId", _ids(here, "volume")),
        ("delete_snapshot", "SnapshotId", _ids(here, "snapshot")),
    ]
