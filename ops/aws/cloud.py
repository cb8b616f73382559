"""EC2 as one of the clouds (ops/cloud.py). What it is asked needs boto3, which is loaded only then."""

import re
from typing import TYPE_CHECKING

from ops.boxes import Known
from ops.cloud import Located
from ops.settings import Settings
from worker.timestamps import stamp

if TYPE_CHECKING:
    from ops.aws.machines import Machine

SSH_USER = "ubuntu"


class Ec2:
    """This project's machines on EC2, and any other that is named by its id."""

    name = "AWS"
    kind = "ec2"

    def owns(self, text: str) -> bool:
        """True for `i-` and 8 or 17 hexadecimal digits."""
        return re.fullmatch(r"i-(?:[0-9a-f]{8}|[0-9a-f]{17})", text) is not None

    def locate(self, settings: Settings, machine: str, region: str | None = None) -> Located | None:
        """The machine in this region, else in the first that has it."""
        from ops.aws import machines, regions
        from ops.aws.session import Aws

        aws = Aws(settings, all_regions=True)
        for each in [region] if region else regions.enabled(aws):
            if found := machines.by_id(aws, machine, each):
                return Located(found.state, known(found, settings.key_file))
        return None


def known(machine: "Machine", key_file: str) -> Known | None:
    """The machine as a box; None while it has no address."""
    if not machine.address:
        return None
    return Known(
        id=machine.id,
        kind=Ec2.kind,
        host=machine.address,
        user=SSH_USER,
        key_file=key_file,
        region=machine.region,
        hourly_usd=machine.hourly_usd,
        created_at=stamp(machine.launched_at),
    )
