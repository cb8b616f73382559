"""One EC2 machine: the request for it, renting it, and ending it. `inv launch` and `inv image` both use this.

    machine = MachineRequest(...)                # plain values; machine.to_ec2() is the whole RunInstances
    rental = Rental(aws, machine.run_id, tell)
    try:
        instance = rental.rent(machine)
    finally:
        rental.end()                             # also what EC2 rented while its answer was lost

Every machine has an encrypted disk that is deleted with it, needs a token for its metadata, and has its
tags from the request itself: nothing is ever running that a search by tag does not find.
Decides nothing about money or zones.
"""

import hashlib
import json
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from typing import Any, TypeVar

from botocore.exceptions import ClientError

from ops import interrupts
from ops.aws import machines, schedule
from ops.aws.errors import AGAIN, FAULTS, code_of
from ops.aws.session import LONGEST_TAG, Aws, tag_list
from worker.errors import UserError
from worker.timestamps import stamp

# EC2 sees a new instance profile up to two minutes after IAM has made it.
FRESH_PROFILE = "InvalidIamInstanceProfile"
# A busy EC2 is asked at least so often, however long each of its answers takes.
_LEAST_TRIES = 3

Tell = Callable[[str], None]
T = TypeVar("T")


@dataclass(frozen=True)
class Timeouts:
    """How long to wait for what, in seconds."""

    poll: float = 1.0
    fresh_profile: float = 150.0
    busy: float = 20.0
    visible: float = 60.0
    running: float = 300.0
    strays: float = 15.0  # until a machine whose id never arrived must be found by its tag


TIMEOUTS = Timeouts()


def seen(ask: Callable[[], T], timeouts: Timeouts | None = None) -> T:
    """The answer about a new machine, asked again while it is empty: EC2 may not know it everywhere yet."""
    limits = timeouts or TIMEOUTS
    end_s = time.monotonic() + limits.visible
    while not (answer := ask()) and time.monotonic() < end_s:
        time.sleep(limits.poll)
    return answer


@dataclass(frozen=True)
class MachineRequest:
    """What is asked of EC2 for one machine."""

    name: str
    run_id: str
    expires_at: datetime
    launched_by: str
    hourly_usd: float | None  # None: not known
    image: str
    root_device: str
    disk_gib: int
    instance_type: str
    profile: str  # name or ARN of the instance profile, or ARN of the role of the same name
    user_data: str
    on_shutdown: str = "terminate"  # or `stop`
    output: str = ""  # s3:// address of its songs
    key_name: str = ""
    subnet: str = ""  # empty: EC2 chooses, in the default VPC
    public_address: bool = True  # False: as the subnet has it
    group: str = ""
    max_price_usd: float | None = None  # None: on-demand

    def to_ec2(self) -> dict[str, Any]:
        """The whole RunInstances request, with its ClientToken. Raises BadInput for an invalid tag."""
        spot = self.max_price_usd is not None
        tags = tag_list(Name=self.name, **self._tags())
        kinds = ["instance", "volume", "network-interface", *["spot-instances-request"] * spot]
        disk = {
            "VolumeSize": self.disk_gib,
            "VolumeType": "gp3",
            "Encrypted": True,
            "DeleteOnTermination": True,
        }
        request: dict[str, Any] = {
            "ImageId": self.image,
            "InstanceType": self.instance_type,
            "MinCount": 1,
            "MaxCount": 1,
            "IamInstanceProfile": _profile(self.profile),
            # What `shutdown -P` inside the machine does.
            "InstanceInitiatedShutdownBehavior": self.on_shutdown,
            "BlockDeviceMappings": [{"DeviceName": self.root_device, "Ebs": disk}],
            "MetadataOptions": {
                "HttpTokens": "required",
                "HttpEndpoint": "enabled",
                "HttpPutResponseHopLimit": 1,
                "InstanceMetadataTags": "enabled",
            },
            "TagSpecifications": [{"ResourceType": kind, "Tags": tags} for kind in kinds],
            "UserData": self.user_data,
        }
        if self.key_name:
            request["KeyName"] = self.key_name
        # A default subnet may have been set to give none, and without one a machine reaches nothing.
        card: dict[str, Any] = {"DeviceIndex": 0, "DeleteOnTermination": True}
        if self.public_address:
            card["AssociatePublicIpAddress"] = True
        if self.subnet:
            card["SubnetId"] = self.subnet
        if self.group:
            card["Groups"] = [self.group]
        request["NetworkInterfaces"] = [card]
        if spot:
            request["InstanceMarketOptions"] = {
                "MarketType": "spot",
                "SpotOptions": {
                    "MaxPrice": f"{self.max_price_usd:.4f}",
                    "SpotInstanceType": "one-time",
                    "InstanceInterruptionBehavior": "terminate",
                },
            }
        # An answer can be lost after EC2 has acted. With the same token a repeated request returns the
        # first instance; a different request needs another token, or EC2 refuses it.
        request["ClientToken"] = hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()[:64]
        return request

    def _tags(self) -> dict[str, str]:
        tags = {
            machines.EXPIRES: stamp(self.expires_at),
            machines.LAUNCHED_BY: self.launched_by[:LONGEST_TAG],
            machines.RUN: self.run_id,
        }
        if self.hourly_usd is not None:
            tags[machines.PRICE] = f"{self.hourly_usd:.6f}"
        if self.output:
            tags[machines.OUTPUT] = self.output
        return tags


def _profile(name_or_arn: str) -> dict[str, str]:
    if ":instance-profile/" in name_or_arn:
        return {"Arn": name_or_arn}
    return {"Name": profile_name(name_or_arn)}


def profile_name(name_or_arn: str) -> str:
    """The name of an instance profile, given by name, by ARN, or by the ARN of the role of that name."""
    return name_or_arn.rpartition("/")[2]


def dry_run(aws: Aws, machine: MachineRequest) -> None:
    """Have EC2 check the request without acting on it. Raises botocore's error if EC2 would refuse it.

    It proves permission and parameters; not capacity, price or quota.
    """
    request = machine.to_ec2() | {"DryRun": True}
    with aws.audit.action("ec2.run_instances", request, dry_run=True) as done:
        try:
            aws.client("ec2").run_instances(**request)
        except ClientError as error:
            if code_of(error) != "DryRunOperation":
                raise
        done("would succeed")


class Rental:
    """What was rented under one run id: one machine at most."""

    def __init__(self, aws: Aws, run_id: str, tell: Tell, timeouts: Timeouts | None = None) -> None:
        self._aws, self._run_id, self._tell = aws, run_id, tell
        self._timeouts = timeouts or TIMEOUTS
        self._asked = False  # there may be something to end
        self._unsure = False  # an answer was lost, so a machine may run whose id never arrived
        self._started: list[str] = []

    def rent(self, machine: MachineRequest) -> str:
        """The id of the new instance. A busy EC2 and a new profile are waited for.

        Raises botocore's errors: for some of them the caller tries another zone.
        """
        request = machine.to_ec2()
        # One attempt: EC2 answers "no capacity" as a server error, which botocore would repeat.
        client = self._aws.client("ec2", attempts=1)
        started_s, tries = time.monotonic(), 0
        with self._aws.audit.action("ec2.run_instances", request) as done:
            while True:
                waited_s, tries = time.monotonic() - started_s, tries + 1
                try:
                    # A Ctrl-C that was held is raised at the end of this block: the id is kept before.
                    with interrupts.held(self._tell, "EC2's answer"):
                        self._asked = True
                        answer = client.run_instances(**request)
                        instance = str(answer["Instances"][0]["InstanceId"])
                        self._started.append(instance)
                        done(answer, instance_id=instance, price_usd=machine.hourly_usd)
                    return instance
                except FAULTS as error:
                    if not self._may_try_again(error, waited_s, tries):
                        raise
                time.sleep(max(self._timeouts.poll, min(waited_s, 10.0)))

    def _may_try_again(self, error: Exception, waited_s: float, tries: int) -> bool:
        code = code_of(error)
        unanswered = not isinstance(error, ClientError)
        self._unsure = self._unsure or unanswered or code in AGAIN
        self._asked = self._unsure or bool(self._started)  # else it was refused: there is nothing to end
        if code == FRESH_PROFILE and waited_s < self._timeouts.fresh_profile:
            self._tell("  EC2 does not see the new instance profile yet; trying again")
            return True
        busy = code in AGAIN or unanswered
        return busy and (waited_s < self._timeouts.busy or tries < _LEAST_TRIES)

    def end(self) -> None:
        """End whatever was or may have been rented. A Ctrl-C waits for it.

        Raises UserError, after a warning that names the machine, if something may still be running.
        """
        if not self._asked:
            return
        tell = interrupts.quietly(self._tell)
        with interrupts.held(tell, "ending the machine"):
            names = ", ".join(self._started) or "what EC2 may have rented"
            tell(f"ending {names} ...")
            try:
                self._end_all()
            except Exception as error:
                tell(f"WARNING: {names} may still be running ({error}); run: inv kill-all")
                raise
            tell("nothing of it is running")
            self._asked = False

    def _end_all(self) -> None:
        began_s = time.monotonic()
        # A machine whose id never arrived is given time to be found.
        settled_s = began_s + (0 if self._started else self._timeouts.strays)
        to_end = set(self._started)
        looks = 0  # however slow AWS is
        while True:
            looked_s = time.monotonic()  # not when the answer came: it is of this moment
            found = machines.in_region(self._aws, self._aws.region, RunId=self._run_id)
            to_end |= {machine.id for machine in found}
            to_end = {instance for instance in to_end if not self._terminate(instance)}
            if not to_end and not found and looked_s >= settled_s:
                break
            looks += 1
            if looks > 3 and time.monotonic() > began_s + self._timeouts.visible:
                raise UserError(f"{', '.join(sorted(to_end)) or found[0].id} does not end; run: inv kill-all")
            time.sleep(self._timeouts.poll)
        for instance in self._started:
            with suppress(UserError):  # it finds nothing to end, and is then deleted by itself
                schedule.remove(self._aws, schedule.name_for(instance))

    def _terminate(self, instance: str) -> bool:
        """True if EC2 has accepted it; it may not know a new machine everywhere yet."""
        ids, unseen = [instance], ("InvalidInstanceID.NotFound",)
        log = self._aws.audit_of_ends
        with log.action("ec2.terminate_instances", {"InstanceIds": ids}, ends=True) as done:
            answer = self._aws.ask("ec2", "terminate_instances", absent=unseen, InstanceIds=ids)
            done(answer, instance_id=instance)
        return answer is not None
