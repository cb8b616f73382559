"""Send the worker on a box its settings, and credentials for the bucket.

`worker.env` holds the settings; `aws.json` the credentials, which botocore reads again and again through a
`credential_process`, so that a running worker takes up new ones. Lines of worker.env that are not managed
here stay. An EC2 machine has its own role and is sent no credentials.
"""

from dataclasses import dataclass
from datetime import datetime

from ops.settings import Settings, rows
from ops.ssh import secrets
from ops.ssh.box import Box
from worker.errors import BadInput

ENV, KEYS, CONFIG = "worker.env", "aws.json", "aws.config"
# The user's settings that the worker gets; where songs go is added by worker_env.
_WORKER_SETTINGS = (
    "model",
    "slots",
    "dtype",
    "fade_ms",
    "hourly_cost_usd",
    "aws_region",
    "aws_endpoint_url",
    "hf_token",
    "models_dir",
    "heartmula_dir",
    "commercial",
)
# These too; but where the user has none, the line in the box's worker.env stays.
_KEPT_IF_UNSET = ("stop_hook", "idle_limit_s", "no_progress_limit_s", "claim_ttl_s", "torch")
_CREDENTIALS = ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE")
_OUTPUT = ("MUSICGEN_S3_BUCKET", "MUSICGEN_S3_PREFIX", "MUSICGEN_OUTPUT")
_NEVER = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE")


@dataclass(frozen=True)
class BoxConfiguration:
    """What the box was sent. `source`: where its credentials come from; `expires`: when they do."""

    bucket: str | None
    made_bucket: bool
    source: str
    expires: datetime | None


def bucket_and_prefix(settings: Settings) -> tuple[str | None, str]:
    """Where songs go, as bucket and prefix; without a bucket, into a folder of the box."""
    scheme, _, place = settings.output_place.partition("://")
    if scheme != "s3":
        return None, ""
    bucket, _, prefix = place.partition("/")
    return bucket, prefix.strip("/")


def worker_env(settings: Settings, home: str, *, credentials: bool) -> dict[str, str]:
    """The lines of worker.env; with `credentials`, also where the worker finds them."""
    values = {
        row.name: str(value)
        for row in rows()
        if row.attribute in (*_WORKER_SETTINGS, *_KEPT_IF_UNSET)
        and (value := getattr(settings, row.attribute)) is not None
    }
    bucket, prefix = bucket_and_prefix(settings)
    if bucket:
        values |= {"MUSICGEN_S3_BUCKET": bucket}
        values |= {"MUSICGEN_S3_PREFIX": prefix} if prefix else {}
    if credentials:
        # botocore would read a ~/.aws/credentials of the image first.
        values |= {"AWS_CONFIG_FILE": f"{home}/{CONFIG}", "AWS_SHARED_CREDENTIALS_FILE": "/dev/null"}
    return values


def managed_names(platform: str) -> set[str]:
    """The names whose lines are removed from worker.env when the user no longer sets them."""
    names = {row.name for row in rows() if row.attribute in _WORKER_SETTINGS}
    if platform == "ec2":  # set by `inv launch`: they stay unless the user has others
        names -= {"HOURLY_COST_USD", "AWS_DEFAULT_REGION"}
    return names | {*_CREDENTIALS, *_OUTPUT, *_NEVER}


def aws_config(home: str) -> str:
    """An AWS configuration that reads the credentials from aws.json each time they are needed."""
    return f'[default]\ncredential_process = cat "{home}/{KEYS}"\n'


def has_own_keys(box: Box) -> bool:
    """True if the box was sent keys that do not expire."""
    script = 'grep -qs AccessKeyId "$1" && ! grep -qs Expiration "$1"'
    return box.shell(script, f"{box.info.home}/{KEYS}").code == 0


def configure(box: Box, settings: Settings, *, use_my_keys: bool = False) -> BoxConfiguration:
    """Send the box settings and credentials, and create the bucket if there is none. Restarts nothing."""
    settings.check()
    bucket, prefix = bucket_and_prefix(settings)
    home = box.info.home
    has_role = box.info.platform == "ec2" and not use_my_keys
    lent, made = None, False
    if bucket:
        from ops.aws.account import bucket as buckets  # here: `fab --list` stays under 1 s
        from ops.aws.account import credentials
        from ops.aws.session import Aws

        aws = Aws(settings, "install")
        if not buckets.exists(aws, bucket):
            buckets.ensure_bucket(aws, bucket)
            made = True
        if not has_role:
            lent = credentials.own(aws) if use_my_keys else credentials.lend(aws, bucket, prefix)
    elif use_my_keys:
        raise BadInput(
            "--use-my-keys sends keys for a bucket, and there is no bucket; set MUSICGEN_S3_BUCKET"
        )

    if lent:
        secrets.put(box, f"{home}/{KEYS}", lent.document)
        secrets.put(box, f"{home}/{CONFIG}", aws_config(home).encode())
    else:  # the box may have credentials from an earlier time
        box.shell('rm -f "$1" "$2"', f"{home}/{KEYS}", f"{home}/{CONFIG}")
    values = worker_env(settings, home, credentials=lent is not None)
    if box.info.platform == "ec2":
        values.pop("MUSICGEN_STOP_HOOK", None)  # the user's hook is for pods and does not work on EC2
    before = secrets.read(box, f"{home}/{ENV}")
    secrets.put(
        box, f"{home}/{ENV}", secrets.merged(before, values, managed_names(box.info.platform)).encode()
    )
    source = lent.source if lent else ("the machine's own role" if bucket else "none needed")
    return BoxConfiguration(bucket, made, source, lent.expires if lent else None)
