"""Is a rented machine what was asked for: market, price, tags, role, metadata, disk, shutdown behaviour.

EC2 may ignore a part of a request, and prices move. Changes nothing.
"""

from ops.aws import machines, prices
from ops.aws.launch.plan import LaunchPlan
from ops.aws.machines import Machine
from ops.aws.session import Aws


def wrong(aws: Aws, plan: LaunchPlan, machine: Machine) -> list[str]:
    """What differs from the plan; empty if nothing does."""
    found = machines.described(aws, machine.id)
    differs = []
    if machine.spot != plan.spot:
        differs.append("it is on-demand, not spot" if plan.spot else "it is spot, not on-demand")
    if machine.expires_at is None or machine.run_id != plan.boot.run_id:
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
    if plan.spot:
        now = prices.spot_now(aws, machine.instance_type, machine.zone)
        if now is not None and now > plan.cap_usd:
            differs.append(f"its price is {now:.4f} by now, over {plan.cap_usd:.4f}")
    return differs
