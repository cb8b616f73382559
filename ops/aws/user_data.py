"""A machine's user data: remote/bootstrap.sh with the values of one launch above it. Pure.

Everything is quoted for the shell. No secrets: everybody who may describe the machine can read user data.
EC2 accepts 16 KB at most, which is checked here.
"""

import re
import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from ops.release import Release
from worker.errors import BadInput

MAX_BYTES = 16 * 1024  # before base64
FAILED_GRACE_MIN = 10
_SECRET = re.compile(r"SECRET|TOKEN|PASSWORD|ACCESS_KEY|API_KEY")


@dataclass(frozen=True)
class Boot:
    """The values of one machine's first boot."""

    run_id: str
    expires_at: datetime
    lifetime_s: int
    region: str
    bucket: str
    prefix: str
    release: Release
    worker_env: Mapping[str, str]  # for /etc/musicgen/worker.env
    worker_options: Sequence[str] = ()  # for remote/job.sh
    endpoint_url: str = ""


def log_key(run_id: str) -> str:
    """The key of the boot log in the output."""
    return f"launches/{run_id}/bootstrap.log"


def render(boot: Boot, bootstrap: str, s3_object: str) -> str:
    """The whole script. Raises BadInput if it is too long or cannot hold a value.

    `bootstrap`, `s3_object`: the texts of remote/bootstrap.sh and remote/s3_object.py.
    """
    below = f"{boot.prefix}/" if boot.prefix else ""
    values = {
        "MUSICGEN_DEADLINE": str(int(boot.expires_at.timestamp())),
        "MUSICGEN_LIFETIME_S": str(boot.lifetime_s),
        "FAILED_GRACE_MIN": str(FAILED_GRACE_MIN),
        "AWS_DEFAULT_REGION": boot.region,
        "AWS_ENDPOINT_URL": boot.endpoint_url,
        "RUN_ID": boot.run_id,
        "CODE_ID": boot.release.id,
        "CODE_BUCKET": boot.bucket,
        "CODE_KEY": f"{below}{boot.release.key}" if boot.release.key else "",
        "CODE_SHA256": boot.release.sha256,
        "CODE_GIT_URL": boot.release.git_url,
        "CODE_COMMIT": boot.release.commit,
        "LOG_KEY": f"{below}{log_key(boot.run_id)}",
        "WORKER_OPTIONS": shlex.join(boot.worker_options),
        "WORKER_ENV": env_file(boot.worker_env),
        "S3_OBJECT_PY": s3_object,
    }
    return with_values(bootstrap, values)


def with_values(script: str, values: Mapping[str, str]) -> str:
    """The script with these variables set below its first line. Raises BadInput if it is too long for EC2."""
    shebang, _, rest = script.partition("\n")
    given = "".join(f"{name}={shlex.quote(value)}\n" for name, value in values.items())
    script = f"{shebang}\n{given}{rest}"
    if (size := len(script.encode())) > MAX_BYTES:
        raise BadInput(f"the user data has {size} bytes, EC2 accepts {MAX_BYTES}; shorten the settings")
    return script


def env_file(values: Mapping[str, str]) -> str:
    """`NAME='value'` lines that bash and systemd read alike. Raises BadInput for what they cannot hold."""
    for name, value in values.items():
        if _SECRET.search(name):
            raise ValueError(f"{name} is a secret and must not be in user data")
        if "'" in value or not value.isprintable():
            raise BadInput(f"{name} holds a quote or a control character; remove it")
    return "".join(f"{name}='{value}'\n" for name, value in values.items())
