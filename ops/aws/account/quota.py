"""How many virtual CPUs of GPU machines the account may have at once, and how many a machine has.

Spot and on-demand machines have a quota each, which is checked before a launch. New accounts have 0 of
L-3819A6DF ("All G and VT Spot Instance Requests"). Each holds for all zones; only AWS can raise it.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass

from ops.aws.account.step import Step
from ops.aws.errors import ON_DEMAND_QUOTA, QUOTAS, SPOT_QUOTA
from ops.aws.session import Aws
from worker.errors import UserError

Tell = Callable[[str], None]
_COUNTED = re.compile(r"(gr?|vt)[0-9]")


@dataclass(frozen=True)
class Quota:
    """One of AWS's limits, in virtual CPUs."""

    kind: str  # spot, on-demand
    code: str

    @property
    def link(self) -> str:
        """Where to ask for more."""
        return QUOTAS + self.code


SPOT = Quota("spot", SPOT_QUOTA)
ON_DEMAND = Quota("on-demand", ON_DEMAND_QUOTA)


def is_counted(instance_type: str) -> bool:
    """True for the types that these limits count; others have limits of their own."""
    return bool(_COUNTED.match(instance_type))


def limit(aws: Aws, quota: Quota, tell: Tell | None = None) -> float | None:
    """The limit; None, and a warning, if AWS does not tell it: EC2 itself refuses what is over it."""
    try:
        found = aws.ask(
            "service-quotas",
            "get_service_quota",
            absent=("NoSuchResourceException",),
            ServiceCode="ec2",
            QuotaCode=quota.code,
        )
    except UserError as error:
        if tell is not None:
            tell(f"warning: the account's limit is not known, so it is not checked: {error}")
        return None
    limit = (found or {}).get("Quota", {}).get("Value")  # a proxy's page in place of JSON gives none
    return None if limit is None else float(limit)


def vcpus(aws: Aws, instance_types: list[str]) -> dict[str, int]:
    """Virtual CPUs of each machine type. Raises BadInput for a type that is not in this region."""
    found = aws.pages(
        "ec2",
        "describe_instance_types",
        "InstanceTypes",
        Filters=[{"Name": "instance-type", "Values": instance_types}],
    )
    return {item["InstanceType"]: int(item["VCpuInfo"]["DefaultVCpus"]) for item in found}


def refuse_if_short(aws: Aws, quota: Quota, needed: int, tell: Tell | None = None) -> None:
    """Raises UserError if the limit is known and below the virtual CPUs needed."""
    allowed = limit(aws, quota, tell)
    if allowed is not None and allowed < needed:
        raise UserError(
            f"the account's limit is {allowed:g} virtual CPUs of {quota.kind} GPU machines in "
            f"{aws.region}, {needed} are needed; ask for more of {quota.code} at {quota.link}"
        )


def quota_steps(aws: Aws) -> list[Step]:
    """Both limits; setup cannot change them."""
    needs = vcpus(aws, aws.settings.instance_type_list)
    counted = {name: n for name, n in needs.items() if is_counted(name)}
    # `inv image` builds on the first type, on demand.
    built = counted.get(aws.settings.instance_type_list[0], 0)
    return [
        _quota_step(aws, SPOT, max(counted.values(), default=0)),
        _quota_step(aws, ON_DEMAND, built),
    ]


def _quota_step(aws: Aws, quota: Quota, needed: int) -> Step:
    allowed = limit(aws, quota)
    thing, wanted = f"{quota.kind} quota {quota.code}", f"{needed} vCPUs or more"
    if allowed is None:
        return Step(thing, "not known", f"{wanted}; see {quota.link}")
    if allowed < needed:
        return Step(thing, f"{allowed:g} vCPUs", f"{wanted}; ask AWS: {quota.link}")
    return Step(thing, f"{allowed:g} vCPUs", wanted)
