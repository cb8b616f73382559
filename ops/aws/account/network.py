"""The network of a machine: the security group that allows SSH alone, and the subnet of each zone.

SSH is open to one IP address or network: by default your IP address, and nobody if it cannot be found.
"""

import ipaddress
import urllib.request
from dataclasses import dataclass
from typing import Any

from ops.aws.account.step import ABSENT, KEEP, Step, step
from ops.aws.session import Aws, tag_dict, tag_list
from ops.settings import Settings
from worker.errors import BadInput, UserError

GROUP = "musicgen-worker"
SSH_PORT = 22
NOBODY = "none"
# Marks the rules that setup replaces when the address changes.
_OUR_RULE = "musicgen setup"


# --- who may reach SSH


@dataclass(frozen=True)
class SshSource:
    """A network in CIDR form, or None for nobody; `why`: where it comes from."""

    cidr: str | None
    why: str


def ssh_source(settings: Settings, option: str = "") -> SshSource:
    """The option, else MUSICGEN_SSH_FROM, else your public IP address, else nobody.

    Raises BadInput for what is not a network and for the whole internet.
    """
    asked = (option or settings.ssh_from or "").strip()
    if asked.lower() == NOBODY:
        return SshSource(None, "closed, as asked")
    if asked:
        return SshSource(_network(asked), "as asked")
    address = public_address(settings.address_url)
    if not address:
        return SshSource(None, "closed: your IP address was not found; give --ssh-from")
    return SshSource(_network(address), "your IP address")


def public_address(url: str, timeout_s: float = 5.0) -> str | None:
    """This machine's public address, as the page at `url` reports it; None if it does not answer."""
    if not url.startswith(("https://", "http://")):
        raise BadInput(
            "MUSICGEN_ADDRESS_URL is not a web address; write it like https://checkip.amazonaws.com"
        )
    try:
        with urllib.request.urlopen(url, timeout=timeout_s) as answer:  # noqa: S310  checked above
            return str(ipaddress.ip_address(answer.read(64).decode("ascii").strip()))
    except (OSError, ValueError):
        return None


def _network(text: str) -> str:
    try:
        network = ipaddress.ip_network(text, strict=False)
    except ValueError:
        raise BadInput(f"{text} is not an IP address or network; write it like 203.0.113.7/32") from None
    if network.prefixlen == 0:
        raise BadInput(f"{text} opens SSH to everybody; give your own IP address, like 203.0.113.7/32")
    return str(network)


# --- the security group


def group_id(aws: Aws) -> str | None:
    """The id of this project's security group in the machines' VPC, if there is one."""
    found = _group(aws, _vpc(aws))
    return str(found["GroupId"]) if found else None


def group_step(aws: Aws, source: SshSource) -> Step:
    """What is missing: the group, or the right address; other rules are only shown."""
    vpc = _vpc(aws)
    found = _group(aws, vpc)
    wanted = f"SSH from {source.cidr}" if source.cidr else f"no access ({source.why})"
    drift = []
    also = ""
    if found is None:
        drift = [ABSENT]
    else:
        ours, others = _rules(found)
        # Not found is not the same as `none`: an address that has access keeps it when yours is not found.
        if source.cidr is None and source.why != "closed, as asked" and ours:
            return Step(f"security group {GROUP}", f"SSH from {', '.join(ours)}", "the same: " + source.why)
        if ours != ([source.cidr] if source.cidr else []):
            drift = [f"SSH from {', '.join(ours) or 'nowhere'}"]
        also = f"; also open, not by setup: {', '.join(others)}" if others else ""
    made = step(f"security group {GROUP}", ", ".join(drift), wanted, lambda: ensure_group(aws, source))
    return Step(made.thing, made.now + also, made.wanted, made.action, made.act)


def ensure_group(aws: Aws, source: SshSource) -> str:
    """The id of the security group, created if necessary, with access for the wanted source alone."""
    vpc = _vpc(aws)
    found = _group(aws, vpc)
    if found is None:
        made = aws.act(
            "ec2",
            "create_security_group",
            GroupName=GROUP,
            Description="SSH to MusicGen machines",
            VpcId=vpc,
            TagSpecifications=[{"ResourceType": "security-group", "Tags": tag_list()}],
        )
        group, ours = str(made["GroupId"]), []
    else:
        group, ours = str(found["GroupId"]), _rules(found)[0]
    # First the new rule, then the old ones: a failure between them leaves too many rules, not none.
    if source.cidr and source.cidr not in ours:
        aws.act(
            "ec2",
            "authorize_security_group_ingress",
            GroupId=group,
            IpPermissions=[_permission(source.cidr, describe=True)],
        )
    for cidr in ours:
        if cidr != source.cidr:
            aws.act(
                "ec2",
                "revoke_security_group_ingress",
                GroupId=group,
                IpPermissions=[_permission(cidr, describe=False)],
            )
    return group


def group_removal(aws: Aws) -> Step | None:
    """The removal of the security group, if setup created it."""
    vpc = _find_vpc(aws)
    found = _group(aws, vpc) if vpc else None
    if not found:
        return None
    if "Project" not in tag_dict(found.get("Tags")):
        return Step(f"security group {GROUP}", "there, not created by setup (no tag)", "kept", KEEP)
    used = aws.ask(
        "ec2",
        "describe_instances",
        Filters=[
            {"Name": "instance.group-id", "Values": [found["GroupId"]]},
            {"Name": "instance-state-name", "Values": ["pending", "running", "stopping", "stopped"]},
        ],
    )["Reservations"]
    if used:
        return Step(f"security group {GROUP}", "a machine uses it", "kept; end it first: inv kill-all", KEEP)
    return Step(
        f"security group {GROUP}",
        "there",
        ABSENT,
        "delete",
        lambda: aws.act("ec2", "delete_security_group", GroupId=found["GroupId"]),
    )


def _group(aws: Aws, vpc: str) -> dict[str, Any] | None:
    filters = [{"Name": "group-name", "Values": [GROUP]}, {"Name": "vpc-id", "Values": [vpc]}]
    found = aws.ask("ec2", "describe_security_groups", Filters=filters)["SecurityGroups"]
    return dict(found[0]) if found else None


def _rules(group: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The networks that setup's rules allow, and the other rules."""
    ours, others = [], []
    for rule in group["IpPermissions"]:
        ports = f"{rule.get('FromPort', 'all')}-{rule.get('ToPort', 'all')}/{rule['IpProtocol']}"
        for entry in [*rule.get("IpRanges", ()), *rule.get("Ipv6Ranges", ())]:
            cidr = entry.get("CidrIp") or entry.get("CidrIpv6")
            ssh = rule["IpProtocol"] == "tcp" and rule.get("FromPort") == rule.get("ToPort") == SSH_PORT
            if ssh and entry.get("Description") == _OUR_RULE:
                ours.append(cidr)
            else:
                others.append(f"{ports} from {cidr}")
        others += [f"{ports} from {peer['GroupId']}" for peer in rule.get("UserIdGroupPairs", ())]
    return sorted(ours), others


def _permission(cidr: str, describe: bool) -> dict[str, Any]:
    described = {"Description": _OUR_RULE} if describe else {}
    permission: dict[str, Any] = {"IpProtocol": "tcp", "FromPort": SSH_PORT, "ToPort": SSH_PORT}
    if ":" in cidr:
        return permission | {"Ipv6Ranges": [{"CidrIpv6": cidr} | described]}
    return permission | {"IpRanges": [{"CidrIp": cidr} | described]}


# --- subnets


def subnets(aws: Aws, region: str = "") -> dict[str, str]:
    """zone -> the subnet of the default VPC in it, or MUSICGEN_SUBNET_ID alone.

    Nothing can be rented in a zone without one.
    """
    if aws.settings.subnet_id:
        own = _own_subnet(aws, region)
        return {own["AvailabilityZone"]: own["SubnetId"]}
    vpc = _vpc(aws, region)
    found = aws.pages(
        "ec2",
        "describe_subnets",
        "Subnets",
        region=region,
        Filters=[{"Name": "vpc-id", "Values": [vpc]}, {"Name": "state", "Values": ["available"]}],
    )
    # A zone's default subnet last, so that it wins: it is routed to the internet.
    ordered = sorted(found, key=lambda subnet: (bool(subnet.get("DefaultForAz")), subnet["SubnetId"]))
    return {subnet["AvailabilityZone"]: subnet["SubnetId"] for subnet in ordered}


def _own_subnet(aws: Aws, region: str = "") -> dict[str, Any]:
    unknown = ("InvalidSubnetID.NotFound", "InvalidSubnetID.Malformed")
    subnet = aws.settings.subnet_id
    found = aws.ask("ec2", "describe_subnets", absent=unknown, region=region, SubnetIds=[subnet])
    if not found or not found["Subnets"]:
        raise BadInput(f"{region or aws.region} has no subnet {subnet}; correct MUSICGEN_SUBNET_ID")
    return dict(found["Subnets"][0])


def _vpc(aws: Aws, region: str = "") -> str:
    found = _find_vpc(aws, region)
    if not found:
        raise UserError(
            f"region {region or aws.region} has no default VPC; create one "
            "(`aws ec2 create-default-vpc`), set MUSICGEN_SUBNET_ID, or choose another AWS_DEFAULT_REGION"
        )
    return found


def _find_vpc(aws: Aws, region: str = "") -> str | None:
    """The VPC of MUSICGEN_SUBNET_ID, else the default one."""
    if aws.settings.subnet_id:
        return str(_own_subnet(aws, region)["VpcId"])
    filters = [{"Name": "is-default", "Values": ["true"]}]
    found = aws.ask("ec2", "describe_vpcs", region=region, Filters=filters)["Vpcs"]
    return str(found[0]["VpcId"]) if found else None
