"""Is a rented machine what was asked for: market, price, tags, role, metadata, disk, shutdown behaviour.

EC2 may ignore a part of a request, and prices move. Changes nothing.
"""

from ops.aws import machines, prices
from ops.aws.launch.plan import LaunchPlan
from ops.aws.machines import Machine
from ops.aws.rent import Timeouts, seen
from ops.aws.session import Aws


def wrong(aws: Aws, plan: LaunchPlan, machine: Machine, timeouts: Timeouts) -> list[str]:
    """What differs from the plan; empty if nothing does. What EC2 does not know yet is asked again."""
    found = seen(lambda: machines.described(aws, machine.id), timeouts)
    if not found:
        return ["EC2 does not show it"]
    differs = []
    if machine.spot != plan.spot:
        differs.append("it is on-demand, not spot" if plan.spot else "it is spot, not on-demand")
    if machine.expires_at is None or machine.run_id != plan.boot.run_id:
        differs.append("its tags are missing")
    if plan.prerequisites.public_address and not (
        machine.address or seen(lambda: machines.described(aws, machine.id).get("PublicIpAddress"), timeouts)
    ):
        differs.append("it has no public address, so it reaches nothing: set MUSICGEN_SUBNET_ID")
    if not found.get("IamInstanceProfile"):
        differs.append("it has no instance profile")
    if found.get("MetadataOptions", {}).get("HttpTokens") != "required":
        differs.append("its metadata needs no token")
    attribute = {"InstanceId": machine.id, "Attribute": "instanceInitiatedShutdownBehavior"}
    unseen = machines.UNSEEN
    shutdown = seen(
        lambda: aws.ask("ec2", "describe_instance_attribute", absent=unseen, **attribute), timeouts
    )
    if not shutdown or shutdown["InstanceInitiatedShutdownBehavior"]["Value"] != "terminate":
        differs.append("a shutdown would not end it")
    disks = [disk["Ebs"] for disk in found.get("BlockDeviceMappings", []) if "Ebs" in disk]
    if not disks or not all(disk["DeleteOnTermination"] for disk in disks):
        differs.append("its disk would stay and cost money")
    volumes = [disk["VolumeId"] for disk in disks]
    if volumes:
        answer = seen(lambda: aws.ask("ec2", "describe_volumes", absent=unseen, VolumeIds=volumes), timeouts)
        if not answer or not all(volume["Encrypted"] for volume in answer["Volumes"]):
            differs.append("its disk is not encrypted")
    if plan.spot:
        now = prices.spot_now(aws, machine.instance_type, machine.zone)
        if now is not None and now > plan.cap_usd:
            differs.append(f"its price is {now:.4f} by now, over {plan.cap_usd:.4f}")
    return differs
