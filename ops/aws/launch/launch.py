"""Carry out a launch plan: one machine, checked and with a deadline, or nothing at all.

Under the lease it looks once more for this project's machines, then asks zone by zone, the cheapest first.
Whatever goes wrong, a Ctrl-C included, what was started is ended before the error is raised.
Two launches at once rent one machine: by the lease, and should that fail, the younger machine is ended.
Decides nothing about money: that is in the plan.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime, timedelta
from typing import Any

from ops import interrupts
from ops.aws import machines, regions, rent, schedule
from ops.aws.account import network
from ops.aws.errors import FAULTS, code_of, explained
from ops.aws.launch import verify
from ops.aws.launch.lease import LaunchLease
from ops.aws.launch.plan import Candidate, LaunchPlan
from ops.aws.machines import Machine
from ops.aws.rent import Rental, Timeouts
from ops.aws.session import Aws
from worker.amounts import count
from worker.errors import UserError
from worker.store.open import open_store

# Another zone or type may have what this one lacks.
NEXT = {
    "InsufficientInstanceCapacity": "no free machine there now",
    "InsufficientHostCapacity": "no free machine there now",
    "UnfulfillableCapacity": "no free machine there now",
    "InsufficientCapacity": "no free machine there now",
    "Unsupported": "this type is not offered in that zone",
    "UnsupportedOperation": "this type cannot be rented in this way",
    "InvalidParameterCombination": "this type does not take these settings",
    "InvalidArchitecture": "the image is for another processor",
    "InvalidInstanceType": "EC2 has no such type there",
    "InsufficientFreeAddressesInSubnet": "its network has no free address",
    "SpotMaxPriceTooLow": "its price went over the maximum price",
}


@dataclass(frozen=True)
class LaunchResult:
    """`started` is the new machine; without one, `there` are those that were there already."""

    started: Machine | None
    there: Sequence[Machine] = ()


Tell = Callable[[str], None]


def existing(aws: Aws, tell: Tell) -> list[Machine]:
    """The machines of workers in every region, with a warning for each region that does not answer.

    The build box of `inv image` is not a worker's: a launch may run beside it.
    """
    found = machines.find(aws, regions.enabled(aws))
    for line in [*found.problems(), *found.notes()]:
        tell(f"warning: {line}")
    everything = [machine for answer in found.answers.values() for machine in answer]
    return [machine for machine in everything if not machine.builds_image]


def carry_out(
    aws: Aws,
    plan: LaunchPlan,
    another: bool,
    tell: Tell,
    timeouts: Timeouts | None = None,
) -> LaunchResult:
    """Rent the machine. Raises UserError when there is none to be had; then nothing is left running."""
    timeouts = timeouts or rent.TIMEOUTS
    launch = _Launch(aws, plan, tell, timeouts)
    lease = LaunchLease(open_store(f"s3://{plan.boot.bucket}"), tell, poll_s=timeouts.poll / 2)
    with interrupts.terminate_as_interrupt(), launch.undone_on_error():
        try:
            with lease, launch.undone_on_error():  # undone before another launch may look
                there = existing(aws, tell)
                if there and not another:
                    return LaunchResult(None, there)
                launch.ensure_group()
                launch.upload_code()
                machine = launch.rent(lease)
                launch.refuse_younger(machine, {known.id for known in there})
        except _OlderLaunch as older:
            return LaunchResult(None, older.machines)
        armed = launch.arm_schedule(machine, last=False)
        machine = launch.checked(launch.running(machine))
        if not armed:  # EventBridge sees a new role some seconds after IAM has made it
            launch.arm_schedule(machine, last=True)
        return LaunchResult(machine)


def dry_run(aws: Aws, plan: LaunchPlan, tell: Tell) -> None:
    """Have EC2 check a request of each type without acting on it. Raises UserError if it accepts none."""
    accepted: set[str] = set()
    refusals = _Refusals(aws, tell)
    for candidate in plan.candidates:
        if candidate.instance_type in accepted:
            continue
        try:
            rent.dry_run(aws, plan.machine(candidate))
        except FAULTS as error:
            refusals.add(candidate, error)
            continue
        accepted.add(candidate.instance_type)
        tell(f"EC2 would accept the request for {candidate.instance_type} in {candidate.zone}")
    if not accepted:
        raise refusals.error()


class _Refusals:
    """The offers that EC2 refused, and why."""

    def __init__(self, aws: Aws, tell: Tell) -> None:
        self._aws, self._tell = aws, tell
        self._offers: dict[str, list[str]] = {}  # by reason

    def add(self, offer: Candidate, error: Exception) -> None:
        """Note and report a refusal. Raises UserError if another offer would be refused as well."""
        code = code_of(error)
        if code not in NEXT:
            raise explained(error, self._aws.region) from None
        where = f"{offer.instance_type} in {offer.zone}"
        self._tell(f"  refused {where}: {NEXT[code]} ({code})")
        self._offers.setdefault(NEXT[code], []).append(where)

    def error(self) -> UserError:
        """One line with every reason."""
        n = sum(len(offers) for offers in self._offers.values())
        reasons = ", ".join(f"{reason} ({', '.join(offers)})" for reason, offers in self._offers.items())
        return UserError(
            f"none of {count(n, 'offer')} could be rented, nothing is running: {reasons}; try later, "
            "or give other MUSICGEN_INSTANCE_TYPES, another AWS_DEFAULT_REGION or --on-demand"
        )


class _OlderLaunch(Exception):
    """Another launch was first, in spite of the lease."""

    def __init__(self, machines: Sequence[Machine]):
        super().__init__()
        self.machines = machines


class _Launch:
    """The state of one launch: what was asked for and what is known to have come of it."""

    def __init__(self, aws: Aws, plan: LaunchPlan, tell: Tell, timeouts: Timeouts):
        self._aws, self._plan, self._tell, self._timeouts = aws, plan, tell, timeouts
        self._rental = Rental(aws, plan.boot.run_id, tell, timeouts)

    def ensure_group(self) -> None:
        """Create the security group, if there is none yet."""
        needs = self._plan.prerequisites
        if not needs.group:
            group = network.ensure_group(self._aws, network.ssh_source(self._aws.settings))
            self._plan = replace(self._plan, prerequisites=replace(needs, group=group))

    def upload_code(self) -> None:
        """The archive, unless it is there: its name is its checksum."""
        release = self._plan.boot.release
        if not release.archive:
            return
        request = {"Bucket": self._plan.boot.bucket, "Key": release.key, "sha256": release.sha256}
        with self._aws.audit.action("s3.put_object", request) as done:
            new = open_store(self._plan.output).create(release.key, release.archive)
            done({"new": bool(new)})

    def rent(self, lease: LaunchLease) -> Machine:
        """The machine, as soon as every search finds it."""
        # Counted from now, not from the plan: the user may have thought long.
        now, lifetime = datetime.now(UTC), timedelta(seconds=self._plan.boot.lifetime_s)
        self._plan = self._plan.ending_at(now + lifetime)
        refusals = _Refusals(self._aws, self._tell)
        for candidate in self._plan.candidates:
            lease.check()
            self._tell(f"asking for {candidate.instance_type} in {candidate.zone} ...")
            try:
                instance = self._rental.rent(self._plan.machine(candidate))
            except FAULTS as error:
                refusals.add(candidate, error)
                continue
            return self._visible(instance)
        raise refusals.error()

    def _visible(self, instance: str) -> Machine:
        """Wait until a search by tag finds it: only then may the lease be released."""
        end_s = time.monotonic() + self._timeouts.visible
        while True:
            found = machines.in_region(self._aws, self._aws.region, RunId=self._plan.boot.run_id)
            for machine in found:
                if machine.id == instance:
                    return machine
            if time.monotonic() > end_s:
                raise UserError(
                    f"EC2 does not show {instance} after it was rented; it was ended, run it again"
                )
            time.sleep(self._timeouts.poll)

    def refuse_younger(self, machine: Machine, known: set[str]) -> None:
        """Raises _OlderLaunch if another machine was started meanwhile and is older."""
        others = [other for other in existing(self._aws, self._tell) if other.id not in known | {machine.id}]
        older = [o for o in others if (o.launched_at, o.id) < (machine.launched_at, machine.id)]
        if older:
            self._tell(f"another launch was first; ending {machine.id}")
            raise _OlderLaunch(older)

    def arm_schedule(self, machine: Machine, *, last: bool) -> bool:
        """The safeguard outside of the machine. Its own timers work without it: a failure is a warning."""
        try:
            schedule.arm(self._aws, machine.id, self._plan.boot.expires_at)
        except UserError as error:
            if last:
                self._tell(
                    f"warning: no EventBridge schedule ends the machine ({error}); its own timers still do, "
                    "and `inv status` tries again (`inv setup` makes its role)"
                )
            return False
        return True

    def running(self, machine: Machine) -> Machine:
        """Wait until it runs. Raises UserError if it does not start."""
        end_s = time.monotonic() + self._timeouts.running
        found: dict[str, Any] = {}
        while machine.state == "pending":
            if time.monotonic() > end_s:
                raise UserError(f"{machine.id} did not start in time; it was ended, run it again")
            time.sleep(self._timeouts.poll)
            if found := machines.described(self._aws, machine.id):
                machine = machines.machine(found, machine.region)
        if machine.state != "running":
            reason = found.get("StateReason", {}).get("Message", "no reason given")
            raise UserError(f"EC2 ended {machine.id} at once ({reason}); run it again")
        return machine

    def checked(self, machine: Machine) -> Machine:
        """The machine itself if it is what was asked for. Raises UserError otherwise."""
        wrong = verify.wrong(self._aws, self._plan, machine, self._timeouts)
        if wrong:
            raise UserError(f"{machine.id} is not what was asked for ({'; '.join(wrong)}); it was ended")
        return machine

    @contextmanager
    def undone_on_error(self) -> Iterator[None]:
        """Nothing that this launch started keeps running after an error of the block."""
        try:
            yield
        except BaseException:
            with suppress(KeyboardInterrupt, Exception):  # the block's own error is raised
                self._rental.end()
            raise
