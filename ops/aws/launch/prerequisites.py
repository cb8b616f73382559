"""What of the account a launch needs: bucket, profile, key pair, security group, subnets, image.

Falls back to AWS's image where this project has none; launch creates a missing security group. Changes
nothing. Everything else that is missing is named at once, each with the command that makes it.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from ops.aws.account import network
from ops.aws.images import registry
from ops.aws.rent import profile_name
from ops.aws.session import Aws
from worker.errors import BadInput, UserError

SPARE_GIB = 20  # on top of our image's disk: caches, songs before their upload, another model's weights
_LEAST_DISK_GIB = 8
_SETUP = "run: inv setup"


@dataclass(frozen=True)
class Prerequisites:
    """The parts of the account that a request to EC2 names."""

    image: str
    root_device: str
    disk_gib: int
    profile: str  # name or ARN
    group: str | None  # None: launch creates it
    key_name: str
    subnets: Mapping[str, str]  # zone -> subnet
    public_address: bool = True  # False: an own subnet decides
    image_note: str = ""  # what to know of an image that is AWS's


def look_up(aws: Aws, bucket: str) -> Prerequisites:
    """All of them. Raises BadInput with a line for each missing part."""
    settings = aws.settings
    missing = []
    if not aws.ask("s3", "head_bucket", Bucket=bucket, absent=("404", "NoSuchBucket")):
        missing.append(f"there is no bucket {bucket}; {_SETUP}")
    profile: str = settings.instance_profile
    named = {"InstanceProfileName": profile_name(profile)}
    if not aws.ask("iam", "get_instance_profile", absent=("NoSuchEntity",), **named):
        missing.append(f"there is no instance profile {profile}; {_SETUP}")
    key: str = settings.key_name
    if not aws.ask("ec2", "describe_key_pairs", absent=("InvalidKeyPair.NotFound",), KeyNames=[key]):
        missing.append(f"there is no key pair {key} in {aws.region}; {_SETUP}")
    group, subnets = None, {}
    try:
        group, subnets = network.group_id(aws), network.subnets(aws)
    except UserError as error:
        missing.append(str(error))
    image, note = settings.ami_id or registry.newest(aws.region), ""
    disk = None
    try:
        if not image:
            name, image = registry.resolve_base(aws)
            note = f"{image} ({name}: the first boot installs everything, half an hour; inv image saves that)"
        disk = _root_disk(aws, image)
        if not disk:
            missing.append(
                f"there is no image {image} in {aws.region}; correct MUSICGEN_AMI_ID or run: inv image"
            )
    except UserError as error:
        missing.append(f"there is no machine image for {aws.region}: {error}")
    if missing or not (disk and image):
        raise BadInput("\n".join(missing))
    root, size_gib = disk
    spare_gib = (registry.INSTALL_GIB if note else SPARE_GIB) + registry.more_gib(settings.model)
    return Prerequisites(
        image=image,
        root_device=root,
        disk_gib=max(settings.disk_gib or size_gib + spare_gib, size_gib),
        profile=profile,
        group=group,
        key_name=key,
        subnets=subnets,
        public_address=not settings.subnet_id,
        image_note=note,
    )


def _root_disk(aws: Aws, image: str) -> tuple[str, int] | None:
    """The root device of an image and its size in GiB; None if there is no such image."""
    unknown = ("InvalidAMIID.NotFound", "InvalidAMIID.Malformed", "InvalidAMIID.Unavailable")
    found = aws.ask("ec2", "describe_images", ImageIds=[image], absent=unknown)
    if not found or not found["Images"]:
        return None
    root, size_gib = registry.root_disk(found["Images"][0])
    return root, size_gib or _LEAST_DISK_GIB
