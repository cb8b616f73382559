"""What the worker on a box is given: its settings, and credentials for the bucket.

`worker.env` holds settings; `aws.json` the credentials, which botocore reads anew through a
`credential_process`, so that a running worker goes on with what is pushed there later. Lines of worker.env
that are not ours to set stay. A machine of EC2 has its own role and is sent no credentials.
"""

from dataclasses import dataclass
from datetime import datetime

from ops.settings import Settings, rows
from ops.ssh import secrets
from ops.ssh.box import Box
from worker.errors import BadInput

ENV, KEYS, CONFIG = "worker.env", "aws.json", "aws.config"
# Settings of the user's that are the worker's, too. The place for songs is told apart.
_FOR_WORKER = ("model", "slots", "dtype", "hourly_cost_usd", "aws_region", "aws_endpoint_url", "hf_token")
# These too, but where the user sets none, the box's own line stays, whoever wrote it.
_UNLESS_THERE = ("stop_hook", "idle_limit_s", "no_progress_limit_s", "claim_ttl_s", "torch")
_CREDENTIALS = ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE")
_PLACE = ("MUSICGEN_S3_BUCKET", "MUSICGEN_S3_PREFIX", "MUSICGEN_OUTPUT")
_NEVER = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE")


@dataclass(frozen=True)
class Configured:
    """What the box was given. `expires`: when its credentials do; `source`: where they are from."""

    bucket: str | None
    made_bucket: bool
    source: str
    expires: datetime | None


def bucket_and_prefix(settings: Settings) -> tuple[str | None, str]:
    """Where songs go, as bucket and prefix; no bucket: into a folder of the box."""
    scheme, _, place = settings.output_place.partition("://")
    if scheme != "s3":
        return None, ""
    bucket, _, prefix = place.partition("/")
    return bucket, prefix.strip("/")


def worker_env(settings: Settings, home: str, *, credentials: bool) -> dict[str, str]:
    """The lines of worker.env; with `credentials`, where the worker finds those."""
    values = {
        row.name: str(value)
        for row in rows()
        if row.attribute in (*_FOR_WORKER, *_UNLESS_THERE)
        and (value := getattr(settings, row.attribute)) is not None
    }
    bucket, prefix = bucket_and_prefix(settings)
    if bucket:
        values |= {"MUSICGEN_S3_BUCKET": bucket}
        values |= {"MUSICGEN_S3_PREFIX": prefix} if prefix else {}
    if credentials:
        # A ~/.aws/credentials that the image brings would be asked first.
        values |= {"AWS_CONFIG_FILE": f"{home}/{CONFIG}", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null"}
    return values


def names_of_ours(platform: str) -> set[str]:
    """The names whose lines go when the user sets them no longer."""
    names = {row.name for row in rows() if row.attribute in _FOR_WORKER}
    if platform == "ec2":  # `inv launch` has told it these: they stay unless the user has others
        names -= {"HOURLY_COST_USD", "AWS_DEFAULT_REGION"}
    return names | {*_CREDENTIALS, *_PLACE, *_NEVER}


def aws_config(home: str) -> str:
    """An AWS configuration whose credentials are read from our file, again and again."""
    return f'[default]\ncredential_process = cat "{home}/{KEYS}"\n'


def has_own_keys(box: Box) -> bool:
    """True if the box was sent keys that do not expire."""
    script = 'grep -qs AccessKeyId "$1" && ! grep -qs Expiration "$1"'
    return box.shell(script, f"{box.info.home}/{KEYS}").code == 0


def configure(box: Box, settings: Settings, *, use_my_keys: bool = False) -> Configured:
    """Give the box settings and credentials, and make the bucket if there is none. Restarts nothing."""
    settings.check()
    bucket, prefix = bucket_and_prefix(settings)
    home = box.info.home
    has_role = box.info.platform == "ec2" and not use_my_keys
    lent, made = None, False
    if bucket:
        from ops.aws.account import bucket as buckets
        from ops.aws.account import credentials
        from ops.aws.session import Aws

        aws = Aws(settings, "install")
        if not buckets.exists(aws, bucket):
            buckets.ensure_bucket(aws, bucket)
            made = True
        if not has_role:
            lent = credentials.own(aws) if use_my_keys else credentials.lend(aws, bucket, prefix)
    elif use_my_keys:
        raise BadInput("--use-my-keys sends keys for a bucket and none is set; set MUSICGEN_S3_BUCKET")

    if lent:
        secrets.put(box, f"{home}/{KEYS}", lent.document)
        secrets.put(box, f"{home}/{CONFIG}", aws_config(home).encode())
    else:  # those of another time are no longer needed there
        box.shell('rm -f "$1" "$2"', f"{home}/{KEYS}", f"{home}/{CONFIG}")
    values = worker_env(settings, home, credentials=lent is not None)
    if box.info.platform == "ec2":
        values.pop("MUSICGEN_STOP_HOOK", None)  # what turns a pod off cannot do it there
    before = secrets.read(box, f"{home}/{ENV}")
    secrets.put(
        box, f"{home}/{ENV}", secrets.merged(before, values, names_of_ours(box.info.platform)).encode()
    )
    source = lent.source if lent else ("the machine's own role" if bucket else "none needed")
    return Configured(bucket, made, source, lent.expires if lent else None)
