"""Spot prices by zone, now and over time, and the on-demand price beside them.

Prices are live and complete: every page, the newest price of each zone and type, the cheapest first.
The on-demand price is only for comparison; without it the spot prices are still shown. Rents nothing.
"""

import json
import math
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from ops.aws.regions import ask_each
from ops.aws.session import Aws
from worker.errors import UserError
from worker.timestamps import stamp

# Amazon's Price List answers only in a few regions, for all of their partition.
PRICE_LIST_REGIONS = {"aws": "us-east-1", "aws-cn": "cn-northwest-1"}
BLOCKS = "▁▂▃▄▅▆▇█"
_LETTERS = "_.-=+*%#"  # the same heights for a console that lacks the blocks
_CHART_COLUMNS = 48


@dataclass(frozen=True)
class Quote:
    """What an hour of one type costs in one zone."""

    region: str
    zone: str
    instance_type: str
    spot_per_hour_usd: float
    on_demand_per_hour_usd: float | None
    saving_percent: float | None
    since: str  # UTC; when this price began


@dataclass(frozen=True)
class PriceChange:
    """From `at` on, an hour of this type costs this in this zone."""

    region: str
    zone: str
    instance_type: str
    at: datetime
    usd: float  # NaN: not an amount over 0

    @property
    def valid(self) -> bool:
        """True for an amount over 0: nobody rents for less."""
        return self.usd > 0


@dataclass(frozen=True)
class PriceSummary:
    """The price of one type in one zone over a span of time."""

    zone: str
    instance_type: str
    now_usd: float
    low_usd: float
    mean_usd: float  # weighted by how long each price held
    high_usd: float
    chart: str


Tell = Callable[[str], None]


def quotes(aws: Aws, types: Sequence[str], regions: Sequence[str], now: datetime, tell: Tell) -> list[Quote]:
    """The spot price of every zone, cheapest first. What is not available is reported.

    Raises UserError if there is no price at all.
    """
    found = newest(_changes(aws, types, regions, now, tell))
    for change in found:
        if not change.valid:
            tell(f"{change.instance_type} in {change.zone} is left out: its price is not an amount over 0")
    changes = _some([change for change in found if change.valid], types, regions)
    for region in regions:
        there = {change.instance_type for change in found if change.region == region}
        if lacking := [kind for kind in types if kind not in there]:
            tell(f"{', '.join(lacking)}: no spot price in {region}; the region does not offer it")
    on_demand_usd = _on_demand(aws, {(change.instance_type, change.region) for change in changes}, tell)

    def quote(change: PriceChange) -> Quote:
        on_demand = on_demand_usd.get((change.instance_type, change.region))
        saving = round(100 * (1 - change.usd / on_demand), 1) if on_demand else None
        since = stamp(change.at)
        place = (change.region, change.zone, change.instance_type)
        return Quote(*place, change.usd, on_demand, saving, since)

    return sorted(
        (quote(change) for change in changes), key=lambda quote: (quote.spot_per_hour_usd, quote.zone)
    )


def history(
    aws: Aws, types: Sequence[str], regions: Sequence[str], since: datetime, tell: Tell
) -> list[PriceChange]:
    """Every change of price since then, oldest first, with the price that held at `since`.

    Raises UserError if there is no price at all.
    """
    found = [change for change in _changes(aws, types, regions, since, tell) if change.valid]
    return sorted(_some(found, types, regions), key=lambda change: change.at)


def _some(changes: list[PriceChange], types: Sequence[str], regions: Sequence[str]) -> list[PriceChange]:
    if not changes:
        raise UserError(
            f"EC2 has no spot price for {', '.join(types)} in {', '.join(regions)}; "
            "name other instance types or another region"
        )
    return changes


def spot_now(aws: Aws, instance_type: str, zone: str) -> float | None:
    """The spot price of one type in one zone of the configured region; None if it has none."""
    found = _in_region(aws, [instance_type], aws.region, datetime.now(UTC))
    return next((change.usd for change in newest(found) if change.zone == zone and change.valid), None)


def newest(changes: Sequence[PriceChange]) -> list[PriceChange]:
    """The last change of each zone and type: AWS sends them in no order, some twice."""
    last: dict[tuple[str, str], PriceChange] = {}
    for change in changes:
        place = (change.zone, change.instance_type)
        if place not in last or change.at > last[place].at:
            last[place] = change
    return list(last.values())


def summaries(
    changes: Sequence[PriceChange], since: datetime, now: datetime, blocks: bool
) -> list[PriceSummary]:
    """One line for each zone and type, cheapest first. All charts share one scale.

    `blocks`: the console can show block characters.
    """
    by_place: dict[tuple[str, str], list[PriceChange]] = defaultdict(list)
    for change in sorted(changes, key=lambda change: change.at):
        by_place[change.zone, change.instance_type].append(change)
    columns = [since + (now - since) * (n + 0.5) / _CHART_COLUMNS for n in range(_CHART_COLUMNS)]
    top = max((change.usd for change in changes), default=0.0)

    found = []
    for (zone, kind), held in by_place.items():
        inside = [change for change in held if change.at > since]
        ends = [change.at for change in held[1:]] + [now]
        spans = [
            max((end - max(change.at, since)).total_seconds(), 0)
            for change, end in zip(held, ends, strict=True)
        ]
        paid = sum(change.usd * span for change, span in zip(held, spans, strict=True))
        mean = paid / sum(spans) if sum(spans) else held[-1].usd
        prices = [change.usd for change in inside] + [_at(held, since) or held[0].usd]
        chart = _chart([_at(held, moment) for moment in columns], top, BLOCKS if blocks else _LETTERS)
        found.append(PriceSummary(zone, kind, held[-1].usd, min(prices), mean, max(prices), chart))
    return sorted(found, key=lambda row: (row.now_usd, row.zone))


def _at(held: Sequence[PriceChange], moment: datetime) -> float | None:
    before = [change.usd for change in held if change.at <= moment]
    return before[-1] if before else None


def _chart(prices: Sequence[float | None], top: float, marks: str) -> str:
    """A column for each price, 0 to `top`; a blank where there was none."""
    steps = len(marks) - 1
    return "".join(" " if usd is None else marks[round(usd / top * steps) if top else 0] for usd in prices)


def _changes(
    aws: Aws, types: Sequence[str], regions: Sequence[str], since: datetime, tell: Tell
) -> list[PriceChange]:
    asked = ask_each(regions, lambda region: _in_region(aws, types, region, since))
    for line in asked.problems():
        tell(f"warning: no prices, {line}")
    return [change for answer in asked.answers.values() for change in answer]


def _in_region(aws: Aws, types: Sequence[str], region: str, since: datetime) -> list[PriceChange]:
    # The answer begins with the price that held at StartTime.
    found = aws.pages(
        "ec2",
        "describe_spot_price_history",
        "SpotPriceHistory",
        region=region,
        InstanceTypes=list(types),
        ProductDescriptions=["Linux/UNIX"],
        StartTime=since,
    )
    return [
        PriceChange(
            region,
            row["AvailabilityZone"],
            row["InstanceType"],
            row["Timestamp"],
            _amount(row["SpotPrice"]) or math.nan,
        )
        for row in found
    ]


def _amount(text: str) -> float | None:
    """An amount over 0; None for anything else."""
    try:
        usd = float(text)
    except ValueError:
        return None
    return usd if 0 < usd < math.inf else None


def _on_demand(aws: Aws, wanted: set[tuple[str, str]], tell: Tell) -> Mapping[tuple[str, str], float | None]:
    """USD per hour by type and region. Never an error: a missing price is reported and left out."""
    found: dict[tuple[str, str], float | None] = {}
    for kind, region in sorted(wanted):
        try:
            found[kind, region] = on_demand(aws, kind, region)
        except UserError as error:
            tell(f"warning: no on-demand prices, so the saving is not shown: {error}")
            break
    return found


def on_demand(aws: Aws, instance_type: str, region: str) -> float | None:
    """The on-demand price of an hour in Amazon's Price List; None if it has none. Raises UserError."""
    wanted = {
        "regionCode": region,
        "instanceType": instance_type,
        "operatingSystem": "Linux",
        "tenancy": "Shared",
        "preInstalledSw": "NA",
        "capacitystatus": "Used",
    }
    filters = [{"Type": "TERM_MATCH", "Field": name, "Value": value} for name, value in wanted.items()]
    where = PRICE_LIST_REGIONS.get(aws.partition_of(region))
    if not where:  # the US government's regions have no price list of their own
        return None
    answer = aws.ask("pricing", "get_products", region=where, ServiceCode="AmazonEC2", Filters=filters)
    prices = [usd for product in answer.get("PriceList", []) if (usd := _hourly(json.loads(product)))]
    return min(prices, default=None)


def _hourly(product: dict[str, Any]) -> float | None:
    for term in product.get("terms", {}).get("OnDemand", {}).values():
        for dimension in term.get("priceDimensions", {}).values():
            if dimension.get("unit") == "Hrs":
                return _amount(dimension["pricePerUnit"].get("USD", ""))
    return None
