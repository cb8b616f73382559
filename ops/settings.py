"""Every setting, once: from the environment and `.env`; the environment wins.

A value is parsed when its attribute is read, so a malformed setting stops only the task that needs it.
An empty value counts as unset. Secrets are never in a repr or an error.
Nothing is exported or created at load. A broken line of `.env` and a misspelt name are a warning, and where
money is spent an error: they may have been a maximum price.
"""

import math
import os
import re
import types
from collections.abc import Iterator, Mapping, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_args

from ops import ui
from ops.env_file import ENV_FILE, env_file, label, read_env_file
from worker import names
from worker.errors import BadInput

# All from one source: AWS refuses a key of one identity with the session token of another.
AWS_KEYS = ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_PROFILE")

_NOT_AN_ASSIGNMENT = "not NAME=value, so it is skipped; correct it or put # before it"


@dataclass(eq=False)
class Row:
    """One setting: a dataclass field that keeps the text and parses it when it is read."""

    name: str
    default: object
    meaning: str
    secret: bool = False
    choices: tuple[str, ...] = ()
    least: int = 1
    attribute: str = field(init=False)
    kind: type = field(init=False)

    def __set_name__(self, owner: type, attribute: str) -> None:
        hint = owner.__annotations__[attribute]
        self.attribute = attribute
        self.kind = get_args(hint)[0] if isinstance(hint, types.UnionType) else hint

    def __set__(self, settings: object, value: object) -> None:
        vars(settings)[self.attribute] = value

    def __get__(self, settings: object | None, owner: type) -> Any:
        if settings is None:  # the dataclass asks for its field's default
            return self.default
        value = vars(settings)[self.attribute]
        return self.parse(value) if isinstance(value, str) else value

    def parse(self, text: str) -> object:
        """The typed value of a text; the default if it is empty. Raises BadInput."""
        text = text.strip()
        if not text:
            return self.default
        if self.kind is float:
            return self._amount(text)
        if self.kind is int:
            return self._count(text)
        if self.choices and text not in self.choices:
            raise BadInput(f"{self.name}={text} is not one of {', '.join(self.choices)}; correct it")
        return text

    def _count(self, text: str) -> int:
        if not (text.isascii() and text.isdigit() and len(text) < 10 and int(text) >= self.least):
            known = f"of {self.least} or more" if self.least != 1 else "over 0"
            raise BadInput(f"{self.name}={text} is not a whole number {known}; correct it")
        return int(text)

    def _amount(self, text: str) -> float:
        try:
            amount = float(text)
        except ValueError:
            amount = math.nan
        if not 0 <= amount < math.inf:
            raise BadInput(
                f"{self.name}={text} is not a number of 0 or more; "
                f"write it like {self.name}={self.default or '0.40'} in {ENV_FILE} or the environment"
            )
        return amount


def row(name: str, default: object, meaning: str, **rules: Any) -> Any:
    """A setting's environment name, default and one line of meaning; `rules`: Row's other fields."""
    return Row(name, default, meaning, **rules)


@dataclass(frozen=True, repr=False)  # our own repr: secrets show as ***
class Settings:
    """Every setting. `.env.example` is made from these rows."""

    model: str = row(
        "MUSICGEN_MODEL",
        "facebook/musicgen-medium",
        "Hugging Face name or folder; `rehearsal` is a built-in tiny model that makes noise",
    )
    slots: int | None = row(
        "MUSICGEN_SLOTS", None, "songs generated at once; empty: as many as fit into memory"
    )
    dtype: str | None = row(
        "MUSICGEN_DTYPE",
        None,
        "fp32, fp32-kv16 (CPUs: fp32 with half the cache), bf16 or fp16; empty: the fastest on the device",
        choices=("auto", "fp32", "fp32-kv16", "bf16", "fp16"),
    )
    fade_ms: float = row(
        "MUSICGEN_FADE_MS", 0.0, "milliseconds over which a song's cut end fades out; 0: it is cut"
    )
    prompts: str = row("MUSICGEN_PROMPTS", "prompts.txt", "the job list")
    output: str | None = row(
        "MUSICGEN_OUTPUT", None, "output: a folder or s3:// address; empty: the bucket, else out/songs"
    )
    bucket: str | None = row(
        "MUSICGEN_S3_BUCKET", None, "the bucket for songs and records; `inv setup` makes it"
    )
    prefix: str | None = row("MUSICGEN_S3_PREFIX", None, "folder inside the bucket; empty: none")
    hourly_cost_usd: float | None = row(
        "HOURLY_COST_USD", None, "price of the machine in USD per hour, for the cost report"
    )
    aws_region: str | None = row("AWS_DEFAULT_REGION", None, "AWS region, like us-east-1")
    aws_access_key_id: str | None = row("AWS_ACCESS_KEY_ID", None, "AWS key", secret=True)
    aws_secret_access_key: str | None = row("AWS_SECRET_ACCESS_KEY", None, "AWS secret key", secret=True)
    aws_session_token: str | None = row(
        "AWS_SESSION_TOKEN", None, "only with temporary AWS keys", secret=True
    )
    aws_endpoint_url: str | None = row(
        "AWS_ENDPOINT_URL", None, "address of another S3 than Amazon's; empty: Amazon's"
    )
    aws_profile: str | None = row(
        "AWS_PROFILE", None, "a profile of ~/.aws/config, instead of keys (SSO, roles)"
    )
    skip_regions: str | None = row(
        "MUSICGEN_SKIP_REGIONS",
        None,
        "regions in which `inv status` and `inv kill-all` do not look, separated by commas; empty: none",
    )
    instance_types: str = row(
        "MUSICGEN_INSTANCE_TYPES", "g4dn.xlarge", "EC2 instance types that may be rented, separated by commas"
    )
    max_price_usd: float = row("MUSICGEN_MAX_PRICE", 0.40, "maximum price in USD per hour")
    ami_id: str | None = row(
        "MUSICGEN_AMI_ID",
        None,
        "machine image; empty: the newest of `inv image`, else AWS's image for GPUs",
    )
    lifetime_h: float = row(
        "MUSICGEN_LIFETIME_H",
        8.0,
        "hours after which a rented machine ends in any case; 0 over SSH: no deadline",
    )
    subnet_id: str | None = row(
        "MUSICGEN_SUBNET_ID",
        None,
        "a subnet of your own for EC2 machines, which must reach the internet; empty: the default VPC's",
    )
    disk_gib: int | None = row(
        "MUSICGEN_DISK_GIB",
        None,
        "disk of a rented EC2 machine in GiB; empty: 20 more than its image, and room for a large model",
    )
    git_url: str | None = row(
        "MUSICGEN_GIT_URL",
        None,
        "a public repository from which EC2 machines clone this checkout's commit; "
        "empty: this folder is sent through the bucket",
    )
    instance_profile: str = row(
        "MUSICGEN_INSTANCE_PROFILE",
        "musicgen-worker-role",
        "name or ARN of a machine's instance profile",
    )
    key_name: str = row("MUSICGEN_KEY_NAME", "musicgen-worker", "EC2 key pair, for SSH")
    key_file: str = row(
        "MUSICGEN_KEY_FILE", "~/.musicgen/musicgen-worker.pem", "the private key of that key pair"
    )
    ssh_from: str | None = row(
        "MUSICGEN_SSH_FROM",
        None,
        "IP address or network that may reach SSH, or `none`; empty: only your IP address",
    )
    address_url: str = row(
        "MUSICGEN_ADDRESS_URL",
        "https://checkip.amazonaws.com",
        "a page that returns your public IP address",
    )
    base_image: str | None = row(
        "MUSICGEN_BASE_IMAGE",
        None,
        "what `inv image` builds on: an ami- id or the name of an SSM parameter; empty: AWS's image for GPUs",
    )
    budget_email: str | None = row(
        "MUSICGEN_BUDGET_EMAIL", None, "e-mail address for budget alerts; empty: no alerts"
    )
    budget_usd: float = row(
        "MUSICGEN_BUDGET_USD", 20.0, "budget of the whole account in USD per month, for those alerts"
    )
    audit_log: str = row(
        "MUSICGEN_AUDIT_LOG", "~/.musicgen/audit.jsonl", "the log of what was created, changed and deleted"
    )
    runpod_host: str | None = row("RUNPOD_HOST", None, "the box for `fab`: root@IP:PORT; empty: the newest")
    runpod_user: str = row("RUNPOD_USER", "root", "login name, if the address has none")
    ssh_key: str | None = row(
        "RUNPOD_SSH_KEY", None, "private key file for that box; empty: the keys of the SSH agent and ~/.ssh"
    )
    runpod_api_key: str | None = row(
        "RUNPOD_API_KEY",
        None,
        "RunPod API key, from Settings, API Keys in its console; one that may write pods and volumes",
        secret=True,
    )
    runpod_api_url: str = row(
        "RUNPOD_API_URL", "https://api.runpod.io", "address of RunPod's API, without /v2"
    )
    runpod_cloud: str = row(
        "RUNPOD_CLOUD",
        "secure",
        "where pods may run: secure (RunPod's own data centres), community (other people's machines) or any",
        choices=("secure", "community", "any"),
    )
    runpod_image: str = row(
        "RUNPOD_IMAGE",
        "runpod/pytorch:1.0.3-cu1290-torch291-ubuntu2204",
        "container image of a pod; its tag says which CUDA version the machine needs",
    )
    runpod_volume_id: str | None = row(
        "RUNPOD_NETWORK_VOLUME_ID",
        None,
        "network volume that a pod mounts at /workspace, in whose data centre it then is; empty: none",
    )
    pod_role: str = row(
        "MUSICGEN_POD_ROLE",
        "musicgen-pod-role",
        "name or ARN of the role whose temporary credentials a box gets",
    )
    stop_hook: str | None = row(
        "MUSICGEN_STOP_HOOK",
        None,
        "executable on a box that switches it off after the run: an absolute path, or one in this folder; "
        "empty: on RunPod remote/stop_pod.py, else none; EC2 machines have their own",
    )
    idle_limit_s: int | None = row(
        "MUSICGEN_IDLE_LIMIT_S",
        None,
        "seconds without a worker after which a box switches off, 0: never; empty: the box's, else 1800",
        least=0,
    )
    no_progress_limit_s: int | None = row(
        "MUSICGEN_NO_PROGRESS_LIMIT_S",
        None,
        "seconds without progress after which a box switches off, 0: never; empty: the box's, else 1800",
        least=0,
    )
    claim_ttl_s: int | None = row(
        "MUSICGEN_CLAIM_TTL_S",
        None,
        "seconds without a heartbeat before another worker takes the song; empty: 120",
    )
    torch: str | None = row(
        "MUSICGEN_TORCH",
        None,
        "torch on a box: auto (the image's if it is the pinned version), image or pinned; empty: auto",
        choices=("auto", "image", "pinned"),
    )
    models_dir: str | None = row(
        "MUSICGEN_MODELS_DIR",
        None,
        "folder on a box for models' files, a folder for each model; "
        "empty: /workspace/models where a volume is, else models in the box's root",
    )
    heartmula_dir: str | None = row(
        "MUSICGEN_HEARTMULA_DIR",
        None,
        "folder on a box for HeartMuLa's files; "
        "empty: /workspace/ckpt where a volume is, else ckpt in the box's root",
    )
    commercial: str | None = row(
        "MUSICGEN_COMMERCIAL",
        None,
        "1: refuse a model whose weights may not be used commercially, before anything is rented",
        choices=("0", "1"),
    )
    hf_token: str | None = row("HF_TOKEN", None, "Hugging Face token, for models that need one", secret=True)

    @classmethod
    def load(
        cls, env: Mapping[str, str] = os.environ, file: Path | None = None, *, spends: bool = False
    ) -> "Settings":
        """Settings of the environment and the file, if there is one. Raises BadInput if it is unreadable.

        Warns of names that are no settings and of broken lines; raises BadInput with all of them if the
        command `spends` money.
        """
        wrong = mistakes(env, file)
        if wrong and spends:
            raise BadInput("\n".join(wrong))
        for each in wrong:
            ui.warn(each)
        values: dict[str, Any] = dict(child_env(env, file))
        # boto3 reads the one name, other tools of AWS the other.
        values["AWS_DEFAULT_REGION"] = values.get("AWS_DEFAULT_REGION") or values.get("AWS_REGION", "")
        return cls(**{row.attribute: values.get(row.name, "") for row in rows()})

    @property
    def output_place(self) -> str:
        """The output after all settings: a folder, or `s3://BUCKET[/PREFIX]`."""
        if self.output:
            return self.output
        if self.bucket:
            return f"s3://{self.bucket}/{(self.prefix or '').strip('/')}".rstrip("/")
        return "out/songs"

    @property
    def is_commercial(self) -> bool:
        """True if the songs are for commercial use."""
        return self.commercial == "1"

    @property
    def audit_file(self) -> Path:
        """The audit log as a path."""
        return Path(self.audit_log).expanduser()

    @property
    def instance_type_list(self) -> list[str]:
        """The EC2 instance types that may be rented, in order. Raises BadInput for a malformed one."""
        found = [name for name in re.split(r"[,\s]+", self.instance_types.strip()) if name]
        wrong = [name for name in found if not re.fullmatch(r"[a-z0-9-]+\.[a-z0-9-]+", name)]
        if wrong or not found:
            raise BadInput(
                f"MUSICGEN_INSTANCE_TYPES={self.instance_types} is not a list of instance types; "
                "write it like g4dn.xlarge,g5.xlarge"
            )
        return found

    def check(self) -> None:
        """Read every setting. Raises BadInput for a malformed one."""
        for row in rows():
            getattr(self, row.attribute)

    def is_set(self, attribute: str) -> bool:
        """True if the user gave the setting a value, be it that of its default."""
        value = vars(self)[attribute]
        return isinstance(value, str) and bool(value.strip())

    def need(self, attribute: str) -> Any:
        """The attribute's value. Raises BadInput if the setting is absent."""
        value = getattr(self, attribute)
        if value is None:
            row = vars(Settings)[attribute]
            raise BadInput(f"{row.name} is not set ({row.meaning}); set it in {ENV_FILE} or the environment")
        return value

    def secrets(self) -> list[str]:
        """The values that no log may show."""
        values = [getattr(self, row.attribute) for row in rows() if row.secret]
        return [value for value in values if value]

    def export_aws(self, environ: MutableMapping[str, str] = os.environ) -> None:
        """Put the AWS settings into the environment of this process, where boto3 reads them."""
        for row in rows():
            if row.name.startswith("AWS_") and (value := getattr(self, row.attribute)):
                environ[row.name] = value

    def __repr__(self) -> str:
        shown = (
            f"{row.attribute}=***" if row.secret and value else f"{row.attribute}={value!r}"
            for row in rows()
            for value in [vars(self)[row.attribute]]
        )
        return f"Settings({', '.join(shown)})"


def rows() -> Iterator[Row]:
    """Every setting's row, in the order of `.env.example`."""
    return (value for value in vars(Settings).values() if isinstance(value, Row))


def env_example() -> str:
    """The text of `.env.example`: every setting with its default and one line of meaning."""
    head = "# Copy to .env and fill in what you need. The environment wins over .env. Never commit .env.\n"
    return head + "".join(
        f"\n# {row.meaning}\n{row.name}={'' if row.default is None else row.default}\n" for row in rows()
    )


def child_env(env: Mapping[str, str] = os.environ, file: Path | None = None) -> dict[str, str]:
    """The environment for a child process: this one, and what only the file sets, without misspelt names.

    An empty line of the file sets nothing: AWS_DEFAULT_REGION="" would be an error, not a default.
    """
    below = {name: value for name, value in read_env_file(file or env_file()).values.items() if value}
    if any(env.get(name) for name in AWS_KEYS):
        below = {name: value for name, value in below.items() if name not in AWS_KEYS}
    merged = below | dict(env)
    misspelt = names.mistakes(merged)  # `mistakes` has them; the child need not name them again
    return {name: value for name, value in merged.items() if name not in misspelt}


def mistakes(env: Mapping[str, str] = os.environ, file: Path | None = None) -> list[str]:
    """What sets nothing: broken lines of the file, misspelt names there and in the environment, first values
    of settings that the file sets twice.

    A line each, `what; what to do`, without values: they may be secrets.
    """
    path = file or env_file()
    found = read_env_file(path)
    settings = [row.name for row in rows()]
    in_file = names.mistakes(found.lines, settings, own_file=True)
    in_env = names.mistakes(env, settings)
    wrong = [(line, _NOT_AN_ASSIGNMENT) for line in found.broken]
    wrong += [(found.lines[name], text) for name, text in in_file.items()]
    wrong += [
        (line, f"{name} has another value above; remove one of the two lines")
        for line, name in found.changed
        if name in settings
    ]
    return [f"{label(path)}:{line}: {text}" for line, text in sorted(wrong)] + [
        f"environment: {text}" for text in in_env.values()
    ]
