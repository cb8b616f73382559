"""Everything that is decided before a launch: what to make, where it may run, what it may cost.

Looks and computes; starts, uploads and asks nothing. Every reason not to launch is found here,
before any money is spent.
"""

import json
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from ops import plan, release
from ops.aws import prices
from ops.aws.account import quota
from ops.aws.launch import plan as order
from ops.aws.launch.plan import Order, Texts, Work
from ops.aws.launch.prerequisites import ready
from ops.aws.session import Aws
from ops.repository import ROOT
from ops.settings import Settings
from worker.amounts import usd
from worker.errors import BadInput, UserError
from worker.songs import jobs
from worker.store.base import Missing, Store
from worker.store.open import open_store
from worker.timestamps import new_run_id

# Runs of this place that are asked how fast they were, the newest first.
_RUNS_ASKED = 5
_MAX_LIFETIME = timedelta(days=7)

Tell = Callable[[str], None]


@dataclass(frozen=True)
class Wish:
    """What the user asked for, beyond the settings."""

    prompts: str = ""
    only: Sequence[str] = ()
    types: str = ""
    max_price_usd: float | None = None
    lifetime: timedelta | None = None
    on_demand: bool = False
    keep_alive: bool = False


@dataclass(frozen=True)
class Prepared:
    """An order, and every offer with what becomes of it."""

    order: Order
    offers: Sequence[dict[str, Any]]


def check_list(settings: Settings, wish: Wish) -> None:
    """What can be refused without any network. Raises BadInput."""
    place(settings)
    if Path(settings.model).expanduser().is_dir():
        raise BadInput(f"a rented machine has no folder {settings.model}; set MUSICGEN_MODEL to a hub name")
    listed = jobs.load(_prompts(settings, wish))
    jobs.refuse_lyrics(jobs.select(listed, wish.only))


def place(settings: Settings) -> tuple[str, str]:
    """(bucket, prefix) of the songs. Raises BadInput: a rented machine keeps nothing."""
    if not settings.output:
        settings.need("bucket")
    location = settings.output_place
    if not location.lower().startswith("s3://"):
        raise BadInput(f"a rented machine cannot write to {location}; empty MUSICGEN_OUTPUT or make it s3://")
    bucket, _, prefix = location[len("s3://") :].partition("/")
    return bucket, prefix.strip("/")


def prepare(aws: Aws, wish: Wish, now: datetime, tell: Tell) -> Prepared | None:
    """The order; None if there is nothing left to make. Raises UserError for each reason not to launch."""
    settings = aws.settings
    bucket, prefix = place(settings)
    cap = settings.max_price_usd if wish.max_price_usd is None else wish.max_price_usd
    lifetime = wish.lifetime or timedelta(hours=settings.lifetime_h)
    if not timedelta(minutes=10) <= lifetime <= _MAX_LIFETIME:
        raise BadInput("a machine's lifetime is from 10 minutes to 7 days; correct MUSICGEN_LIFETIME_H")
    if not cap > 0.001:  # EC2 refuses less
        raise BadInput("the highest price must be over $0.001; correct MUSICGEN_MAX_PRICE")

    here = ready(aws, bucket)
    work = _work(settings, wish)
    if not work.n_songs:
        return None
    if settings.hf_token:
        tell("HF_TOKEN is not sent along, as user data can be read; if the model needs it: docs/aws.md")
    types = _types(aws, wish, tell)
    spot = not wish.on_demand
    quotes = prices.quotes(aws, types, [aws.region], now, tell)
    found, offers = order.candidates(quotes, here.subnets, cap, spot)
    if not found:
        cheapest = min((offer["per_hour_usd"] for offer in offers if offer["per_hour_usd"]), default=None)
        shown = f"; the cheapest is {usd(cheapest)}" if cheapest else ""
        raise UserError(
            f"no offer for {', '.join(types)} in {aws.region} at {usd(cap)} per hour or less{shown}; "
            "raise MUSICGEN_MAX_PRICE, give other MUSICGEN_INSTANCE_TYPES, or wait"
        )
    prompts = _prompts(settings, wish)
    code = (
        release.from_git(ROOT, prompts, settings.git_url)
        if settings.git_url
        else release.from_tree(ROOT, prompts)
    )
    made = Order(
        run_id=new_run_id(now),
        region=aws.region,
        spot=spot,
        cap_usd=cap,
        lifetime=lifetime,
        expires_at=now + lifetime,
        ready=here,
        candidates=found,
        release=code,
        bucket=bucket,
        prefix=prefix,
        work=work,
        worker_env=_worker_env(settings, bucket, prefix, aws.region, cap, lifetime, wish),
        worker_options=_worker_options(settings, wish, spot),
        launched_by=aws.caller.arn,
        endpoint_url=settings.aws_endpoint_url or "",
        texts=Texts(
            (ROOT / "remote" / "bootstrap.sh").read_text("utf-8"),
            (ROOT / "remote" / "s3_object.py").read_text("utf-8"),
        ),
    )
    made.user_data(found[0])  # too long, or a value that cannot be told: now, not after the question
    return Prepared(made, offers)


def rate_of(store: Store) -> tuple[float, str] | None:
    """How fast the newest run on a GPU was in this place, and its name; None if there was none."""
    summaries = [key for key in store.list("runs/") if key.endswith("/summary.json")]
    for key in sorted(summaries, reverse=True)[:_RUNS_ASKED]:
        with suppress(Missing, ValueError, KeyError, TypeError):
            summary = json.loads(store.read(key))
            rate = float(summary["real_time_factor"])
            if rate > 0 and "cuda" in str(summary["engine"]["device"]):
                return rate, f"as in run {summary['run_id']}"
    return None


def _prompts(settings: Settings, wish: Wish) -> Path:
    return Path(wish.prompts or settings.prompts)


def _work(settings: Settings, wish: Wish) -> Work:
    output = settings.output_place
    songs = plan.plan(_prompts(settings, wish), output, settings.model, wish.only)
    to_make = [song for song in songs if song.state == plan.TO_MAKE]
    rate, basis = rate_of(open_store(output)) or (order.ASSUMED_RATE, order.ASSUMED_BASIS)
    return Work(len(to_make), sum(song.duration_s for song in to_make), rate, basis)


def _types(aws: Aws, wish: Wish, tell: Tell) -> list[str]:
    """The wanted types that there are and that the quota has room for."""
    wanted = [name.strip() for name in wish.types.split(",") if name.strip()]
    wanted = wanted or aws.settings.instance_type_list
    needs = quota.vcpus(aws, wanted)
    if unknown := [name for name in wanted if name not in needs]:
        raise BadInput(f"{aws.region} has no machine {', '.join(unknown)}; correct MUSICGEN_INSTANCE_TYPES")
    counted = [] if wish.on_demand else [name for name in wanted if quota.is_counted(name)]
    limit = quota.spot_vcpus(aws) if counted else None
    large = [name for name in counted if limit is not None and needs[name] > limit]
    if large == wanted:
        quota.refuse_if_short(aws, min(needs.values()))
    for name in large:
        tell(f"{name} is left out: it has {needs[name]} virtual CPUs, the account may have {limit:g}")
    return [name for name in wanted if name not in large]


def _worker_env(
    settings: Settings, bucket: str, prefix: str, region: str, cap: float, lifetime: timedelta, wish: Wish
) -> dict[str, str]:
    hourly = settings.hourly_cost_usd
    env = {
        "MUSICGEN_MODEL": settings.model,
        "MUSICGEN_S3_BUCKET": bucket,
        "MUSICGEN_S3_PREFIX": prefix,
        "AWS_DEFAULT_REGION": region,
        "AWS_ENDPOINT_URL": settings.aws_endpoint_url,
        # The price that was promised not to be exceeded: the report is an upper bound.
        "HOURLY_COST_USD": f"{cap if hourly is None else hourly:g}",
        "MUSICGEN_SLOTS": settings.slots,
        "MUSICGEN_DTYPE": settings.dtype,
        "MUSICGEN_LIFETIME_S": int(lifetime.total_seconds()),
        "MUSICGEN_STOP_HOOK": order.STOP_HOOK,
        "MUSICGEN_KEEP_ALIVE": "1" if wish.keep_alive else None,
    }
    return {name: str(value) for name, value in env.items() if value not in (None, "")}


def _worker_options(settings: Settings, wish: Wish, spot: bool) -> list[str]:
    if settings.hourly_cost_usd is not None:
        basis = "HOURLY_COST_USD"
    else:
        basis = "the highest spot price, an upper bound" if spot else "the highest price, an upper bound"
    options = ["--keep-alive"] if wish.keep_alive else []
    options += ["--", f"--price-basis={basis}"]
    return options + [f"--only={name}" for name in wish.only]
