"""This project's EC2 machines: found by tag in every region, never by local state."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ops.aws.regions import ByRegion, ask_each
from ops.aws.session import PROJECT, Aws, tag_dict
from worker import timestamps

ALIVE = ("pending", "running", "stopping", "stopped")
WORKING = ("pending", "running")

# The Name of the machine on which `inv image` builds: this project's, but not a worker's.
BUILD_BOX = "musicgen-image-build"

EXPIRES, LAUNCHED_BY, RUN, PRICE, OUTPUT = "ExpiresAt", "LaunchedBy", "RunId", "HourlyUsd", "Output"


@dataclass(frozen=True)
class Machine:
    """One instance of this project, by EC2's description and its tags."""

    id: str
    region: str
    zone: str
    instance_type: str
    state: str
    spot: bool
    launched_at: datetime
    expires_at: datetime | None
    hourly_usd: float | None
    run_id: str | None
    output: str | None  # s3:// address of its songs
    launched_by: str | None
    name: str | None
    address: str | None
    host: str | None  # the host name that its worker reports

    @property
    def builds_image(self) -> bool:
        """True for the box of `inv image`."""
        return self.name == BUILD_BOX

    def age_s(self, now: datetime) -> float:
        """Seconds since it was launched."""
        return max((now - self.launched_at).total_seconds(), 0.0)

    def cost_usd(self, now: datetime) -> float | None:
        """What it has cost until now at its price, if that is known."""
        return None if self.hourly_usd is None else self.age_s(now) / 3600 * self.hourly_usd

    def overdue(self, now: datetime) -> bool:
        """True if it should have ended."""
        return self.expires_at is not None and now > self.expires_at

    def line(self) -> str:
        """`i-0a1b (g4dn.xlarge, us-east-1a, running, launched 2026-11-22T19:50:59Z)`."""
        launched = timestamps.stamp(self.launched_at)
        return f"{self.id} ({self.instance_type}, {self.zone}, {self.state}, launched {launched})"


def find(aws: Aws, regions: Sequence[str], states: Sequence[str] = ALIVE) -> ByRegion[list[Machine]]:
    """This project's machines in these states, by region."""
    return ask_each(regions, lambda region: in_region(aws, region, states))


def in_region(aws: Aws, region: str, states: Sequence[str] = ALIVE, **tags: str) -> list[Machine]:
    """This project's machines in one region, with these tags; the oldest first."""
    wanted = {"Project": PROJECT, **tags}
    filters = [{"Name": f"tag:{name}", "Values": [value]} for name, value in wanted.items()]
    filters.append({"Name": "instance-state-name", "Values": list(states)})
    reservations = aws.pages("ec2", "describe_instances", "Reservations", region=region, Filters=filters)
    found = [machine(each, region) for reservation in reservations for each in reservation["Instances"]]
    return sorted(found, key=lambda each: (each.launched_at, each.id))


# Just after the rent not every part of EC2 knows the machine.
UNSEEN = ("InvalidInstanceID.NotFound", "InvalidVolume.NotFound")


def described(aws: Aws, instance: str) -> dict[str, Any]:
    """EC2's description of an instance; empty while EC2 does not know it yet."""
    answer = aws.ask("ec2", "describe_instances", absent=UNSEEN, InstanceIds=[instance])
    reservations = answer["Reservations"] if answer else []
    return dict(reservations[0]["Instances"][0]) if reservations else {}


# For ids that may never have been.
UNKNOWN = ("InvalidInstanceID.NotFound", "InvalidInstanceID.Malformed")


def by_id(aws: Aws, instance: str, region: str) -> Machine | None:
    """One machine in this region, whoever's it is; None if EC2 does not know it there."""
    answer = aws.ask("ec2", "describe_instances", region=region, absent=UNKNOWN, InstanceIds=[instance])
    reservations = answer["Reservations"] if answer else []
    return machine(reservations[0]["Instances"][0], region) if reservations else None


def machine(instance: dict[str, Any], region: str) -> Machine:
    """A Machine from EC2's description."""
    tags = tag_dict(instance.get("Tags"))
    return Machine(
        id=instance["InstanceId"],
        region=region,
        zone=instance["Placement"]["AvailabilityZone"],
        instance_type=instance["InstanceType"],
        state=instance["State"]["Name"],
        spot=instance.get("InstanceLifecycle") == "spot",
        launched_at=instance["LaunchTime"].astimezone(UTC),
        expires_at=_moment(tags.get(EXPIRES)),
        hourly_usd=_number(tags.get(PRICE)),
        run_id=tags.get(RUN),
        output=tags.get(OUTPUT),
        launched_by=tags.get(LAUNCHED_BY),
        name=tags.get("Name"),
        address=instance.get("PublicIpAddress"),
        host=(instance.get("PrivateDnsName") or "").partition(".")[0] or None,
    )


def _moment(text: str | None) -> datetime | None:
    try:
        return timestamps.parse(text) if text else None
    except ValueError:  # somebody edited the tag
        return None


def _number(text: str | None) -> float | None:
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if 0 <= number < math.inf else None
