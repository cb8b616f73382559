"""What the account needs before the first launch: shown step by step, created, and removed again.

    steps = plan(aws, name)           # asks only; each step: how it is, how it should be
    carry_out(steps, say)             # changes only what differs; again: nothing to do
    carry_out(removal(aws), say)      # only what setup created, never a bucket with content

Nothing here rents a machine or costs anything but the bucket's content.
"""

import secrets
from collections.abc import Callable, Sequence

from ops.aws.account import bucket, budget, iam, keys, network, quota
from ops.aws.account.step import KEEP, Step
from ops.aws.session import Aws
from worker.amounts import count
from worker.errors import UserError


def plan(aws: Aws, name: str, ssh_from: str = "") -> list[Step]:
    """Everything the account needs, as it is now; `name` is the bucket's (see bucket.choose)."""
    prefix = (aws.settings.prefix or "").strip("/")
    source = network.ssh_source(aws.settings, ssh_from)
    roles = iam.wanted_roles(aws, name, prefix)
    return [
        bucket.bucket_step(aws, name),
        *(iam.role_step(aws, role) for role in roles),
        iam.profile_step(aws),
        keys.key_step(aws, aws.settings),
        network.group_step(aws, source),
        budget.budget_step(aws),
        *quota.quota_steps(aws),
    ]


def bucket_name(aws: Aws) -> str:
    """The bucket that setup would use: the configured one, the one found, or a new random name."""
    return bucket.choose(aws, secrets.token_hex(5))


def removal(aws: Aws) -> list[Step]:
    """Everything that setup created and that is still there, the last first, and what becomes of it."""
    names = [aws.settings.bucket] if aws.settings.bucket else sorted(bucket.owned(aws))
    steps = [
        budget.budget_removal(aws),
        network.group_removal(aws),
        keys.key_removal(aws, aws.settings),
        *iam.removal_steps(aws),
        *(bucket.removal_step(aws, name) for name in names),
    ]
    return [step for step in steps if step]


def n_changes(steps: Sequence[Step]) -> int:
    """How many steps would change something."""
    return sum(step.action != KEEP for step in steps)


def carry_out(steps: Sequence[Step], say: Callable[[str], None]) -> int:
    """Do what there is to do, in order; -> how many steps changed something.

    A step that fails ends it with its error. What was done stays; the next run does the rest.
    """
    to_do = [step for step in steps if step.act and step.action != KEEP]
    for number, step in enumerate(to_do, 1):
        say(f"[{number}/{len(to_do)}] {step.action} {step.thing}")
        assert step.act  # noqa: S101  filtered above
        try:
            step.act()
        except UserError:
            done = f"{number - 1} of {count(len(to_do), 'step')}"
            say(f"stopped after {done}, which stay; run it again for the rest")
            raise
    return len(to_do)


def env_values(aws: Aws, name: str) -> dict[str, str]:
    """The settings after a setup, for .env; `name` is the bucket's."""
    return {
        "AWS_DEFAULT_REGION": aws.region,
        "MUSICGEN_S3_BUCKET": name,
        "MUSICGEN_INSTANCE_PROFILE": iam.WORKER_ROLE,
        "MUSICGEN_KEY_NAME": aws.settings.key_name,
    }
