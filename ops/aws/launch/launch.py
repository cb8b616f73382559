"""Carry an order out: one machine, checked and with a death date, or nothing at all.

Under the lease it looks once more for machines of ours, then asks zone by zone, the cheapest first.
Whatever goes wrong, a Ctrl-C included, what was started is ended before the error leaves.
Two launches at once end in one machine: by the lease, and should that fail, the younger one is ended.
Decides nothing about money: that is in the order.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime

from botocore.exceptions import BotoCoreError, ClientError

from ops import interrupts
from ops.aws import machines, regions, schedule
from ops.aws.account import network
from ops.aws.errors import AGAIN, code_of, explained
from ops.aws.launch import verify
from ops.aws.launch.lease import LaunchLease
from ops.aws.launch.plan import Candidate, Order
from ops.aws.machines import Machine
from ops.aws.session import Aws
from worker.errors import UserError
from worker.store.open import open_store

# Another zone or type may have what this one lacks.
NEXT = {
    "InsufficientInstanceCapacity": "no free machine there now",
    "InsufficientHostCapacity": "no free machine there now",
    "UnfulfillableCapacity": "no free machine there now",
    "InsufficientCapacity": "no free machine there now",
    "Unsupported": "this type is not offered in that zone",
    "InsufficientFreeAddressesInSubnet": "its network has no free address",
    "SpotMaxPriceTooLow": "its price went over the highest price",
}
# EC2 sees a new instance profile some time after IAM does.
FRESH_PROFILE = "InvalidIamInstanceProfile"


@dataclass(frozen=True)
class Patience:
    """How long to wait for what, in seconds."""

    look: float = 1.0
    lease: float = 0.5
    fresh_profile: float = 120.0
    busy: float = 20.0
    visible: float = 60.0
    running: float = 300.0
    strays: float = 15.0  # until a machine whose id was never heard must have shown itself


PATIENCE = Patience()


@dataclass(frozen=True)
class Outcome:
    """`started` is the new machine; else `there` are those that were there already."""

    started: Machine | None
    there: Sequence[Machine] = ()


Tell = Callable[[str], None]


def existing(aws: Aws, tell: Tell) -> list[Machine]:
    """Our workers' machines in every region, with a warning for each region that does not answer.

    The build box of `inv image` is none: it stands in no launch's way.
    """
    found = machines.find(aws, regions.enabled(aws))
    for line in found.complaints():
        tell(f"warning: {line}")
    everything = [machine for answer in found.answers.values() for machine in answer]
    return [machine for machine in everything if not machine.builds_image]


def carry_out(
    aws: Aws,
    order: Order,
    another: bool,
    tell: Tell,
    patience: Patience | None = None,
) -> Outcome:
    """Rent the machine. Raises UserError when there is none to be had; then nothing is left running."""
    patience = patience or PATIENCE
    launch = _Launch(aws, order, tell, patience)
    lease = LaunchLease(open_store(f"s3://{order.bucket}"), tell, look_s=patience.lease)
    with interrupts.terminate_as_interrupt(), launch.undone_on_error():
        try:
            with lease, launch.undone_on_error():  # undone before another launch may look
                there = existing(aws, tell)
                if there and not another:
                    return Outcome(None, there)
                launch.make_group()
                launch.upload_code()
                machine = launch.rent(lease)
                launch.refuse_twin(machine, {known.id for known in there})
        except _Twin as twin:
            return Outcome(None, twin.older)
        launch.arm_schedule(machine)
        return Outcome(launch.checked(launch.running(machine)))


def dry_run(aws: Aws, order: Order, tell: Tell) -> None:
    """Have EC2 check the first request of each type without acting on it.

    It proves permission and parameters; not capacity, price or quota. Raises UserError if EC2 would refuse.
    """
    seen = set()
    for candidate in order.candidates:
        if candidate.instance_type in seen:
            continue
        seen.add(candidate.instance_type)
        try:
            aws.client("ec2", attempts=3).run_instances(DryRun=True, **order.request(candidate))
        except ClientError as error:
            if code_of(error) != "DryRunOperation":
                raise explained(error, aws.region) from None
        except BotoCoreError as error:
            raise explained(error, aws.region) from None
        tell(f"EC2 would accept the request for {candidate.instance_type} in {candidate.zone}")


class _Twin(Exception):
    """Another launch was first, in spite of the lease."""

    def __init__(self, older: Sequence[Machine]):
        super().__init__()
        self.older = older


class _Launch:
    """The state of one launch: what was asked for and what is known to have come of it."""

    def __init__(self, aws: Aws, order: Order, tell: Tell, patience: Patience):
        self._aws, self._order, self._tell, self._patience = aws, order, tell, patience
        self._asked = False
        self._unsure = False  # an answer was lost, so a machine may run whose id was never heard
        self._started: list[str] = []

    def make_group(self) -> None:
        """The firewall, if there is none yet."""
        ready = self._order.ready
        if not ready.group:
            group = network.ensure_group(self._aws, network.ssh_source(self._aws.settings))
            self._order = replace(self._order, ready=replace(ready, group=group))

    def upload_code(self) -> None:
        """The archive, unless it is there: its name is its content."""
        release = self._order.release
        if not release.archive:
            return
        request = {"Bucket": self._order.bucket, "Key": release.key, "sha256": release.sha256}
        with self._aws.audit.action("s3.put_object", request) as done:
            new = open_store(self._order.output).create(release.key, release.archive)
            done({"new": bool(new)})

    def rent(self, lease: LaunchLease) -> Machine:
        """The machine, as soon as EC2 shows it to everybody."""
        # Now, not when the plan was made: the user may have thought long.
        self._order = replace(self._order, expires_at=datetime.now(UTC) + self._order.lifetime)
        for candidate in self._order.candidates:
            lease.check()
            place = f"{candidate.instance_type} in {candidate.zone}"
            self._tell(f"asking for {place} ...")
            try:
                instance = self._ask(candidate)
            except ClientError as error:
                code = code_of(error)
                if code not in NEXT:
                    raise explained(error, self._aws.region) from None
                self._tell(f"  refused: {NEXT[code]} ({code})")
                continue
            except BotoCoreError as error:
                raise explained(error, self._aws.region) from None
            return self._visible(instance)
        n = len(self._order.candidates)
        raise UserError(
            f"none of {n} offers could be rented, nothing is running; try later, "
            "or give more MUSICGEN_INSTANCE_TYPES, another AWS_DEFAULT_REGION or --on-demand"
        )

    def _ask(self, candidate: Candidate) -> str:
        """The id of the new instance. Raises botocore's errors."""
        request = self._order.request(candidate)
        # One attempt: EC2 says "no capacity" as a server error, which botocore would repeat.
        client = self._aws.client("ec2", attempts=1)
        started_s = time.monotonic()
        with self._aws.audit.action("ec2.run_instances", request) as done:
            while True:
                waited_s = time.monotonic() - started_s
                try:
                    with interrupts.held(self._tell, "EC2's answer"):
                        self._asked = True
                        answer = client.run_instances(**request)
                        instance = answer["Instances"][0]
                        self._started.append(instance["InstanceId"])
                        done(answer, instance_id=instance["InstanceId"], price_usd=candidate.usd_per_hour)
                    return str(instance["InstanceId"])
                except (ClientError, BotoCoreError) as error:
                    code = code_of(error)
                    unheard = isinstance(error, BotoCoreError)
                    self._unsure = self._unsure or unheard or code in AGAIN
                    self._asked = self._unsure  # else it was refused: there is nothing to end
                    if code == FRESH_PROFILE and waited_s < self._patience.fresh_profile:
                        self._tell("  EC2 does not see the new instance profile yet; trying again")
                    elif not ((code in AGAIN or unheard) and waited_s < self._patience.busy):
                        raise
                time.sleep(max(self._patience.look, min(waited_s, 10.0)))

    def _visible(self, instance: str) -> Machine:
        """Wait until a search by tag finds it: only then may the lease be let go."""
        end_s = time.monotonic() + self._patience.visible
        while True:
            found = machines.in_region(self._aws, self._aws.region, RunId=self._order.run_id)
            for machine in found:
                if machine.id == instance:
                    return machine
            if time.monotonic() > end_s:
                raise UserError(
                    f"EC2 does not show {instance} after it was rented; it was ended, run it again"
                )
            time.sleep(self._patience.look)

    def refuse_twin(self, machine: Machine, known: set[str]) -> None:
        """Raises _Twin if another machine was started meanwhile and is older."""
        others = [other for other in existing(self._aws, self._tell) if other.id not in known | {machine.id}]
        older = [o for o in others if (o.launched_at, o.id) < (machine.launched_at, machine.id)]
        if older:
            self._tell(f"another launch was first; ending {machine.id}")
            raise _Twin(older)

    def arm_schedule(self, machine: Machine) -> None:
        """The belt outside of the machine. Those inside hold without it, so its failure is only told."""
        try:
            schedule.arm(self._aws, machine.id, self._order.expires_at)
        except UserError as error:
            self._tell(
                f"warning: no alarm clock outside of the machine ({error}); its own timers still end it, "
                "and `inv setup` mends this"
            )

    def running(self, machine: Machine) -> Machine:
        """Wait until it runs. Raises UserError if it does not come up."""
        end_s = time.monotonic() + self._patience.running
        while machine.state == "pending":
            if time.monotonic() > end_s:
                raise UserError(f"{machine.id} did not start in time; it was ended, run it again")
            time.sleep(self._patience.look)
            machine = machines.machine(verify.described(self._aws, machine.id), machine.region)
        if machine.state != "running":
            reason = (
                verify.described(self._aws, machine.id)
                .get("StateReason", {})
                .get("Message", "no reason given")
            )
            raise UserError(f"EC2 ended {machine.id} at once ({reason}); run it again")
        return machine

    def checked(self, machine: Machine) -> Machine:
        """The machine itself if it is what was asked for. Raises UserError otherwise."""
        wrong = verify.wrong(self._aws, self._order, machine)
        if wrong:
            raise UserError(f"{machine.id} is not what was asked for ({'; '.join(wrong)}); it was ended")
        return machine

    @contextmanager
    def undone_on_error(self) -> Iterator[None]:
        """Nothing that this launch started survives an error of the block."""
        try:
            yield
        except BaseException:
            self._undo()
            raise

    def _undo(self) -> None:
        """End whatever this launch may have started. A Ctrl-C waits for it."""
        if not self._asked:
            return
        with suppress(KeyboardInterrupt), interrupts.held(self._tell, "the clean-up"):
            try:
                self._end_all()
                self._asked = False
            except UserError as error:
                names = ", ".join(self._started) or "a machine of this launch"
                self._tell(f"WARNING: {names} may still be running ({error}); run: inv kill-all")

    def _end_all(self) -> None:
        self._tell("ending what this launch may have started ...")
        began_s = time.monotonic()
        # A machine whose id was never heard must be given time to show itself.
        settled_s = began_s + (0 if self._started else self._patience.strays)
        to_end = set(self._started)
        looks = 0  # however slow AWS is
        while True:
            found = machines.in_region(self._aws, self._aws.region, RunId=self._order.run_id)
            to_end |= {machine.id for machine in found}
            to_end = {instance for instance in to_end if not self._end(instance)}
            if not to_end and not found and time.monotonic() >= settled_s:
                break
            looks += 1
            if looks > 3 and time.monotonic() > began_s + self._patience.visible:
                raise UserError(f"{', '.join(sorted(to_end)) or found[0].id} does not end")
            time.sleep(self._patience.look)
        for instance in self._started:
            with suppress(UserError):
                schedule.remove(self._aws, schedule.name_for(instance))
        self._tell("nothing of this launch is running")

    def _end(self, instance: str) -> bool:
        """True if EC2 has taken the order; it may not know a new machine everywhere yet."""
        ids, unseen = [instance], ("InvalidInstanceID.NotFound",)
        with self._aws.audit.action("ec2.terminate_instances", {"InstanceIds": ids}, ends=True) as done:
            answer = self._aws.ask("ec2", "terminate_instances", absent=unseen, InstanceIds=ids)
            done(answer, instance_id=instance)
        return answer is not None
