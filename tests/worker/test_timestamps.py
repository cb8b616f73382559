"""worker/timestamps.py: one format, in both directions."""

import re
from datetime import UTC, datetime, timedelta, timezone

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker import timestamps

MOMENTS = st.datetimes(datetime(1970, 1, 1), datetime(9999, 12, 30), timezones=st.just(UTC))


@given(MOMENTS)
def test_timestamp_is_read_back_to_the_second(moment):
    assert timestamps.parse(timestamps.stamp(moment)) == moment.replace(microsecond=0)


def test_timestamp_is_in_utc_whatever_the_zone():
    moment = datetime(2026, 11, 22, 21, 50, 59, tzinfo=timezone(timedelta(hours=2)))
    assert timestamps.stamp(moment) == "2026-11-22T19:50:59Z"
    assert timestamps.compact(moment) == "20261122T195059Z"


def test_now_is_a_timestamp():
    assert abs(datetime.now(UTC) - timestamps.parse(timestamps.now())) < timedelta(minutes=1)


@pytest.mark.parametrize("text", ["", "2026-11-22", "2026-11-22T19:50:59", "2026-11-22T19:50:59+00:00"])
def test_other_formats_are_refused(text):
    with pytest.raises(ValueError):
        timestamps.parse(text)


def test_run_ids_of_one_second_differ_and_begin_with_it():
    moment = datetime(2026, 11, 22, 19, 50, 59, tzinfo=UTC)
    ids = {timestamps.new_run_id(moment) for _ in range(20)}
    assert len(ids) > 1
    assert all(re.fullmatch(r"20261122T195059Z-[0-9a-f]{4}", run_id) for run_id in ids)
