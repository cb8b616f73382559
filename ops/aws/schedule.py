"""The safeguard outside of the machine: an EventBridge schedule that ends it once, after its deadline.

It works even when the machine's own timers do not, and deletes itself after it has run. Its role is made
by `inv setup`.
"""

import json
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta

from ops.aws.session import Aws

PREFIX = "musicgen-"
SCHEDULER_ROLE = "musicgen-scheduler-role"
# The machine's own timers come first.
AFTER = timedelta(minutes=10)


def name_for(instance: str) -> str:
    """The schedule of one instance."""
    return PREFIX + instance


def arm(aws: Aws, instance: str, expires_at: datetime, region: str = "") -> str:
    """Create the schedule that ends this instance, unless it is there; -> its name. Raises UserError."""
    partition, account = aws.caller.partition, aws.caller.account
    at = (expires_at + AFTER).astimezone(UTC)  # in the scheduler's own format
    aws.act(
        "scheduler",
        "create_schedule",
        region=region,
        absent=("ConflictException",),
        Name=name_for(instance),
        Description=f"Ends {instance} if it is still there",
        ScheduleExpression=f"at({at:%Y-%m-%dT%H:%M:%S})",
        ScheduleExpressionTimezone="UTC",
        FlexibleTimeWindow={"Mode": "OFF"},
        ActionAfterCompletion="DELETE",
        Target={
            "Arn": f"arn:{partition}:scheduler:::aws-sdk:ec2:terminateInstances",
            "RoleArn": f"arn:{partition}:iam::{account}:role/{SCHEDULER_ROLE}",
            "Input": json.dumps({"InstanceIds": [instance]}),
        },
        ClientToken=name_for(instance),
    )
    return name_for(instance)


def listed(aws: Aws, region: str) -> list[str]:
    """The names of this project's schedules in a region."""
    found = aws.pages("scheduler", "list_schedules", "Schedules", region=region, NamePrefix=PREFIX)
    return sorted(schedule["Name"] for schedule in found)


def remove(aws: Aws, name: str, region: str = "") -> None:
    """Delete a schedule, if there is one."""
    log, request = aws.audit_of_ends, {"Name": name}
    with log.action("scheduler.delete_schedule", request, region=region, ends=True) as done:
        answer = aws.ask(
            "scheduler", "delete_schedule", region=region, absent=("ResourceNotFoundException",), Name=name
        )
        done({"there": answer is not None})


def orphans(names: Sequence[str], alive: Sequence[str]) -> list[str]:
    """Schedules whose instance is not among those alive."""
    return [name for name in names if name.removeprefix(PREFIX) not in alive]
