"""How many virtual CPUs of spot GPU machines the account may have at once, and how many a machine has.

New accounts have 0 of L-3819A6DF ("All G and VT Spot Instance Requests"), which is checked before a launch.
It holds for all zones; only AWS can raise it.
"""

import re
from collections.abc import Callable

from ops.aws.account.step import Step
from ops.aws.errors import QUOTA_LINK
from ops.aws.session import Aws
from worker.errors import UserError

SPOT_G = "L-3819A6DF"
_COUNTED = re.compile(r"(gr?|vt)[0-9]")


def is_counted(instance_type: str) -> bool:
    """True for the types that this limit counts; others have limits of their own."""
    return bool(_COUNTED.match(instance_type))


def spot_vcpus(aws: Aws, region: str = "", tell: Callable[[str], None] | None = None) -> float | None:
    """The limit; None, and a warning, if AWS does not tell it: EC2 itself refuses what is over it."""
    try:
        found = aws.ask(
            "service-quotas",
            "get_service_quota",
            region=region,
            absent=("NoSuchResourceException",),
            ServiceCode="ec2",
            QuotaCode=SPOT_G,
        )
    except UserError as error:
        if tell is not None:
            tell(f"warning: the account's limit is not known, so it is not checked: {error}")
        return None
    return float(found["Quota"]["Value"]) if found else None


def vcpus(aws: Aws, instance_types: list[str]) -> dict[str, int]:
    """Virtual CPUs of each machine type. Raises BadInput for a type that is not in this region."""
    found = aws.pages(
        "ec2",
        "describe_instance_types",
        "InstanceTypes",
        Filters=[{"Name": "instance-type", "Values": instance_types}],
    )
    return {item["InstanceType"]: int(item["VCpuInfo"]["DefaultVCpus"]) for item in found}


def refuse_if_short(aws: Aws, needed: int, region: str = "") -> None:
    """Raises UserError if the limit is known and below the virtual CPUs needed."""
    limit = spot_vcpus(aws, region)
    if limit is not None and limit < needed:
        raise UserError(
            f"the account's limit is {limit:g} virtual CPUs of spot GPU machines in "
            f"{region or aws.region}, {needed} are needed; ask for more at {QUOTA_LINK}"
        )


def quota_step(aws: Aws) -> Step:
    """The limit; setup cannot change it."""
    needs = vcpus(aws, aws.settings.instance_type_list)
    needed = max((vcpus for name, vcpus in needs.items() if is_counted(name)), default=0)
    limit = spot_vcpus(aws)
    thing, wanted = f"spot quota {SPOT_G}", f"{needed} vCPUs or more"
    if limit is None:
        return Step(thing, "not known", f"{wanted}; see {QUOTA_LINK}")
    if limit < needed:
        return Step(thing, f"{limit:g} vCPUs", f"{wanted}; ask AWS: {QUOTA_LINK}")
    return Step(thing, f"{limit:g} vCPUs", wanted)
