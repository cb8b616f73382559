"""The account's roles: created, compared with what is wanted, repaired and removed.

`musicgen-worker-role` is the role of EC2 machines, through the instance profile of the same name.
`musicgen-pod-role` gives temporary credentials to machines elsewhere, for at most 12 hours.
`musicgen-scheduler-role` lets an EventBridge schedule end a machine.
Each has one inline policy, named `musicgen`. Other policies on them are shown, and left alone.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

from ops.aws.account import policies
from ops.aws.account.step import ABSENT, KEEP, Step, step
from ops.aws.schedule import SCHEDULER_ROLE
from ops.aws.session import Aws, tag_dict, tag_list
from worker.errors import UserError

WORKER_ROLE = "musicgen-worker-role"
POD_ROLE = "musicgen-pod-role"
INLINE = "musicgen"
HOUR_S = 3600
MAX_SESSION_S = 12 * HOUR_S

_NO_ENTITY = ("NoSuchEntity",)


@dataclass(frozen=True)
class Role:
    """A role as it should be."""

    name: str
    purpose: str
    trust: policies.Policy
    policy: policies.Policy
    session_s: int = HOUR_S


def wanted_roles(aws: Aws, bucket: str, prefix: str = "") -> list[Role]:
    """The three roles, for this bucket and this operator."""
    partition = aws.caller.partition
    work = policies.worker(bucket, prefix, partition)
    me = principal(aws)
    return [
        Role(
            WORKER_ROLE,
            "MusicGen worker on EC2",
            policies.service_trust(policies.ec2_service(partition)),
            work,
        ),
        Role(POD_ROLE, "MusicGen worker elsewhere", policies.caller_trust(me), work, MAX_SESSION_S),
        Role(
            SCHEDULER_ROLE,
            "Ends MusicGen machines on time",
            policies.service_trust("scheduler.amazonaws.com", aws.caller.account),
            policies.scheduler(aws.caller.account, partition),
        ),
    ]


def principal(aws: Aws) -> str:
    """Whom the pod role trusts: the caller, or the role that the caller has assumed."""
    arn = aws.caller.arn
    kind, _, name = arn.rpartition(":")[2].partition("/")
    if kind != "assumed-role":
        return arn
    role = name.partition("/")[0]
    # A session's ARN does not have the role's path.
    found = aws.ask("iam", "get_role", RoleName=role, absent=(*_NO_ENTITY, "AccessDenied"))
    return (
        str(found["Role"]["Arn"])
        if found
        else f"arn:{aws.caller.partition}:iam::{aws.caller.account}:role/{role}"
    )


def role_step(aws: Aws, role: Role) -> Step:
    """What a role lacks, and what creates or repairs it."""
    drift = "; ".join(role_drift(aws, role))
    services = sorted({action.partition(":")[0] for action in _actions(role.policy)})
    wanted = f"{role.purpose}: {', '.join(services)} only"
    return step(f"role {role.name}", drift, wanted, lambda: ensure_role(aws, role))


def role_drift(aws: Aws, role: Role) -> Iterator[str]:
    """How the role differs from what it should be; ABSENT alone if there is none."""
    found = aws.ask("iam", "get_role", RoleName=role.name, absent=_NO_ENTITY)
    if not found:
        yield ABSENT
        return
    if found["Role"]["AssumeRolePolicyDocument"] != role.trust:
        yield "other trust"
    if found["Role"].get("MaxSessionDuration", HOUR_S) != role.session_s:
        yield f"sessions of {found['Role'].get('MaxSessionDuration', HOUR_S) // HOUR_S} h"
    inline = aws.ask("iam", "get_role_policy", RoleName=role.name, PolicyName=INLINE, absent=_NO_ENTITY)
    if not inline:
        yield "no policy"
    elif inline["PolicyDocument"] != role.policy:
        yield f"other policy ({_difference(inline['PolicyDocument'], role.policy)})"


def foreign_policies(aws: Aws, name: str) -> list[str]:
    """Policies on a role that setup did not create: they may allow more."""
    inline = aws.pages("iam", "list_role_policies", "PolicyNames", RoleName=name)
    attached = aws.pages("iam", "list_attached_role_policies", "AttachedPolicies", RoleName=name)
    return [i for i in inline if i != INLINE] + [a["PolicyName"] for a in attached]


def ensure_role(aws: Aws, role: Role) -> None:
    """Create the role, or change only what differs. Running it again changes nothing."""
    drift = list(role_drift(aws, role))
    trust = json.dumps(role.trust)
    if drift == [ABSENT]:
        aws.act(
            "iam",
            "create_role",
            RoleName=role.name,
            AssumeRolePolicyDocument=trust,
            Description=role.purpose,
            MaxSessionDuration=role.session_s,
            Tags=tag_list(),
        )
    for difference in drift:
        if difference == "other trust":
            aws.act("iam", "update_assume_role_policy", RoleName=role.name, PolicyDocument=trust)
        elif difference.startswith("sessions"):
            aws.act("iam", "update_role", RoleName=role.name, MaxSessionDuration=role.session_s)
        else:
            aws.act(
                "iam",
                "put_role_policy",
                RoleName=role.name,
                PolicyName=INLINE,
                PolicyDocument=json.dumps(role.policy),
            )


def profile_step(aws: Aws, name: str = WORKER_ROLE) -> Step:
    """The instance profile that gives a machine the worker's role."""
    found = aws.ask("iam", "get_instance_profile", InstanceProfileName=name, absent=_NO_ENTITY)
    drift = ABSENT if not found else None
    if found and not found["InstanceProfile"]["Roles"]:
        drift = "holds no role"
    return step(f"instance profile {name}", drift, f"holds {name}", lambda: ensure_profile(aws, name))


def ensure_profile(aws: Aws, name: str = WORKER_ROLE) -> str:
    """The ARN of the instance profile that holds the role of the same name, created if necessary.

    EC2 sees a new profile only after some time: a launch must try again meanwhile.
    """
    found = aws.ask("iam", "get_instance_profile", InstanceProfileName=name, absent=_NO_ENTITY)
    if not found:
        found = aws.act("iam", "create_instance_profile", InstanceProfileName=name, Tags=tag_list())
    held = [role["RoleName"] for role in found["InstanceProfile"].get("Roles", [])]
    if held and held != [name]:
        raise UserError(f"the instance profile {name} holds role {held[0]}; remove it and run it again")
    if not held:  # a profile holds one role: adding it twice is an error
        aws.act("iam", "add_role_to_instance_profile", InstanceProfileName=name, RoleName=name)
    return str(found["InstanceProfile"]["Arn"])


def removal_steps(aws: Aws) -> Iterator[Step]:
    """The removal of the profile and the roles that setup created."""
    name = WORKER_ROLE
    profile = aws.ask("iam", "get_instance_profile", InstanceProfileName=name, absent=_NO_ENTITY)
    if profile:
        yield _removal(
            f"instance profile {name}", profile["InstanceProfile"], lambda: remove_profile(aws, name)
        )
    for role_name in (WORKER_ROLE, POD_ROLE, SCHEDULER_ROLE):
        found = aws.ask("iam", "get_role", RoleName=role_name, absent=_NO_ENTITY)
        if not found:
            continue
        foreign = foreign_policies(aws, role_name)
        if foreign:
            yield Step(f"role {role_name}", f"has other policies: {', '.join(foreign)}", "kept", KEEP)
        else:
            yield _removal(f"role {role_name}", found["Role"], partial(remove_role, aws, role_name))


def remove_profile(aws: Aws, name: str) -> None:
    """Empty and delete an instance profile."""
    found = aws.ask("iam", "get_instance_profile", InstanceProfileName=name, absent=_NO_ENTITY)
    for role in found["InstanceProfile"]["Roles"] if found else ():
        aws.act(
            "iam",
            "remove_role_from_instance_profile",
            InstanceProfileName=name,
            RoleName=role["RoleName"],
        )
    if found:
        aws.act("iam", "delete_instance_profile", InstanceProfileName=name)


def remove_role(aws: Aws, name: str) -> None:
    """Delete a role with its inline policy."""
    if aws.ask("iam", "get_role_policy", RoleName=name, PolicyName=INLINE, absent=_NO_ENTITY):
        aws.act("iam", "delete_role_policy", RoleName=name, PolicyName=INLINE)
    aws.act("iam", "delete_role", RoleName=name)


def _removal(thing: str, found: dict[str, Any], act: Any) -> Step:
    if "Project" not in tag_dict(found.get("Tags")):
        return Step(thing, "there, not created by setup (no tag)", "kept", KEEP)
    return Step(thing, "there", ABSENT, "delete", act)


def _actions(policy: policies.Policy) -> set[str]:
    found: set[str] = set()
    for statement in policy["Statement"]:
        actions = statement["Action"]
        found |= {actions} if isinstance(actions, str) else set(actions)
    return found


def _difference(found: policies.Policy, wanted: policies.Policy) -> str:
    more = sorted(_actions(found) - _actions(wanted))
    less = sorted(_actions(wanted) - _actions(found))
    parts = [f"also {', '.join(more)}"] * bool(more) + [f"not {', '.join(less)}"] * bool(less)
    return "; ".join(parts) or "another resource or condition"
