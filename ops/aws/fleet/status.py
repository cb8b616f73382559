"""What this project has in AWS, in every region, and what it costs: machines, and what they left behind.

Found by tag, so it does not matter who started it and from where. Changes nothing, but `arm_again` creates
a schedule that a launch could not.
"""

import base64
import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from datetime import datetime, timedelta
from typing import Any

from ops import heartbeats
from ops.aws import machines, runs, schedule
from ops.aws.images import registry
from ops.aws.machines import Machine
from ops.aws.regions import ByRegion, ask_each
from ops.aws.session import PROJECT, Aws
from worker.amounts import count, duration, usd
from worker.errors import UserError
from worker.songs.status import Status
from worker.store.open import open_store
from worker.timestamps import stamp

BOOT_S = 1200.0  # first boot, packages and model included
COPIED = timedelta(minutes=75)
# Instances on their way out still hold their disks.
LEAVING = (*machines.ALIVE, "shutting-down")


@dataclass(frozen=True)
class Leftover:
    """Something that is not a machine, but costs money or may start one."""

    what: str  # spot request, volume, snapshot, schedule
    id: str
    region: str
    detail: str


@dataclass(frozen=True)
class RegionInventory:
    """Everything that this project has in one region, and which questions got no answer."""

    machines: list[Machine]
    leftovers: list[Leftover]
    unanswered: list[str] = field(default_factory=list)
    scheduled: set[str] | None = None  # machines that a schedule ends; None: not known
    images: list[str] = field(default_factory=list)  # kept by kill-all; each bills its snapshots

    @property
    def empty(self) -> bool:
        """True if nothing is known to be left."""
        return not self.machines and not self.leftovers


@dataclass(frozen=True)
class MachineRow:
    """One machine as `inv status` shows it."""

    id: str
    instance_type: str
    zone: str
    state: str
    address: str | None
    age_s: float
    per_hour_usd: float | None
    cost_usd: float | None
    ends_at: str | None
    run: str | None
    eta_s: float | None
    remark: str
    overdue: bool


def survey(aws: Aws, regions: Sequence[str]) -> ByRegion[RegionInventory]:
    """Everything that this project has, by region."""
    return ask_each(regions, lambda region: look(aws, region))


def problems(found: ByRegion[RegionInventory]) -> list[str]:
    """A line for each region and for each single question that got no answer."""
    return found.problems() + [line for here in found.answers.values() for line in here.unanswered]


def n_images(found: ByRegion[RegionInventory]) -> int:
    """How many images this project has."""
    return sum(len(here.images) for here in found.answers.values())


def images_line(n: int) -> str:
    """`1 image stays and is billed (inv image --list)`."""
    return f"{count(n, 'image')} {'stays and is' if n == 1 else 'stay and are'} billed (inv image --list)"


def look(aws: Aws, region: str, act: Callable[[list[Machine]], None] = lambda _: None) -> RegionInventory:
    """Everything that this project has in one region. Raises UserError if its machines cannot be listed.

    Only the machines are needed: what else gets no answer is named and hides nothing. `act` gets them
    before anything else is asked, which may hang for minutes.
    """
    found = machines.in_region(aws, region, LEAVING)
    act(found)
    alive = {machine.id for machine in found}
    here = RegionInventory(found, [])
    parts: dict[str, Callable[[Aws, str, set[str]], Iterator[Leftover]]]
    parts = {"spot requests": _spot_requests, "volumes": _volumes}
    try:
        images = list(aws.pages("ec2", "describe_images", "Images", region=region, **_OWN))
        here.images.extend(image["ImageId"] for image in images)
        parts["snapshots"] = functools.partial(_snapshots, images)
    except UserError as error:
        here.unanswered.append(f"could not list the images in {region}: {error}")
    for what, ask in parts.items():
        try:
            here.leftovers.extend(ask(aws, region, alive))
        except UserError as error:
            here.unanswered.append(f"could not list the {what} in {region}: {error}")
    with suppress(UserError):  # not every region has the scheduler, and a schedule costs nothing
        names = schedule.listed(aws, region)
        for name in schedule.orphans(names, sorted(alive)):
            here.leftovers.append(Leftover("schedule", name, region, "its machine has ended"))
        return replace(here, scheduled={name.removeprefix(schedule.PREFIX) for name in names})
    return here


_TAGGED = {"Name": "tag:Project", "Values": [PROJECT]}
_OWN: dict[str, Any] = {"Owners": ["self"], "Filters": [_TAGGED]}


def _spot_requests(aws: Aws, region: str, alive: set[str]) -> Iterator[Leftover]:
    asked = aws.pages(
        "ec2",
        "describe_spot_instance_requests",
        "SpotInstanceRequests",
        region=region,
        Filters=[_TAGGED, {"Name": "state", "Values": ["open", "active", "disabled"]}],
    )
    for request in asked:
        holder = request.get("InstanceId")
        # A one-time request ends with its machine. An open or a persistent one starts another.
        if request["State"] != "active" or request.get("Type") == "persistent" or holder not in alive:
            detail = f"{request.get('Type', 'one-time')}, {request['State']}"
            yield Leftover("spot request", request["SpotInstanceRequestId"], region, detail)


def _volumes(aws: Aws, region: str, alive: set[str]) -> Iterator[Leftover]:
    free = {"Name": "status", "Values": ["available", "error"]}
    for volume in aws.pages("ec2", "describe_volumes", "Volumes", region=region, Filters=[_TAGGED, free]):
        yield Leftover("volume", volume["VolumeId"], region, f"{volume['Size']} GiB, still billed")


def _snapshots(
    images: Sequence[dict[str, Any]], aws: Aws, region: str, alive: set[str]
) -> Iterator[Leftover]:
    """Snapshots of no image: a build was killed, or a removal. A pending image does not list its own yet."""
    if any(image["State"] == "pending" for image in images):
        return
    used = {snapshot for image in images for snapshot in registry.snapshots_of(image)}
    asked = {"OwnerIds": ["self"], "Filters": [_TAGGED]}
    for snapshot in aws.pages("ec2", "describe_snapshots", "Snapshots", region=region, **asked):
        if snapshot["SnapshotId"] not in used:
            detail = f"{snapshot['VolumeSize']} GiB of no image, still billed"
            yield Leftover("snapshot", snapshot["SnapshotId"], region, detail)


def machine_row(machine: Machine, now: datetime, beat: Status | None) -> MachineRow:
    """A machine with its cost so far and a remark if something is to be known."""
    overdue = machine.overdue(now)
    return MachineRow(
        id=machine.id,
        instance_type=machine.instance_type + ("" if machine.spot else " (on-demand)"),
        zone=machine.zone,
        state=machine.state,
        address=machine.address,
        age_s=machine.age_s(now),
        per_hour_usd=machine.hourly_usd,
        cost_usd=machine.cost_usd(now),
        ends_at=stamp(machine.expires_at) if machine.expires_at else None,
        run=heartbeats.progress(beat) if beat else None,
        eta_s=beat.eta_s if beat else None,
        remark=_remark(machine, now, beat),
        overdue=overdue,
    )


def _remark(machine: Machine, now: datetime, beat: Status | None) -> str:
    if machine.overdue(now) and machine.expires_at:
        late = duration((now - machine.expires_at).total_seconds())
        return f"OVERDUE by {late}; run: inv kill-all"
    if machine.expires_at is None:
        return "no deadline; run: inv kill-all"
    if machine.builds_image:
        return (
            "builds the machine image" if machine.state in machines.WORKING else "its disk becomes the image"
        )
    if machine.state in ("stopping", "stopped"):
        return "stopped, its disk is still billed; run: inv kill-all"
    if machine.state != "running":
        return ""
    if beat is None:
        return "idle: no run has begun; see: inv logs" if machine.age_s(now) > BOOT_S else "booting"
    return heartbeats.quiet(beat, now, "inv logs")


@dataclass(frozen=True)
class FleetStatus:
    """The whole fleet: rows for the table and for --json, and whether something is wrong."""

    machines: list[MachineRow]
    leftovers: list[Leftover]
    problems: list[str]
    n_regions: int  # those that answered
    n_images: int = 0
    unscheduled: list[Machine] = field(default_factory=list)  # that no schedule ends
    notes: list[str] = field(default_factory=list)  # what to know, but nothing wrong

    def rows(self) -> list[dict[str, Any]]:
        """Machines, then what they left behind, in one list."""
        listed = [{"what": "machine"} | asdict(machine) for machine in self.machines]
        return listed + [asdict(leftover) for leftover in self.leftovers]

    @property
    def wrong(self) -> bool:
        """True if a machine is overdue, or a region did not answer."""
        return bool(self.problems) or any(machine.overdue for machine in self.machines)

    def closing_line(self) -> str:
        """`2 machines, $0.41 per hour, $1.02 so far; 1 left behind, see below`."""
        priced = [machine for machine in self.machines if machine.per_hour_usd is not None]
        hourly = sum(machine.per_hour_usd or 0 for machine in priced)
        spent = sum(machine.cost_usd or 0 for machine in priced)
        costs = f", {usd(hourly)} per hour, {usd(spent)} so far" if priced else ""
        if unpriced := len(self.machines) - len(priced):
            costs += f", and {unpriced} of unknown price" if priced else ", price not known"
        left = f"; {len(self.leftovers)} left behind, see below" if self.leftovers else ""
        left += f"; {images_line(self.n_images)}" if self.n_images else ""
        if not self.machines:
            return f"no machine of this project in {count(self.n_regions, 'region')}{left}"
        return f"{count(len(self.machines), 'machine')}{costs}{left}"


def fleet_status(aws: Aws, regions: Sequence[str], now: datetime, tell: Callable[[str], None]) -> FleetStatus:
    """The state of everything that this project has. What does not answer is reported, not hidden."""
    found = survey(aws, regions)
    here, leftovers, unscheduled = [], [], []
    for region in found.answers.values():
        for machine in region.machines:
            if machine.state != "shutting-down":
                here.append(machine_row(machine, now, _beat(machine, tell)))
                ends = machine.expires_at and not machine.overdue(now)
                if ends and region.scheduled is not None and machine.id not in region.scheduled:
                    unscheduled.append(machine)
        leftovers += region.leftovers
    return FleetStatus(
        machines=here,
        leftovers=leftovers,
        problems=problems(found),
        n_regions=len(found.answers),
        n_images=n_images(found),
        unscheduled=unscheduled,
        notes=found.notes(),
    )


def arm_again(aws: Aws, unscheduled: Sequence[Machine], tell: Callable[[str], None]) -> None:
    """Create the schedules that a launch could not; its own timers end a machine all the same."""
    for machine in unscheduled:
        if not machine.expires_at:
            continue
        # The disk of a build box is copied after its deadline.
        latest = machine.expires_at + (COPIED if machine.builds_image else timedelta())
        try:
            schedule.arm(aws, machine.id, latest, machine.region)
        except UserError as error:
            tell(f"warning: no EventBridge schedule ends {machine.id} ({error}); run: inv setup")
        else:
            tell(f"armed the EventBridge schedule that ends {machine.id}")


def _beat(machine: Machine, tell: Callable[[str], None]) -> Status | None:
    if not machine.output:
        return None
    try:
        return runs.of_machine(open_store(machine.output), machine)
    except UserError as error:
        tell(f"warning: no progress of {machine.id}: {error}")
        return None


def console(aws: Aws, instance: str, region: str) -> str:
    """What a machine wrote to its console, as new as EC2 gives it. Raises UserError."""
    # `Latest` works on Nitro machines, as all current GPU types are.
    answer = aws.ask(
        "ec2", "get_console_output", region=region, absent=machines.UNKNOWN, InstanceId=instance, Latest=True
    )
    if answer is None:
        raise UserError(f"no machine {instance} in {region}; see: inv status")
    text = answer.get("Output") or ""
    try:  # botocore decodes it; another implementation of EC2 may not
        return base64.b64decode(text, validate=True).decode("utf-8", "replace")
    except ValueError:
        return str(text)
