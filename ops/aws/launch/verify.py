"""Is a rented machine what was asked for: its market, price, tags, role, metadata, disk and its end.

EC2 may heed less than a request says, and prices move. Looks only.
"""

from typing import Any

from ops.aws import prices
from ops.aws.launch.plan import Order
from ops.aws.machines import Machine
from ops.aws.session import Aws


def wrong(aws: Aws, order: Order, machine: Machine) -> list[str]:
    """What differs from the order; empty if nothing does."""
    found = described(aws, machine.id)
    differs = []
    if machine.spot != order.spot:
        differs.append("it is on-demand, not spot" if order.spot else "it is spot, not on-demand")
    if machine.expires_at is None or machine.run_id != order.run_id:
        differs.append("its tags are missing")
    if not found.get("IamInstanceProfile"):
        differs.append("it has no instance profile")
    if found.get("MetadataOptions", {}).get("HttpTokens") != "required":
        differs.append("its metadata needs no token")
    behaviour = aws.ask(
        "ec2",
        "describe_instance_attribute",
        InstanceId=machine.id,
        Attribute="instanceInitiatedShutdownBehavior",
    )["InstanceInitiatedShutdownBehavior"]["Value"]
    if behaviour != "terminate":
        differs.append("a shutdown would not end it")
    disks = [disk["Ebs"] for disk in found.get("BlockDeviceMappings", []) if "Ebs" in disk]
    if not disks or not all(disk["DeleteOnTermination"] for disk in disks):
        differs.append("its disk would stay and cost money")
    volumes = [disk["VolumeId"] for disk in disks]
    if volumes and not all(
        volume["Encrypted"] for volume in aws.ask("ec2", "describe_volumes", VolumeIds=volumes)["Volumes"]
    ):
        differs.append("its disk is not encrypted")
    if order.spot:
        now = prices.spot_now(aws, machine.instance_type, machine.zone)
        if now is not None and now > order.cap_usd:
            differs.append(f"its price is {now:.4f} by now, over {order.cap_usd:.4f}")
    return differs


def described(aws: Aws, instance: str) -> dict[str, Any]:
    """EC2's description of an instance."""
    found = aws.ask("ec2", "describe_instances", InstanceIds=[instance])["Reservations"]
    return dict(found[0]["Instances"][0])
