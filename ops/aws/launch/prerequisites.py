"""What of the account a launch stands on: image, profile, firewall, key pair, network, bucket.

Without an image of ours AWS's own will do, and the launch makes a firewall that is not there. Looks only.
Everything else that is missing is named at once, with the command that makes it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ops.aws.account import network
from ops.aws.account.iam import profile_of
from ops.aws.images import plan as blueprint
from ops.aws.images import registry as image
from ops.aws.session import Aws
from worker.errors import BadInput, UserError

SPARE_GIB = 20  # on top of our image's disk: caches, songs on their way
_SETUP = "run: inv setup"


@dataclass(frozen=True)
class Ready:
    """Ids that a request to EC2 needs."""

    image: str
    root_device: str
    disk_gib: int
    profile: Mapping[str, str]
    group: str | None  # None: the launch makes it
    key_name: str
    subnets: Mapping[str, str]  # zone -> subnet
    image_note: str = ""  # what to know of an image that is not ours


def ready(aws: Aws, bucket: str) -> Ready:
    """All of it. Raises BadInput with a line for each missing part."""
    settings = aws.settings
    missing = []
    if not aws.ask("s3", "head_bucket", Bucket=bucket, absent=("404", "NoSuchBucket")):
        missing.append(f"there is no bucket {bucket}; {_SETUP}")
    if not aws.ask(
        "iam", "get_instance_profile", absent=("NoSuchEntity",), **_named(settings.instance_profile)
    ):
        missing.append(f"there is no instance profile {settings.instance_profile}; {_SETUP}")
    if not aws.ask(
        "ec2", "describe_key_pairs", absent=("InvalidKeyPair.NotFound",), KeyNames=[settings.key_name]
    ):
        missing.append(f"there is no key pair {settings.key_name} in {aws.region}; {_SETUP}")
    group, subnets = None, {}
    try:
        group, subnets = network.group_id(aws), network.subnets(aws)
    except UserError as error:
        missing.append(str(error))
    image_id, note = settings.ami_id or image.newest(aws.region), ""
    found = None
    try:
        if not image_id:
            name, image_id = blueprint.resolve_base(aws)
            note = f"{image_id} ({name}: the first boot installs all, half an hour; inv image saves that)"
        found = _image(aws, image_id)
        if not found:
            missing.append(
                f"there is no image {image_id} in {aws.region}; correct MUSICGEN_AMI_ID or run: inv image"
            )
    except UserError as error:
        missing.append(f"there is no machine image for {aws.region}: {error}")
    if missing or not (found and image_id):
        raise BadInput("\n".join(missing))
    root, size_gib = found
    return Ready(
        image=image_id,
        root_device=root,
        disk_gib=max(settings.disk_gib or size_gib + (blueprint.SPARE_GIB if note else SPARE_GIB), size_gib),
        profile=profile_of(settings.instance_profile),
        group=group,
        key_name=settings.key_name,
        subnets=subnets,
        image_note=note,
    )


def _named(profile: str) -> dict[str, str]:
    return {"InstanceProfileName": profile.rpartition("/")[2]}


def _image(aws: Aws, image_id: str | None) -> tuple[str, int] | None:
    """The root device of an image and its size in GiB."""
    unknown = ("InvalidAMIID.NotFound", "InvalidAMIID.Malformed", "InvalidAMIID.Unavailable")
    found = image_id and aws.ask("ec2", "describe_images", ImageIds=[image_id], absent=unknown)
    if not found or not found["Images"]:
        return None
    only = found["Images"][0]
    root = only.get("RootDeviceName", "/dev/sda1")
    sizes = [
        disk["Ebs"].get("VolumeSize", 0)
        for disk in only.get("BlockDeviceMappings", [])
        if disk.get("DeviceName") == root and "Ebs" in disk
    ]
    return root, max(sizes, default=8)
