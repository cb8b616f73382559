"""What a machine image is to be built of: base, code, packages, weights, and the request for its build box.

Everything is settled here before money is spent, and can be shown. Asks AWS and reads the working tree;
changes nothing. ops/aws/images/build.py carries it out.
"""

import hashlib
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from pathlib import Path

from ops import release, repository
from ops.aws import machines, prices
from ops.aws.account import machine_types
from ops.aws.images import registry
from ops.aws.rent import MachineRequest
from ops.aws.session import Aws, tag_list
from ops.aws.user_data import with_values
from worker.amounts import usd
from worker.errors import UserError
from worker.timestamps import compact, new_run_id

BUILD_LIMIT_MIN = 90
# Of a base image that does not say how large it is.
_BASE_GIB = 35


@dataclass(frozen=True)
class ImagePlan:
    """All that is settled before money is spent. `machine`: the build box."""

    name: str
    base: str
    base_ami: str
    model: str
    commit: str
    requirements: str
    bucket: str
    code_key: str
    result_key: str  # where the box writes how it went
    release: release.Release
    machine: MachineRequest

    @property
    def log_key(self) -> str:
        """Where the box writes its log."""
        return self.result_key.removesuffix("json") + "log"

    @property
    def tags(self) -> list[dict[str, str]]:
        """Of the image and its snapshots. Raises BadInput for an invalid one."""
        return tag_list(
            Name=self.name,
            Commit=self.commit,
            Requirements=self.requirements,
            Model=self.model,
            Base=self.base_ami,
            RunId=self.machine.run_id,
        )

    def rows(self) -> list[dict[str, str]]:
        """The plan as a table."""
        hourly = self.machine.hourly_usd
        price = "price not known" if hourly is None else f"{usd(hourly)} per hour"
        most = "" if hourly is None else f", {usd(hourly * BUILD_LIMIT_MIN / 60)} at most"
        box = f"{self.machine.instance_type}, on-demand, {price}; off after {BUILD_LIMIT_MIN} min{most}"
        shown = {
            "image": self.name,
            "built on": f"{self.base} ({self.base_ami})",
            "holds": f"packages of requirements/worker.txt ({self.requirements}), weights of {self.model}",
            "commit": self.commit,
            "build box": box,
            "profile": self.machine.profile,
            "log": f"s3://{self.bucket}/{self.log_key}",
        }
        return [{"what": what, "how": how} for what, how in shown.items()]


def plan_image(aws: Aws, root: Path, now: datetime) -> ImagePlan:
    """What `inv image` would do. Raises BadInput for what is missing."""
    settings = aws.settings
    bucket: str = settings.need("bucket")
    prefix = f"{settings.prefix.strip('/')}/" if settings.prefix else ""
    base, ami = registry.resolve_base(aws)
    code = release.from_tree(root, root / release.PROMPTS)
    name = registry.next_name(aws)
    plan = ImagePlan(
        name=name,
        base=base,
        base_ami=ami,
        model=settings.model,
        commit=repository.commit(root),
        requirements=requirements_hash(root),
        bucket=bucket,
        code_key=f"{prefix}{code.key}",
        # With its time: an earlier build's result must not be taken for this one's.
        result_key=f"{prefix}images/{name}-{compact(now)}.json",
        release=code,
        machine=_build_box(aws, ami, now),
    )
    values = {
        "BUILD_LIMIT_MIN": str(BUILD_LIMIT_MIN),
        "AWS_DEFAULT_REGION": aws.region,
        "AWS_ENDPOINT_URL": settings.aws_endpoint_url or "",
        "CODE_ID": code.id,
        "CODE_BUCKET": bucket,
        "CODE_KEY": plan.code_key,
        "CODE_SHA256": code.sha256,
        "RESULT_KEY": plan.result_key,
        "LOG_KEY": plan.log_key,
        "MODEL": plan.model,
        "DEVICE": "cuda" if _has_gpu(aws, plan.machine.instance_type) else "",
        "S3_OBJECT_PY": (root / "remote" / "s3_object.py").read_text("utf-8"),
    }
    script = with_values((root / "remote" / "image.sh").read_text("utf-8"), values)
    plan = replace(plan, machine=replace(plan.machine, user_data=script))
    _ = plan.tags, plan.machine.to_ec2()  # what they cannot hold is refused now, not after the question
    return plan


def _build_box(aws: Aws, ami: str, now: datetime) -> MachineRequest:
    """The machine that becomes the image, still without its user data."""
    root_device, size_gib = registry.root_disk(aws.ask("ec2", "describe_images", ImageIds=[ami])["Images"][0])
    instance_type = aws.settings.instance_type_list[0]
    return MachineRequest(
        name=machines.BUILD_BOX,
        run_id=new_run_id(now),
        expires_at=now + timedelta(minutes=BUILD_LIMIT_MIN),
        launched_by=aws.caller.arn,
        hourly_usd=_hourly_usd(aws, instance_type),
        image=ami,
        root_device=root_device,
        disk_gib=(size_gib or _BASE_GIB) + registry.INSTALL_GIB + registry.more_gib(aws.settings.model),
        instance_type=instance_type,
        profile=aws.settings.instance_profile,
        user_data="",
        subnet=aws.settings.subnet_id or "",
        public_address=not aws.settings.subnet_id,
    )


def _hourly_usd(aws: Aws, instance_type: str) -> float | None:
    """The price of the build box; None, shown as not known, if the price list does not answer."""
    try:
        return prices.on_demand(aws, instance_type, aws.region)
    except UserError:
        return None


def _has_gpu(aws: Aws, instance_type: str) -> bool:
    """True for a GPU that the model fits on. Raises BadInput for one on which its test would fail."""
    kinds = machine_types.found(aws, [instance_type])
    machine_types.large_enough(aws, list(kinds), kinds)
    return any(kind.gpu_gb for kind in kinds.values())


def requirements_hash(root: Path) -> str:
    """Which packages: of requirements/worker.txt, the same on every system."""
    content = (root / "requirements" / "worker.txt").read_bytes().replace(b"\r\n", b"\n")
    return hashlib.sha256(content).hexdigest()[:16]
