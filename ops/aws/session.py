"""Sessions with AWS: clients, and whose credentials they use.

    aws = Aws(Settings.load(), task="setup")
    aws.ask("ec2", "describe_vpcs")                       # reads
    aws.act("s3", "create_bucket", Bucket=name)           # changes: the audit log knows before and after

Keys, profile, region and endpoint come from Settings, then from boto3's own chain. `ask` and `act` raise
errors of AWS as UserError or BadInput (ops/aws/errors.py); a caller that needs the code uses `client`.
"""

import functools
import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError, UnknownRegionError

from ops.audit import AuditLog
from ops.aws.errors import ERRORS, NO_KEYS, code_of, errors, name_service
from ops.settings import Settings
from worker.errors import BadInput, UserError
from worker.store.base import CONTROL
from worker.store.s3_errors import opening

PROJECT = "musicgen-batch-worker"
TAGS = {"Project": PROJECT}
LONGEST_TAG = 256  # characters
_TAGS_OF_SETTINGS = {"Output": "MUSICGEN_S3_PREFIX or MUSICGEN_OUTPUT", "Model": "MUSICGEN_MODEL"}
# Asked for the other regions, where no setting names one.
FIRST_REGION = "us-east-1"
# How long what costs money waits for the name of who ends it.
ACTOR_S = 5.0


@dataclass(frozen=True)
class Caller:
    """Whose credentials these are."""

    arn: str
    account: str

    @property
    def partition(self) -> str:
        """`aws`, or that of China or the US government."""
        return self.arn.split(":")[1]


class Aws:
    """One identity in one region. Safe to share between threads.

    Raises BadInput when there is no region or the settings contradict each other; uses no network. A task
    for `all_regions` needs none.
    """

    def __init__(self, settings: Settings, task: str = "", *, all_regions: bool = False) -> None:
        self.settings = settings
        self.task = task
        self._clients: dict[tuple[str, str, int, float], Any] = {}
        self._lock = threading.RLock()  # boto3's sessions are not thread-safe, its clients are
        if bool(settings.aws_access_key_id) != bool(settings.aws_secret_access_key):
            raise BadInput("only one of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY is set; set both or none")
        with errors():
            self._session = boto3.session.Session(
                aws_access_key_id=settings.aws_access_key_id,
                aws_secret_access_key=settings.aws_secret_access_key,
                aws_session_token=settings.aws_session_token,
                region_name=settings.aws_region,
                profile_name=settings.aws_profile,
            )
        region = self._session.region_name or (FIRST_REGION if all_regions else "")
        if not region:
            raise BadInput(ERRORS["NoRegionError"][1])
        self.region: str = region
        self._session.events.register("after-call", name_service)

    def client(self, service: str, region: str = "", attempts: int = 4, answer_s: float = 60) -> Any:
        """boto3's client; `attempts` counts the first one. Its errors are raw: use `errors()`."""
        key = (service, region or self.region, attempts, answer_s)
        with self._lock:
            if key not in self._clients:
                retries: dict[str, Any] = {"mode": "standard"}
                if "AWS_MAX_ATTEMPTS" not in os.environ:  # an argument would win over it
                    retries["total_max_attempts"] = attempts
                config = Config(retries=retries, connect_timeout=min(10, answer_s), read_timeout=answer_s)
                with errors(key[1]), opening():
                    self._clients[key] = self._session.client(
                        service,
                        region_name=key[1],
                        endpoint_url=self.settings.aws_endpoint_url,
                        config=config,
                    )
            return self._clients[key]

    def partition_of(self, region: str) -> str:
        """The partition of a region: `aws`, `aws-cn`, `aws-us-gov`."""
        with self._lock:
            try:
                return str(self._session.get_partition_for_region(region))
            except UnknownRegionError:
                return "aws"

    def known_regions(self) -> list[str]:
        """The regions that boto3 knows, in every partition, whether this account may use them or not."""
        with self._lock:
            partitions = self._session.get_available_partitions()
            return [n for p in partitions for n in self._session.get_available_regions("ec2", p)]

    def ask(
        self, service: str, operation: str, *, absent: Sequence[str] = (), region: str = "", **request: Any
    ) -> Any:
        """The answer to a question. None if AWS answers with one of the codes in `absent`."""
        client = self.client(service, region)
        with errors(region or self.region):
            try:
                return getattr(client, operation)(**request)
            except ClientError as error:
                if code_of(error) not in absent:
                    raise
                return None

    def pages(
        self, service: str, operation: str, into: str, *, region: str = "", **request: Any
    ) -> Iterator[Any]:
        """Every item under `into` of every page of an answer."""
        client = self.client(service, region)
        with errors(region or self.region):
            for page in client.get_paginator(operation).paginate(**request):
                yield from page.get(into, [])

    def act(
        self, service: str, operation: str, *, absent: Sequence[str] = (), region: str = "", **request: Any
    ) -> Any:
        """Change something; the intent is in the audit log before it and the result after it.

        None if AWS answers with one of the codes in `absent`.
        """
        return self._change(service, operation, region, request, absent=absent)

    def end(self, service: str, operation: str, *, region: str = "", **request: Any) -> Any:
        """`act` for what ends something that costs money: also when the audit log cannot be written."""
        return self._change(service, operation, region, request, ends=True)

    def _change(
        self,
        service: str,
        operation: str,
        region: str,
        request: dict[str, Any],
        *,
        ends: bool = False,
        absent: Sequence[str] = (),
    ) -> Any:
        client = self.client(service, region)
        log = self.audit_of_ends if ends else self.audit
        with log.action(f"{service}.{operation}", request, region=region, ends=ends) as done:
            with errors(region or self.region):
                try:
                    answer = getattr(client, operation)(**request)
                except ClientError as error:
                    if code_of(error) not in absent:
                        raise
                    answer = None
            done(answer)
        return answer

    def has_keys(self) -> bool:
        """True if there are credentials; whether AWS accepts them, only an answer tells."""
        with errors(self.region), opening():
            return self._session.get_credentials() is not None

    def own_keys(self) -> Any:
        """The caller's credentials as they are: access_key, secret_key, token. Raises BadInput if none."""
        with errors(self.region), opening():
            found = self._session.get_credentials()
            if found is None:
                raise BadInput(NO_KEYS)
            return found.get_frozen_credentials()

    @functools.cached_property
    def caller(self) -> Caller:
        """Whose credentials these are; asks AWS once."""
        identity = self.ask("sts", "get_caller_identity")
        return Caller(identity["Arn"], identity["Account"])

    @functools.cached_property
    def audit(self) -> AuditLog:
        """The audit log, with who acts, where, and in which task. Raises UserError if STS does not tell."""
        return self._audit(self.caller.arn)

    @property
    def audit_of_ends(self) -> AuditLog:
        """The audit log for what ends something that costs money: STS is asked once, and only shortly."""
        with self._lock:
            return self._audit(self._actor)

    @functools.cached_property
    def _actor(self) -> str:
        if "caller" in vars(self):
            return self.caller.arn
        try:
            with errors(self.region):
                sts = self.client("sts", attempts=1, answer_s=ACTOR_S)
                return str(sts.get_caller_identity()["Arn"])
        except UserError as error:
            return f"not known ({error})"

    def _audit(self, actor: str) -> AuditLog:
        return AuditLog(
            path=self.settings.audit_file,
            actor=actor,
            region=self.region,
            task=self.task,
            secrets=self.settings.secrets(),
        )


def tag_list(**more: str) -> list[dict[str, str]]:
    """The project's tags, and more, in AWS's form. Everything of this project is found by `Project`.

    Raises BadInput for a value that EC2 would refuse.
    """
    for key, value in more.items():
        if len(value) > LONGEST_TAG or CONTROL.search(value):
            setting = _TAGS_OF_SETTINGS.get(key, "the setting that it comes from")
            raise BadInput(
                f"the tag {key} would have {len(value)} characters, and EC2 takes {LONGEST_TAG} "
                f"and no control characters; shorten {setting}"
            )
    return [{"Key": key, "Value": value} for key, value in (TAGS | more).items()]


def tag_dict(tags: Sequence[dict[str, str]] | None) -> dict[str, str]:
    """Tags in AWS's form, by name."""
    return {tag["Key"]: tag["Value"] for tag in tags or ()}
