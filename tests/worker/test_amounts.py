"""worker/amounts.py: money, durations, sizes and counts as people read them."""

import pytest

from worker import amounts


@pytest.mark.parametrize(
    ("amount", "text"),
    [
        (0, "$0.00"),
        (0.00001, "<$0.0001"),
        (0.0123, "$0.0123"),
        (0.4, "$0.40"),
        (1, "$1.00"),
        (12.3, "$12.30"),
    ],
)
def test_money(amount, text):
    assert amounts.usd(amount) == text


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0, "0 s"),
        (2.54, "2.5 s"),
        (45, "45 s"),
        (59.96, "1 min 0 s"),
        (200, "3 min 20 s"),
        (3599.6, "1 h 0 min"),
        (7500, "2 h 5 min"),
    ],
)
def test_duration(seconds, text):
    assert amounts.duration(seconds) == text


@pytest.mark.parametrize(
    ("n_bytes", "text"), [(0, "0 kB"), (12_000, "12 kB"), (34_500_000, "34.5 MB"), (1.2e9, "1.2 GB")]
)
def test_size(n_bytes, text):
    assert amounts.size(n_bytes) == text


@pytest.mark.parametrize(("n", "text"), [(0, "0 songs"), (1, "1 song"), (1200, "1,200 songs")])
def test_count(n, text):
    assert amounts.count(n, "song") == text
