"""What a machine image is to be built of: base, code, packages, weights, and the request for its build box.

Everything is settled here before money is spent, and can be shown. Asks AWS and reads the working tree;
changes nothing. ops/aws/images/build.py carries it out.
"""

import hashlib
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from ops import release, repository
from ops.aws import machines, prices
from ops.aws.account.iam import profile_of
from ops.aws.images import registry as image
from ops.aws.session import Aws, tag_list
from ops.aws.user_data import with_values
from worker.amounts import usd
from worker.errors import BadInput
from worker.timestamps import compact, stamp

BASES = "/aws/service/deeplearning/ami/x86_64"
# AWS's names age; the first that exists is taken.
CANDIDATES = tuple(
    f"{BASES}/{kind}/latest/ami-id"
    for kind in (
        "base-oss-nvidia-driver-gpu-ubuntu-24.04",
        "base-oss-nvidia-driver-gpu-ubuntu-22.04",
        "base-oss-nvidia-driver-ubuntu-22.04",
    )
)
BOX_NAME = machines.BUILD_BOX
BUILD_LIMIT_MIN = 90
SPARE_GIB = 40  # packages and weights, beside what the base image holds


@dataclass(frozen=True)
class BuildPlan:
    """All that is settled before money is spent. `request` is what EC2 gets, without the user data."""

    planned_at: datetime  # UTC
    name: str
    base: str
    base_ami: str
    model: str
    commit: str
    requirements: str
    bucket: str
    prefix: str
    release: release.Release
    instance_type: str
    hourly_usd: float | None
    user_data: str
    request: dict[str, Any]

    @property
    def result_key(self) -> str:
        """Where the box answers."""
        # With its time: an earlier build's answer must not be taken for this one's.
        return f"{self.prefix}images/{self.name}-{compact(self.planned_at)}.json"

    @property
    def log_key(self) -> str:
        """Where the box leaves its log."""
        return self.result_key.removesuffix("json") + "log"

    def rows(self) -> list[dict[str, str]]:
        """The plan as a table."""
        price = "price not known" if self.hourly_usd is None else f"{usd(self.hourly_usd)} per hour"
        most = "" if self.hourly_usd is None else f", {usd(self.hourly_usd * BUILD_LIMIT_MIN / 60)} at most"
        shown = {
            "image": self.name,
            "built on": f"{self.base} ({self.base_ami})",
            "holds": f"packages of requirements/worker.txt ({self.requirements}), weights of {self.model}",
            "commit": self.commit,
            "build box": f"{self.instance_type}, on-demand, {price}; off after {BUILD_LIMIT_MIN} min{most}",
            "profile": str(next(iter(self.request["IamInstanceProfile"].values()))),
            "log": f"s3://{self.bucket}/{self.log_key}",
        }
        return [{"what": what, "how": how} for what, how in shown.items()]


def bases(aws: Aws) -> list[dict[str, str]]:
    """AWS's Deep Learning images for x86, by the names of their SSM parameters."""
    found = aws.pages("ssm", "get_parameters_by_path", "Parameters", Path=BASES, Recursive=True)
    return [
        {"name": parameter["Name"], "ami": parameter["Value"]}
        for parameter in sorted(found, key=lambda parameter: str(parameter["Name"]))
        if parameter["Name"].endswith("/latest/ami-id")
    ]


def resolve_base(aws: Aws) -> tuple[str, str]:
    """(name, ami id) of MUSICGEN_BASE_IMAGE, else of the first candidate that AWS has."""
    asked = aws.settings.base_image
    if asked and asked.startswith("ami-"):
        return asked, asked
    for name in [asked] if asked else CANDIDATES:
        answer = aws.ask("ssm", "get_parameter", Name=name, absent=("ParameterNotFound",))
        if answer:
            return name, str(answer["Parameter"]["Value"])
    what = f"no base image {asked}" if asked else "none of the base images we know"
    raise BadInput(
        f"AWS has {what} in {aws.region}; set MUSICGEN_BASE_IMAGE to one that `inv image --bases` lists"
    )


def plan_build(aws: Aws, root: Path, now: datetime) -> BuildPlan:
    """What `inv image` would do. Raises BadInput for what is missing."""
    settings = aws.settings
    bucket: str = settings.need("bucket")
    prefix = f"{settings.prefix.strip('/')}/" if settings.prefix else ""
    base, ami = resolve_base(aws)
    described = aws.ask("ec2", "describe_images", ImageIds=[ami])["Images"][0]
    root_device = described.get("RootDeviceName", "/dev/sda1")
    instance_type = settings.instance_type_list[0]
    kinds = aws.ask("ec2", "describe_instance_types", InstanceTypes=[instance_type])["InstanceTypes"]
    gpu = bool(kinds and kinds[0].get("GpuInfo"))
    code = release.from_tree(root, root / release.PROMPTS)
    name = image.next_name(aws)
    plan = BuildPlan(
        planned_at=now.astimezone(UTC),
        name=name,
        base=base,
        base_ami=ami,
        model=settings.model,
        commit=repository.commit(root),
        requirements=requirements_hash(root),
        bucket=bucket,
        prefix=prefix,
        release=code,
        instance_type=instance_type,
        hourly_usd=prices.on_demand(aws, instance_type, aws.region),
        user_data="",
        request={},
    )
    values = {
        "BUILD_LIMIT_MIN": str(BUILD_LIMIT_MIN),
        "AWS_DEFAULT_REGION": aws.region,
        "AWS_ENDPOINT_URL": settings.aws_endpoint_url or "",
        "CODE_ID": code.id,
        "CODE_BUCKET": bucket,
        "CODE_KEY": f"{prefix}{code.key}",
        "CODE_SHA256": code.sha256,
        "RESULT_KEY": plan.result_key,
        "LOG_KEY": plan.log_key,
        "MODEL": settings.model,
        "DEVICE": "cuda" if gpu else "",
        "S3_OBJECT_PY": (root / "remote" / "s3_object.py").read_text("utf-8"),
    }
    expires = stamp(now + timedelta(minutes=BUILD_LIMIT_MIN))
    price = {} if plan.hourly_usd is None else {machines.PRICE: f"{plan.hourly_usd:.6f}"}
    told = {machines.EXPIRES: expires, machines.LAUNCHED_BY: aws.caller.arn[:256]}
    tags = tag_list(Name=BOX_NAME, **told, **price)
    request = {
        "ImageId": ami,
        "InstanceType": instance_type,
        "MinCount": 1,
        "MaxCount": 1,
        "InstanceInitiatedShutdownBehavior": "stop",  # an image is made of a stopped machine
        "IamInstanceProfile": profile_of(settings.instance_profile),
        "MetadataOptions": {"HttpTokens": "required", "HttpEndpoint": "enabled"},
        "BlockDeviceMappings": [
            {
                "DeviceName": root_device,
                "Ebs": {
                    "VolumeSize": _disk_gib(described, root_device) + SPARE_GIB,
                    "VolumeType": "gp3",
                    "DeleteOnTermination": True,
                },
            }
        ],
        "TagSpecifications": [
            {"ResourceType": kind, "Tags": tags} for kind in ("instance", "volume", "network-interface")
        ],
    }
    script = with_values((root / "remote" / "image.sh").read_text("utf-8"), values)
    return BuildPlan(**vars(plan) | {"user_data": script, "request": request})


def requirements_hash(root: Path) -> str:
    """What names the packages: of requirements/worker.txt, the same on every system."""
    content = (root / "requirements" / "worker.txt").read_bytes().replace(b"\r\n", b"\n")
    return hashlib.sha256(content).hexdigest()[:16]


def _disk_gib(described: dict[str, Any], root_device: str) -> int:
    sizes = [
        disk["Ebs"].get("VolumeSize", 0)
        for disk in described.get("BlockDeviceMappings", [])
        if disk.get("DeviceName") == root_device and "Ebs" in disk
    ]
    return max(sizes, default=0) or 35
