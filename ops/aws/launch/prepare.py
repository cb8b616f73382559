"""Everything that is decided before a launch: what to make, where it may run, what it may cost.

Reads and computes; starts and uploads nothing. Every reason not to launch is found here, before any money
is spent.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from ops import models, release, speed
from ops.aws import prices
from ops.aws.account import machine_types
from ops.aws.launch import prerequisites
from ops.aws.launch.plan import (
    NO_SUBNET,
    OVER_CAP,
    STOP_HOOK,
    BootFiles,
    LaunchPlan,
    Workload,
    candidates,
)
from ops.aws.session import Aws
from ops.aws.user_data import Boot
from ops.plan import TO_MAKE, plan_songs
from ops.release import Release
from ops.repository import ROOT
from ops.sampling import SamplingFlags
from ops.settings import Settings, child_env
from worker.amounts import usd
from worker.errors import BadInput, UserError
from worker.songs import families, jobs
from worker.store.open import open_store, s3_address
from worker.timestamps import new_run_id

_MAX_LIFETIME = timedelta(days=7)

Tell = Callable[[str], None]


@dataclass(frozen=True)
class LaunchOptions:
    """What the user asked for, beyond the settings."""

    prompts: str = ""
    only: Sequence[str] = ()
    types: str = ""
    max_price_usd: float | None = None
    lifetime: timedelta | None = None
    on_demand: bool = False
    keep_alive: bool = False
    another: bool = False  # launch although there is a machine already
    sampling: SamplingFlags = field(default_factory=SamplingFlags)
    commercial: bool = False


@dataclass(frozen=True)
class Prepared:
    """The plan, and every offer with whether it may be rented and why not."""

    plan: LaunchPlan
    offers: Sequence[dict[str, Any]]


def check_list(settings: Settings, options: LaunchOptions) -> None:
    """What can be refused without any network. Raises BadInput."""
    output(settings)
    options.sampling.check(settings.model)
    if Path(settings.model).expanduser().is_dir():
        raise BadInput(f"a rented machine has no folder {settings.model}; set MUSICGEN_MODEL to a hub name")
    family = families.of(settings.model)
    models.refuse_other_use(settings.model, options.commercial or settings.is_commercial)
    models.refuse_unsupported(settings.model, child_env())
    listed = jobs.load(_prompts(settings, options), family)
    families.refuse_unfit(jobs.select(listed, options.only), family)


def output(settings: Settings) -> tuple[str, str]:
    """(bucket, prefix) of the songs. Raises BadInput for a folder: a rented machine keeps nothing."""
    if not (settings.output or settings.bucket):
        raise BadInput("MUSICGEN_S3_BUCKET is not set; run: inv setup, which makes a bucket and sets it")
    address = s3_address(settings.output_place)
    if not address:
        raise BadInput(
            f"a rented machine cannot write to {settings.output_place}; "
            "empty MUSICGEN_OUTPUT or make it s3://"
        )
    return address


@dataclass(frozen=True)
class _Limits:
    """What the machine may cost and how long it may live: the options, else the settings."""

    spot: bool
    cap_usd: float
    lifetime: timedelta

    @classmethod
    def of(cls, settings: Settings, options: LaunchOptions) -> "_Limits":
        cap = settings.max_price_usd if options.max_price_usd is None else options.max_price_usd
        lifetime = options.lifetime or timedelta(hours=settings.lifetime_h)
        if not timedelta(minutes=10) <= lifetime <= _MAX_LIFETIME:
            raise BadInput("a machine's lifetime is from 10 minutes to 7 days; correct MUSICGEN_LIFETIME_H")
        if not cap > 0.001:  # EC2 refuses less
            raise BadInput("the maximum price must be over $0.001; correct MUSICGEN_MAX_PRICE")
        return cls(not options.on_demand, cap, lifetime)


def prepare(aws: Aws, options: LaunchOptions, now: datetime, tell: Tell) -> Prepared | None:
    """The plan; None if there is nothing left to make. Raises UserError for each reason not to launch."""
    settings = aws.settings
    bucket, prefix = output(settings)
    limits = _Limits.of(settings, options)
    needs = prerequisites.look_up(aws, bucket)
    workload = _workload(settings, options)
    if not workload.n_songs:
        return None
    if settings.hf_token:
        tell("HF_TOKEN is not sent along, as user data can be read; if the model needs it: docs/aws.md")
    asked = [name.strip() for name in options.types.split(",") if name.strip()]
    asked = asked or settings.instance_type_list
    named = machine_types.chosen(aws, asked, on_demand=options.on_demand, tell=tell)
    quotes = prices.quotes(aws, named, [aws.region], now, tell)
    found, offers = candidates(quotes, needs.subnets, limits.cap_usd, limits.spot)
    if not found:
        raise _no_offer(offers, f"{', '.join(named)} in {aws.region}", limits)
    boot = Boot(
        run_id=new_run_id(now),
        expires_at=now + limits.lifetime,
        lifetime_s=int(limits.lifetime.total_seconds()),
        region=aws.region,
        bucket=bucket,
        prefix=prefix,
        release=_release(settings, options),
        worker_env=_worker_env(aws, options, limits),
        worker_options=_worker_options(settings, options),
        endpoint_url=settings.aws_endpoint_url or "",
    )
    plan = LaunchPlan(
        boot=boot,
        files=BootFiles(_remote("bootstrap.sh"), _remote("s3_object.py")),
        prerequisites=needs,
        candidates=found,
        spot=limits.spot,
        cap_usd=limits.cap_usd,
        workload=workload,
        launched_by=aws.caller.arn,
    )
    plan.machine(found[0]).to_ec2()  # what it cannot hold is refused now, not after the question
    return Prepared(plan, offers)


def _no_offer(offers: Sequence[dict[str, Any]], wanted: str, limits: _Limits) -> UserError:
    """Why none of the offers may be rented, and what changes that."""
    states = {offer["state"] for offer in offers}
    if OVER_CAP in states:
        cheapest_usd = min(offer["per_hour_usd"] for offer in offers if offer["state"] == OVER_CAP)
        return UserError(
            f"no offer for {wanted} at {usd(limits.cap_usd)} per hour or less; the cheapest is "
            f"{usd(cheapest_usd)}; raise MUSICGEN_MAX_PRICE, give other MUSICGEN_INSTANCE_TYPES, or wait"
        )
    if NO_SUBNET in states:
        return UserError(
            f"{wanted} is offered only in zones without a subnet; create default subnets there "
            "(`aws ec2 create-default-subnet`), or correct MUSICGEN_SUBNET_ID"
        )
    return UserError(
        f"the on-demand price of {wanted} is not known, so MUSICGEN_MAX_PRICE cannot be kept; "
        "rent a spot machine: leave out --on-demand"
    )


def _release(settings: Settings, options: LaunchOptions) -> Release:
    prompts = _prompts(settings, options)
    if settings.git_url:
        return release.from_git(ROOT, prompts, settings.git_url, settings.model)
    return release.from_tree(ROOT, prompts, settings.model)


def _remote(name: str) -> str:
    return (ROOT / "remote" / name).read_text("utf-8")


def _prompts(settings: Settings, options: LaunchOptions) -> Path:
    return Path(options.prompts or settings.prompts)


def _workload(settings: Settings, options: LaunchOptions) -> Workload:
    songs = plan_songs(_prompts(settings, options), settings.output_place, settings.model, options.only)
    to_make = [song for song in songs if song.state == TO_MAKE]
    store = open_store(settings.output_place)
    options.sampling.refuse_other(store, settings.model)
    found = speed.of(settings.model, store, gpu_only=True)
    return Workload(len(to_make), sum(song.duration_s for song in to_make), found)


def _worker_env(aws: Aws, options: LaunchOptions, limits: _Limits) -> dict[str, str]:
    settings = aws.settings
    bucket, prefix = output(settings)
    hourly = settings.hourly_cost_usd
    env = {
        "MUSICGEN_MODEL": settings.model,
        "MUSICGEN_S3_BUCKET": bucket,
        "MUSICGEN_S3_PREFIX": prefix,
        "AWS_DEFAULT_REGION": aws.region,
        "AWS_ENDPOINT_URL": settings.aws_endpoint_url,
        # The maximum price, so that the report is an upper bound.
        "HOURLY_COST_USD": f"{limits.cap_usd if hourly is None else hourly:g}",
        "MUSICGEN_SLOTS": settings.slots,
        "MUSICGEN_DTYPE": settings.dtype,
        "MUSICGEN_FADE_MS": f"{settings.fade_ms:g}" if settings.fade_ms else None,
        "MUSICGEN_MODELS_DIR": settings.models_dir,
        "MUSICGEN_HEARTMULA_DIR": settings.heartmula_dir,
        "MUSICGEN_COMMERCIAL": "1" if options.commercial or settings.is_commercial else None,
        "MUSICGEN_LIFETIME_S": int(limits.lifetime.total_seconds()),
        "MUSICGEN_STOP_HOOK": STOP_HOOK,
        "MUSICGEN_KEEP_ALIVE": "1" if options.keep_alive else None,
    }
    return {name: str(value) for name, value in env.items() if value not in (None, "")}


def _worker_options(settings: Settings, options: LaunchOptions) -> list[str]:
    if settings.hourly_cost_usd is not None:
        basis = "HOURLY_COST_USD"
    else:
        kind = "maximum price" if options.on_demand else "maximum spot price"
        basis = f"the {kind}, an upper bound"
    given = ["--keep-alive"] if options.keep_alive else []
    given += ["--", f"--price-basis={basis}"]
    return given + [f"--only={name}" for name in options.only] + options.sampling.flags(settings.model)
