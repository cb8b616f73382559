"""Start-up checks: room on real small disks, clocks that are wrong, and what a full disk looks like."""

import errno
import os
import subprocess
import time
from datetime import UTC, datetime
from email.utils import formatdate
from http.server import BaseHTTPRequestHandler

import numpy as np
import pytest

from tests.fakes import s3
from tests.parts import need
from worker.audio.wav import write_wav
from worker.errors import DiskFull, UserError
from worker.run.preflight import check, check_clock_is_set, check_room, skew_warnings, wav_bytes
from worker.store.files import disk_errors
from worker.store.open import open_store

RATE = 32_000


@pytest.fixture
def small_disk(tmp_path):
    """A disk of 1 MB, which is 16 seconds of music."""
    disk = tmp_path / "small"
    disk.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)]
    is_root = os.name == "posix" and os.geteuid() == 0
    need("the right to mount a tmpfs", is_root and subprocess.run(mount, capture_output=True).returncode == 0)
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def refusal(act, *args) -> str:
    """The one line of the UserError that this raises."""
    with pytest.raises(UserError) as caught:
        act(*args)
    text = str(caught.value)
    assert "; " in text and "\n" not in text
    return text


# --- room


def test_songs_size_is_what_is_written(tmp_path):
    wav = write_wav(tmp_path / "song.wav", np.zeros(RATE * 2, np.float32), 1.23, RATE)
    assert wav_bytes(1.23, RATE) == wav.n_bytes


def test_songs_that_cannot_all_stay_are_refused_before_anything_is_written(small_disk, tmp_path):
    store = open_store(str(small_disk / "not" / "there"))
    text = refusal(check, [10, 15], RATE, tmp_path, store)
    assert text == (
        f"not enough room for the songs at {small_disk}/not/there: 1.6 MB are needed, 1.0 MB are free, "
        "0.6 MB are missing; free space or name another folder"
    )
    assert list(small_disk.iterdir()) == []


def test_songs_that_just_fit_are_a_warning_and_do_fit(small_disk, tmp_path):
    store = open_store(str(small_disk / "out"))
    (warning,) = check([7.5, 7.5], RATE, tmp_path, store)
    assert warning.startswith(f"the songs at {small_disk}/out will leave 0.1 MB of its disk; free space")
    for name in ("one.wav", "two.wav"):
        assert store.create(name, bytes(wav_bytes(7.5, RATE)))


def test_scratch_needs_room_for_the_longest_song_only(small_disk, tmp_path):
    songs = [wav_bytes(10, RATE)] * 100
    assert len(check_room(songs, small_disk, None)) == 1
    text = refusal(check_room, [*songs, wav_bytes(17, RATE)], small_disk, None)
    assert f"room for the songs at {small_disk}: 1.1 MB are needed" in text
    assert "set TMPDIR to a folder on a larger disk" in text


def test_scratch_and_songs_on_one_disk_need_room_together(small_disk):
    songs = [wav_bytes(9, RATE)]
    assert len(check_room(songs, small_disk, None)) == 1
    assert "1.2 MB are needed" in refusal(check_room, songs, small_disk / "scratch", small_disk / "out")


def test_songs_in_s3_need_scratch_only(s3_url, tmp_path):
    a_million_hours = [3600.0] * 1_000_000
    assert check(a_million_hours, RATE, tmp_path, open_store("s3://some-bucket/songs")) == []


def test_roomy_disk_is_no_warning(tmp_path):
    assert check([1.0], RATE, tmp_path, open_store(str(tmp_path / "out"))) == []


def test_no_songs_need_no_room(small_disk):
    assert check_room([], small_disk, small_disk) == []


# --- clocks


@pytest.mark.parametrize("year", [1970, 2000, 2025])
def test_clock_that_was_never_set_is_refused(year):
    text = refusal(check_clock_is_set, datetime(year, 1, 1, tzinfo=UTC))
    assert text.startswith(f"this machine's clock says {year}-01-01; set it")


def test_clock_that_is_set_is_fine():
    check_clock_is_set(datetime.now(UTC))


@pytest.fixture
def s3_clock(s3_url, monkeypatch):
    """Sets the clock of the S3 server so many seconds ahead."""

    def ahead(seconds):
        text = lambda *_: formatdate(time.time() + seconds, usegmt=True)  # noqa: E731
        monkeypatch.setattr(BaseHTTPRequestHandler, "date_time_string", text)

    return ahead


@pytest.mark.parametrize(("s3_ahead_s", "side"), [(600, "behind"), (-600, "ahead of")])
def test_wrong_clock_is_a_warning(s3_url, s3_clock, tmp_path, s3_ahead_s, side):
    s3_clock(s3_ahead_s)
    store = open_store(f"s3://{s3.fresh_bucket(s3_url)}")
    store.list()
    (warning,) = check([1.0], RATE, tmp_path, store)
    assert warning.startswith(f"this machine's clock is 10 min {side} the store's")
    assert -s3_ahead_s - 30 < store.clock_skew_s() < -s3_ahead_s + 30


def test_right_clock_is_no_warning(s3_url, tmp_path):
    store = open_store(f"s3://{s3.fresh_bucket(s3_url)}")
    assert store.clock_skew_s() is None  # nothing was asked yet
    store.list()
    assert abs(store.clock_skew_s()) < 30
    assert check([1.0], RATE, tmp_path, store) == []


def test_refusal_tells_the_stores_time_too(s3_url, s3_clock, monkeypatch):
    s3_clock(600)
    with s3.refusing(403, "RequestTimeTooSkewed") as url:
        monkeypatch.setenv("AWS_ENDPOINT_URL", url)
        store = open_store("s3://some-bucket")
        assert "clock is wrong; set it" in refusal(store.list)
    assert -630 < store.clock_skew_s() < -570


def test_store_whose_time_cannot_be_read_is_no_warning(s3_url, monkeypatch):
    store = open_store(f"s3://{s3.fresh_bucket(s3_url)}")
    monkeypatch.setattr(BaseHTTPRequestHandler, "date_time_string", lambda *_: "noon")
    store.list()
    assert store.clock_skew_s() is None


def test_folder_has_no_clock_of_its_own(tmp_path):
    assert open_store(str(tmp_path)).clock_skew_s() is None
    assert list(skew_warnings(None)) == []


# --- a full disk


def test_full_disk_is_told_from_other_failures_of_a_store(small_disk):
    store = open_store(str(small_disk / "out"))
    with pytest.raises(DiskFull) as full:
        store.write("song.wav", bytes(2_000_000))
    assert full.value.code == 1


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT])
def test_spent_quota_is_a_full_disk(tmp_path, number):
    with pytest.raises(DiskFull), disk_errors(tmp_path):
        raise OSError(number, os.strerror(number))
