"""Speed and time left of a download, and how often they are shown."""

from worker.models.progress import Meter


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


def test_speed_and_time_left_are_those_of_the_last_half_minute():
    clock, shown = Clock(), []
    meter = Meter(shown.append, every_s=10, clock=clock)
    for second in range(101):
        clock.now = float(second)
        meter(min(second, 50) * 1_000_000 + max(0, second - 50) * 3_000_000, 10**9, "a")
    assert round(shown[-1].bytes_per_s / 1e6, 1) == 3.0
    assert str(shown[0]) == "10.0 MB of 1.0 GB, 1.0 MB/s, 16 min 30 s left"


def test_line_comes_every_ten_seconds_and_at_the_end():
    clock, shown = Clock(), []
    meter = Meter(shown.append, every_s=10, clock=clock)
    for second in range(26):
        clock.now = float(second)
        meter(second, 25, "a")
    assert [now.done_bytes for now in shown] == [10, 20, 25]


def test_what_was_there_before_is_not_speed():
    clock, shown = Clock(), []
    meter = Meter(shown.append, every_s=10, clock=clock)
    meter(900_000_000, 10**9, "a")
    clock.now = 10.0
    meter(910_000_000, 10**9, "a")
    assert (shown[0].bytes_per_s, shown[0].eta_s) == (1e6, 90)
