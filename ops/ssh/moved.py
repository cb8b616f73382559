"""Where a machine of EC2 is now: its address is another one after a stop and a start.

Asked for when the address that we know does not answer, or answers with another's host key. The pinned key
still decides whether the machine there is trusted.
"""

from dataclasses import replace

from ops import boxes
from ops.boxes import Known
from ops.settings import Settings
from worker.errors import UserError


def address_now(box: Known | None, settings: Settings) -> str | None:
    """The address that AWS has for the machine, kept in `.boxes`; None if it has none, or does not say."""
    if not box or box.kind != "ec2":
        return None
    from ops.aws.session import Aws

    unknown = ("InvalidInstanceID.NotFound", "InvalidInstanceID.Malformed")
    try:
        found = Aws(settings).ask(
            "ec2", "describe_instances", region=box.region or "", InstanceIds=[box.id], absent=unknown
        )
    except UserError:  # that the box does not answer is what the user is told
        return None
    instances = [each for part in (found or {}).get("Reservations", []) for each in part["Instances"]]
    host = instances[0].get("PublicIpAddress") if instances else None
    if host and host != box.host:
        boxes.save(replace(box, host=host))
    return host
