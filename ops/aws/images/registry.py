"""The worker's machine images: listed, recorded, removed; and the images of AWS that one is built on.

AWS's list, by tag, decides; images.json beside tasks.py keeps the ids under version control, so that a
launch knows its image without asking and a reader sees from which commit it was made.
An image is removed with its snapshots: they are what costs.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any

from ops.aws.account.step import ABSENT, Step
from ops.aws.session import PROJECT, Aws, tag_dict
from ops.repository import ROOT
from worker.errors import BadInput
from worker.models import needs
from worker.store.base import json_bytes

FILE = ROOT / "images.json"
NAME_START = "musicgen-worker-v"
SCHEMA = 1
SNAPSHOT_USD_PER_GIB_MONTH = 0.05  # us-east-1, 2026; the upper bound, as snapshots hold used blocks only

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
INSTALL_GIB = 40  # packages and weights, on top of a base image's disk
_WEIGHTS_GIB = 8  # of these, for the default model

_VERSION = re.compile(re.escape(NAME_START) + r"(\d+)")


def more_gib(model: str) -> int:
    """GiB that a model's files take beyond those that a disk has room for anyway."""
    return max(0, math.ceil(needs.of(model, {}).files_gb * 1e9 / 2**30) - _WEIGHTS_GIB)


@dataclass(frozen=True)
class Image:
    """One image: what AWS calls it, and what it was made from."""

    name: str
    region: str
    ami: str
    made_at: str  # UTC
    commit: str
    requirements: str  # first 16 hex digits of the SHA-256 of requirements/worker.txt
    model: str
    base: str  # the image it was built on


@dataclass(frozen=True)
class ListedImage:
    """An image as the account has it."""

    name: str
    ami: str
    region: str
    state: str
    made_at: str
    commit: str
    model: str
    disk_gib: int
    month_usd: float
    snapshots: str


def recorded() -> list[Image]:
    """The images of images.json, oldest first. Raises BadInput if it cannot be read."""
    if not FILE.exists():
        return []
    try:
        content = json.loads(FILE.read_text("utf-8"))
        names = [field.name for field in fields(Image)]
        return [Image(**{name: str(entry[name]) for name in names}) for entry in content["images"]]
    except (OSError, ValueError, KeyError, TypeError):
        raise BadInput(f"{FILE} is damaged; restore it from git") from None


def newest(region: str) -> str | None:
    """The id of the image made last for this region."""
    here = [image for image in recorded() if image.region == region]
    return max(here, key=lambda image: image.made_at).ami if here else None


def record(image: Image) -> None:
    """Add an image to images.json."""
    _write([*recorded(), image])


def forget(ami: str) -> None:
    """Take an image out of images.json."""
    kept = [image for image in recorded() if image.ami != ami]
    if len(kept) != len(recorded()):
        _write(kept)


def _write(images: Sequence[Image]) -> None:
    FILE.write_bytes(json_bytes({"schema": SCHEMA, "images": [asdict(image) for image in images]}))


def found(aws: Aws) -> list[ListedImage]:
    """This project's images in this region, oldest first, with what their snapshots cost at most."""
    filters = [{"Name": "tag:Project", "Values": [PROJECT]}]
    images = aws.ask("ec2", "describe_images", Owners=["self"], Filters=filters)["Images"]
    return sorted((_listed(aws.region, image) for image in images), key=lambda image: image.made_at)


def next_name(aws: Aws) -> str:
    """`musicgen-worker-vN`, one above every image that is there or was recorded."""
    names = [image.name for image in found(aws)] + [image.name for image in recorded()]
    versions = [int(match[1]) for name in names if (match := _VERSION.fullmatch(name))]
    return f"{NAME_START}{max(versions, default=0) + 1}"


def removal(aws: Aws, names: Sequence[str]) -> list[Step]:
    """The removal of images by name or id; `old` is all but the newest. Raises BadInput for unknown ones."""
    there = found(aws)
    chosen = []
    for name in names:
        matches = there[:-1] if name == "old" else [i for i in there if name in (i.name, i.ami)]
        if not matches and name != "old":
            raise BadInput(f"{aws.region} has no image {name} of this project; inv image --list shows them")
        chosen += [image for image in matches if image not in chosen]
    return [_removal(aws, image) for image in chosen]


def _removal(aws: Aws, image: ListedImage) -> Step:
    now = f"{image.ami}, {image.disk_gib} GiB"
    wanted = f"{ABSENT}, and its snapshots {image.snapshots}"
    return Step(f"image {image.name}", now, wanted, "delete", lambda: remove(aws, image))


def remove(aws: Aws, image: ListedImage) -> None:
    """Deregister an image, delete its snapshots, take it out of images.json."""
    deregister(aws, image.ami)
    for snapshot in image.snapshots.split():
        delete_snapshot(aws, snapshot)
    forget(image.ami)


def deregister(aws: Aws, ami: str) -> None:
    """Deregister an image; AWS deletes its snapshots with it, also those that it still fills."""
    aws.end("ec2", "deregister_image", ImageId=ami, DeleteAssociatedSnapshots=True)


def delete_snapshot(aws: Aws, snapshot: str) -> None:
    """Delete a snapshot, if it is still there."""
    with aws.audit_of_ends.action("ec2.delete_snapshot", {"SnapshotId": snapshot}, ends=True) as done:
        gone = ("InvalidSnapshot.NotFound",)
        done({"there": aws.ask("ec2", "delete_snapshot", absent=gone, SnapshotId=snapshot) is not None})


def bases(aws: Aws) -> list[dict[str, str]]:
    """AWS's Deep Learning images for x86, by the names of their SSM parameters."""
    found = aws.pages("ssm", "get_parameters_by_path", "Parameters", Path=BASES, Recursive=True)
    return [
        {"name": parameter["Name"], "ami": parameter["Value"]}
        for parameter in sorted(found, key=lambda parameter: str(parameter["Name"]))
        if parameter["Name"].endswith("/latest/ami-id")
    ]


def resolve_base(aws: Aws) -> tuple[str, str]:
    """(name, ami id) of MUSICGEN_BASE_IMAGE, else of the first candidate that AWS has. Raises BadInput."""
    asked = aws.settings.base_image
    if asked and asked.startswith("ami-"):
        return asked, asked
    for name in [asked] if asked else CANDIDATES:
        answer = aws.ask("ssm", "get_parameter", Name=name, absent=("ParameterNotFound",))
        if answer:
            return name, str(answer["Parameter"]["Value"])
    what = f"no base image {asked}" if asked else "none of the base images in ops/aws/images/registry.py"
    raise BadInput(
        f"AWS has {what} in {aws.region}; set MUSICGEN_BASE_IMAGE to one that `inv image --bases` lists"
    )


def root_disk(described: dict[str, Any]) -> tuple[str, int]:
    """The root device of an image, as EC2 describes it, and its size in GiB; 0 if that is not known."""
    root = described.get("RootDeviceName", "/dev/sda1")
    sizes = [
        disk["Ebs"].get("VolumeSize", 0)
        for disk in described.get("BlockDeviceMappings", [])
        if disk.get("DeviceName") == root and "Ebs" in disk
    ]
    return root, max(sizes, default=0)


def snapshots_of(image: dict[str, Any]) -> list[str]:
    """The snapshots an image, as EC2 describes it, consists of."""
    return [
        disk["Ebs"]["SnapshotId"]
        for disk in image.get("BlockDeviceMappings", [])
        if disk.get("Ebs", {}).get("SnapshotId")
    ]


def _listed(region: str, image: dict[str, Any]) -> ListedImage:
    tags = tag_dict(image.get("Tags"))
    size_gib = sum(disk["Ebs"].get("VolumeSize", 0) for disk in image["BlockDeviceMappings"] if "Ebs" in disk)
    return ListedImage(
        name=image.get("Name", ""),
        ami=image["ImageId"],
        region=region,
        state=image["State"],
        made_at=image["CreationDate"],
        commit=tags.get("Commit", ""),
        model=tags.get("Model", ""),
        disk_gib=size_gib,
        month_usd=round(size_gib * SNAPSHOT_USD_PER_GIB_MONTH, 2),
        snapshots=" ".join(snapshots_of(image)),
    )
