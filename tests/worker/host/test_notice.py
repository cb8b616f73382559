"""worker/host/notice.py: a request to end, as a run sees it."""

import threading

import pytest

from worker.host.notice import Interruption, Notice


def test_new_interruption_does_not_interrupt():
    interruption = Interruption()
    assert not interruption.wait(0.01)
    assert (interruption.notice, interruption.no_new_songs, interruption.drain_reason) == (None, False, None)


def test_wait_ends_early_on_a_notice():
    interruption = Interruption()
    notice = Notice("enough", "signal")
    timer = threading.Timer(0.05, interruption.end, [notice])
    timer.start()
    assert interruption.wait(60)
    assert interruption.notice == notice
    timer.join()


def test_drain_begins_no_song_and_does_not_end_the_run():
    interruption = Interruption()
    interruption.drain("soon")
    assert interruption.no_new_songs and interruption.drain_reason == "soon"
    assert interruption.notice is None and not interruption.wait(0.01)


@pytest.mark.parametrize("signal_first", [True, False])
def test_signal_leaves_no_time_and_the_spot_notice_stays_known(signal_first):
    asked, spot = Notice("SIGTERM", "signal"), Notice("EC2 takes it", "spot", deadline=5.0)
    interruption = Interruption()
    for notice in (asked, spot) if signal_first else (spot, asked):
        interruption.end(notice)
    assert interruption.notice == Notice("SIGTERM, and EC2 takes it", "spot", deadline=None)
