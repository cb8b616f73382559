"""What a pod has cost: what was billed, and the clock since."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ops.runpod import bills
from ops.runpod.types import Pod, PodBill

NOON = datetime(2026, 11, 22, 12, tzinfo=UTC)
POD = Pod.of(
    {
        "id": "pod1",
        "name": "musicgen-1",
        "status": "RUNNING",
        "cost": 0.4,
        "createdAt": "2026-11-22T06:00:00Z",
        "startedAt": "2026-11-22T08:00:00Z",
    }
)


def bill(hour, usd, pod="pod1"):
    start = NOON.replace(hour=hour)
    return PodBill(pod, start, start + timedelta(hours=1), usd, usd, 0.0)


def test_without_bills_the_newest_start_counts():
    assert bills.cost(POD, None, NOON) == bills.Cost(4 * 0.4, None, is_least=True)
    assert bills.cost(POD, [], NOON) == bills.Cost(4 * 0.4, 0.0, is_least=True)


def test_hours_that_are_billed_are_not_counted_again():
    found = bills.cost(POD, [bill(6, 0.1), bill(8, 0.41), bill(9, 0.41), bill(9, 9.0, "pod2")], NOON)
    assert found.billed_usd == pytest.approx(0.92) and found.usd == pytest.approx(0.92 + 2 * 0.4)


@pytest.mark.parametrize("status", ["EXITED", "RUNNING"])
def test_what_has_stopped_or_was_resumed_costs_at_least_what_was_billed(status):
    began = NOON if status == "RUNNING" else POD.started_at
    pod = replace(POD, status=status, usd_per_hour=0.0, started_at=began)
    assert bills.cost(pod, [bill(8, 0.4)], NOON) == bills.Cost(0.4, 0.4, is_least=True)
    assert bills.cost(pod, None, NOON) == bills.Cost(0.0, None, is_least=True)


def test_first_start_has_no_earlier_one_whose_hours_may_be_missing():
    pod = replace(POD, created_at=POD.started_at - timedelta(minutes=10))
    assert not bills.cost(pod, [], NOON).is_least


@given(st.lists(st.tuples(st.integers(0, 23), st.floats(0, 100))), st.floats(-48, 48))
def test_cost_is_never_less_than_what_was_billed(amounts, hours):
    found = bills.cost(POD, [bill(hour, usd) for hour, usd in amounts], NOON + timedelta(hours=hours))
    assert found.usd >= found.billed_usd >= 0
