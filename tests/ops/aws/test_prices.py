"""Live prices: every zone, every page, the newest, the cheapest first; and honest about what is missing."""

import json
from datetime import UTC, datetime, timedelta

import pytest

from ops.aws import prices
from ops.aws.session import Aws
from ops.settings import Settings
from worker.errors import BadInput, UserError

NOW = datetime(2026, 11, 22, 12, tzinfo=UTC)


def quotes(told, types=("g4dn.xlarge",), regions=("us-east-1",)):
    return prices.quotes(Aws(Settings.load()), types, regions, datetime.now(UTC), told)


def test_every_zone_is_there_cheapest_first_whatever_the_pages(account, told):
    account.price_page = 1
    found = quotes(told)
    assert [(quote.zone, quote.spot_per_hour_usd) for quote in found] == [
        ("us-east-1b", 0.19),
        ("us-east-1a", 0.21),
        ("us-east-1c", 0.25),
    ]
    assert len(account.sent("DescribeSpotPriceHistory")) == 3


def test_the_saving_is_against_the_on_demand_price(account, told):
    cheapest = quotes(told)[0]
    assert cheapest.on_demand_per_hour_usd == 0.526
    assert cheapest.saving_percent == pytest.approx(63.9)


def test_only_the_newest_price_of_a_zone_counts():
    def change(hours_ago, usd):
        at = NOW - timedelta(hours=hours_ago)
        return prices.PriceChange("us-east-1", "us-east-1a", "g4dn.xlarge", at, usd)

    assert [c.usd for c in prices.newest([change(3, 0.3), change(1, 0.1), change(2, 0.2)])] == [0.1]


def test_several_types_in_several_regions_are_one_list(account, told):
    account.set_price("g5.xlarge", "eu-west-1a", 0.17)
    found = quotes(told, ("g4dn.xlarge", "g5.xlarge"), ("us-east-1", "eu-west-1"))
    assert (found[0].zone, found[0].instance_type, len(found)) == ("eu-west-1a", "g5.xlarge", 4)
    assert "g4dn.xlarge: no spot price in eu-west-1" in str(told)
    assert "g5.xlarge: no spot price in us-east-1" in str(told)


def test_without_the_price_list_spot_prices_still_stand(account, told):
    account.fail("GetProducts", "InternalErrorException", times=99, status=500)
    assert [quote.saving_percent for quote in quotes(told)] == [None] * 3
    assert "no on-demand prices, so the saving is not shown" in str(told)


def test_a_region_that_does_not_answer_is_named_and_the_others_shown(account, told):
    def refuse_europe(call):
        if call.region == "eu-west-1":
            account.refuse("UnauthorizedOperation")

    account.before["DescribeSpotPriceHistory"] = refuse_europe
    found = quotes(told, regions=("eu-west-1", "us-east-1"))
    assert {quote.region for quote in found} == {"us-east-1"}
    assert "could not look in eu-west-1: AWS does not allow ec2:DescribeSpotPriceHistory" in str(told)


def test_no_answer_from_anywhere_is_one_error(account, told):
    account.fail("DescribeSpotPriceHistory", "InternalError", times=99, status=500)
    with pytest.raises(UserError, match="AWS is busy"):
        quotes(told)


@pytest.mark.parametrize("usd", [0.0, -0.1, float("nan"), float("inf")])
def test_a_price_that_is_not_an_amount_over_0_is_no_offer(account, told, usd):
    account.set_price("g4dn.xlarge", "us-east-1b", usd, ago=timedelta(0))
    assert [quote.zone for quote in quotes(told)] == ["us-east-1a", "us-east-1c"]
    assert "g4dn.xlarge in us-east-1b is left out: its price is not an amount over 0" in str(told)
    assert prices.spot_now(Aws(Settings.load()), "g4dn.xlarge", "us-east-1b") is None


@pytest.mark.parametrize("usd", [0.0, -1.0, float("nan")])
def test_an_on_demand_price_that_is_not_an_amount_over_0_gives_no_saving(account, told, usd):
    account.on_demand["g4dn.xlarge"] = usd
    assert {quote.saving_percent for quote in quotes(told)} == {None}


# --- history


def course(points, blocks=True):
    since = NOW - timedelta(days=2)
    changes = [prices.PriceChange("r", "z", "t", NOW - timedelta(hours=ago), usd) for ago, usd in points]
    (found,) = prices.summaries(changes, since, NOW, blocks)
    return found


def test_the_mean_counts_how_long_a_price_held():
    found = course([(60, 0.10), (12, 0.50)])
    assert found.mean_usd == pytest.approx((36 * 0.10 + 12 * 0.50) / 48)
    assert (found.now_usd, found.low_usd, found.high_usd) == (0.50, 0.10, 0.50)


def test_the_chart_rises_with_the_price():
    chart = course([(60, 0.0), (24, 0.8)]).chart
    assert chart == "▁" * 24 + "█" * 24


def test_the_chart_is_blank_before_the_first_price():
    assert course([(24, 0.8)]).chart == " " * 24 + "█" * 24


def test_a_console_without_block_characters_gets_ascii():
    chart = course([(60, 0.0), (24, 0.8)], blocks=False).chart
    chart.encode("cp1252")
    assert chart.isascii() and chart == "_" * 24 + "#" * 24


def test_history_begins_with_the_price_that_held_then(account, told):
    account.set_price("g4dn.xlarge", "us-east-1a", 0.30, ago=timedelta(days=30))
    since = datetime.now(UTC) - timedelta(days=7)
    changes = prices.history(Aws(Settings.load()), ["g4dn.xlarge"], ["us-east-1"], since, told)
    assert (changes[0].zone, changes[0].usd) == ("us-east-1a", 0.30)
    assert [change.at for change in changes] == sorted(change.at for change in changes)


# --- the task


def test_spot_price_as_json(account, inv):
    done = inv("spot-price", "--json")
    assert done.code == 0
    assert [row["zone"] for row in json.loads(done.out)] == ["us-east-1b", "us-east-1a", "us-east-1c"]


def test_spot_price_history_on_a_windows_console(account, inv):
    done = inv("spot-price", "--history", "7d", encoding="cp1252")
    assert (done.code, done.err) == (0, "")
    assert "us-east-1b" in done.out and "?" not in done.out


def test_the_price_service_being_down_is_one_line_and_1(account, inv):
    account.fail("DescribeSpotPriceHistory", "ServiceUnavailable", times=99, status=503)
    done = inv("spot-price")
    assert (done.code, done.out) == (1, "")
    assert done.err.startswith("error: AWS is busy") and len(done.err.splitlines()) == 1


@pytest.mark.parametrize("options", [[], ["--json"], ["--history", "7d"], ["--history", "7d", "--json"]])
def test_no_price_at_all_is_one_line_with_what_to_do_and_1(account, inv, options):
    done = inv("spot-price", "--instance-types", "g5.xlarge", *options)
    assert (done.code, done.out) == (1, "")
    (line,) = done.err.splitlines()
    assert line.startswith("error: EC2 has no spot price for g5.xlarge in us-east-1; name other ")


def test_a_region_that_is_none_is_2(account, inv):
    done = inv("spot-price", "--region", "us-nowhere-1")
    assert done.code == 2
    assert "no region us-nowhere-1" in done.err


def test_a_span_that_is_none_is_bad_input():
    from ops import durations

    assert durations.parse("90m", "x") == timedelta(minutes=90)
    for wrong in ("7", "d", "0d", "-1h", "1e3d", "99999d"):
        with pytest.raises(BadInput, match="--history"):
            durations.parse(wrong, "--history")


def test_price_list_is_asked_in_the_region_s_own_partition(us, account):
    account.calls.clear()
    prices.on_demand(us, "g4dn.xlarge", "cn-north-1")
    assert prices.on_demand(us, "g4dn.xlarge", "us-gov-west-1") is None
    assert [call.region for call in account.calls] == ["cn-northwest-1"]
