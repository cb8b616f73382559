"""Which machine types may be rented: those that the region has, the quota allows, and the model fits on.

Asks AWS; rents nothing. A type without a GPU is not judged by the model: the user has named it on purpose.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ops.aws.account import quota
from ops.aws.session import Aws
from worker.errors import BadInput
from worker.models import needs
from worker.models.needs import Needs

# A GPU reports less than it is called: a T4 of 16 GiB has 14.6 with error correction.
_REPORTED = 0.92
_GIB = 2**30
LARGER = "g5.xlarge,g6.xlarge"  # 24 GB; their larger sisters have the same GPU

Tell = Callable[[str], None]


@dataclass(frozen=True)
class MachineType:
    """What EC2 says of one. `gpu_gb`: that a GPU of it reports, 0 without one; `ram_gb`."""

    vcpus: int
    gpu_gb: float
    ram_gb: float


def chosen(aws: Aws, wanted: Sequence[str], *, on_demand: bool, tell: Tell) -> list[str]:
    """The wanted types that will do. Raises BadInput or UserError if none does; what is left out is told."""
    there = found(aws, wanted)
    named = large_enough(aws, _offered(wanted, there, aws.region, tell), there, tell)
    return _allowed(aws, named, there, quota.ON_DEMAND if on_demand else quota.SPOT, tell)


def found(aws: Aws, names: Sequence[str]) -> dict[str, MachineType]:
    """What the region has of these."""
    filters = [{"Name": "instance-type", "Values": list(names)}]
    items = aws.pages("ec2", "describe_instance_types", "InstanceTypes", Filters=filters)
    return {item["InstanceType"]: _machine_type(item) for item in items}


def _machine_type(item: Mapping[str, Any]) -> MachineType:
    gpus = [int(gpu["MemoryInfo"]["SizeInMiB"]) for gpu in item.get("GpuInfo", {}).get("Gpus", [])]
    ram_mib = int(item.get("MemoryInfo", {}).get("SizeInMiB", 0))
    return MachineType(
        vcpus=int(item["VCpuInfo"]["DefaultVCpus"]),
        gpu_gb=min(gpus, default=0) / 1024 * _GIB * _REPORTED / 1e9,
        ram_gb=ram_mib / 1024 * _GIB * _REPORTED / 1e9,
    )


def _offered(wanted: Sequence[str], there: Mapping[str, MachineType], region: str, tell: Tell) -> list[str]:
    unknown = [name for name in wanted if name not in there]
    if unknown:
        line = f"{region} has no machine {', '.join(unknown)}; correct MUSICGEN_INSTANCE_TYPES"
        if not there:
            raise BadInput(line)
        tell(f"warning: {line}")
    return [name for name in wanted if name in there]


def large_enough(
    aws: Aws, names: Sequence[str], there: Mapping[str, MachineType], tell: Tell = lambda line: None
) -> list[str]:
    """Those that the model fits on; each other one is told. Raises BadInput if it fits on none."""
    model: str = aws.settings.model
    need = needs.of(model, {"MUSICGEN_DTYPE": aws.settings.dtype or ""})  # folders are the machine's
    too_small = {name: why for name in names if (why := _lacks(there[name], need))}
    if names and len(too_small) == len(names):
        each = ", ".join(f"{name} ({why})" for name, why in too_small.items())
        raise BadInput(
            f"{model} does not fit on {each}: it takes {need.gpu()}; "
            f"give larger types, like MUSICGEN_INSTANCE_TYPES={LARGER}"
        )
    for name, why in too_small.items():
        tell(f"{name} is left out, as {model} does not fit: {why}")
    return [name for name in names if name not in too_small]


def _lacks(machine: MachineType, need: Needs) -> str:
    """Why the model does not fit on it; empty if it does."""
    if 0 < machine.gpu_gb < need.gpu_gb:
        return f"{machine.gpu_gb:.1f} GB of GPU memory to use, {need.gpu_gb:.1f} needed"
    if machine.gpu_gb and 0 < machine.ram_gb < need.ram_gb:
        return f"{machine.ram_gb:.1f} GB of RAM to use, {need.ram_gb:.1f} needed"
    return ""


def _allowed(
    aws: Aws, names: Sequence[str], there: Mapping[str, MachineType], kind: quota.Quota, tell: Tell
) -> list[str]:
    counted = [name for name in names if quota.is_counted(name)]
    limit = quota.limit(aws, kind, tell) if counted else None
    large = [name for name in counted if limit is not None and there[name].vcpus > limit]
    if large == list(names):
        quota.refuse_if_short(aws, kind, min(there[name].vcpus for name in names))
    for name in large:
        tell(f"{name} is left out: it has {there[name].vcpus} virtual CPUs, the account's limit is {limit:g}")
    return [name for name in names if name not in large]
