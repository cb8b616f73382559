"""Audio files as a model hears them: the end, the rate, the channels, and every fault in one line."""

import hashlib
import struct

import numpy as np
import pytest
import soundfile
from scipy.signal import resample_poly

from worker.audio.reading import Unreadable, opened


def music(seconds, rate, channels=2):
    """A rising tone in noise, other on each channel: [n, channels]."""
    n = round(seconds * rate)
    noise = np.random.default_rng(0).normal(0, 0.02, (n, channels))
    tone = 0.3 * np.sin(np.arange(n)[:, None] ** 1.2 / 40 * np.linspace(1, 0.7, channels))
    return (noise + tone).astype(np.float32)


def written(path, audio, rate, **how):
    soundfile.write(path, audio, rate, **how)
    return path


def without_its_first_frame(path):
    """Take off the frame of an MP3 that says how long it is."""
    content = path.read_bytes()
    path.write_bytes(content[content.index(content[:2], 200) :])


def digest(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def end(path, n_samples, rate=32_000, channels=1):
    with opened(path, digest(path)) as source:
        return np.concatenate(list(source.end(n_samples, rate, channels)))


@pytest.mark.parametrize("format_", ["wav", "flac", "mp3"])
def test_end_is_that_of_the_file_as_soundfile_decodes_it(tmp_path, format_):
    path = written(tmp_path / f"a.{format_}", music(4, 32_000), 32_000)
    whole = soundfile.read(path, dtype="float32")[0]
    assert np.array_equal(end(path, 40_000, channels=2), whole[-40_000:])


@pytest.mark.parametrize("rate", [8_000, 11_127, 22_050, 44_100, 48_000, 96_000])
def test_other_rates_are_resampled_as_at_once(tmp_path, rate):
    audio = music(5, rate, 1)
    path = written(tmp_path / "a.wav", audio, rate, subtype="FLOAT")
    expected = resample_poly(audio[:, 0], 32_000, rate)
    assert len(expected) == 160_000
    assert np.abs(end(path, 160_000) - expected).max() < 1e-5


@pytest.mark.parametrize("n_samples", [1, 640, 12_345, 100_000])
def test_end_of_a_resampled_file_has_exactly_the_samples_asked_for(tmp_path, n_samples):
    tone = np.sin(np.arange(4 * 44_100) / 44_100 * 2 * np.pi * 100.25).astype(np.float32)
    path = written(tmp_path / "a.wav", tone, 44_100, subtype="FLOAT")
    found = end(path, n_samples)
    times = 4 - np.arange(n_samples, 0, -1) / 32_000
    assert len(found) == n_samples
    # A sample's time may be off by one: the grid of samples begins somewhere in the file.
    assert np.abs(found[:-64] - np.sin(times * 2 * np.pi * 100.25)[:-64]).max(initial=0) < 0.03


def test_mono_of_two_channels_is_their_mean(tmp_path):
    audio = music(1, 32_000)
    path = written(tmp_path / "a.wav", audio, 32_000, subtype="FLOAT")
    assert np.allclose(end(path, 32_000), audio.mean(axis=1), atol=1e-7)


@pytest.mark.parametrize("channels", [1, 6])
def test_stereo_of_another_number_of_channels_has_both_sides_alike(tmp_path, channels):
    audio = music(1, 32_000, channels)
    path = written(tmp_path / "a.wav", audio, 32_000, subtype="FLOAT")
    found = end(path, 32_000, channels=2)
    assert np.array_equal(found[:, 0], found[:, 1])
    assert np.allclose(found[:, 0], audio.mean(axis=1), atol=1e-6)


def test_file_comes_in_pieces_however_long_it_is(tmp_path):
    path = written(tmp_path / "a.wav", music(20, 44_100, 1), 44_100)
    with opened(path, digest(path)) as source:
        assert source.seconds == 20
        assert max(len(piece) for piece in source.end(20 * 32_000, 32_000, 1)) < 3 * 32_000


def test_mp3_without_a_header_for_its_length_is_read_to_its_end(tmp_path):
    path = tmp_path / "a.mp3"
    soundfile.write(path, music(4, 44_100), 44_100, bitrate_mode="CONSTANT", compression_level=0.5)
    without_its_first_frame(path)
    with opened(path, digest(path)) as source:
        assert 4 <= source.seconds < 4.1
        n_samples = int(source.seconds * 32_000)
        assert sum(len(piece) for piece in source.end(n_samples, 32_000, 1)) == n_samples


# --- faults


def refused(path, message, sha256=None):
    with pytest.raises(Unreadable) as caught, opened(path, sha256 or digest(path)) as source:
        for _ in source.end(10**6, 32_000, 1):
            pass
    assert message in str(caught.value) and "\n" not in str(caught.value)


def test_file_that_has_changed_is_not_read(tmp_path):
    path = written(tmp_path / "a.wav", music(1, 32_000), 32_000)
    refused(path, "a.wav has changed since the list was read", sha256="0" * 64)


def test_file_that_is_gone_is_named(tmp_path):
    refused(tmp_path / "a.wav", "is gone; put it back", sha256="0" * 64)


@pytest.mark.parametrize("format_", ["flac", "mp3"])
@pytest.mark.parametrize("damage", ["cut off", "overwritten"])
def test_damaged_file_is_noticed(tmp_path, format_, damage):
    path = written(tmp_path / f"a.{format_}", music(5, 44_100), 44_100)
    content = bytearray(path.read_bytes())
    if damage == "cut off":
        del content[len(content) // 2 :]
    else:
        content[len(content) // 2 : len(content) // 2 + 5000] = np.random.default_rng(0).bytes(5000)
    path.write_bytes(content)
    refused(path, "is damaged")


def test_mp3_that_is_longer_than_it_seems_is_refused(tmp_path):
    path = tmp_path / "a.mp3"
    soundfile.write(path, music(4, 44_100), 44_100, bitrate_mode="VARIABLE")
    without_its_first_frame(path)
    refused(path, "does not say how long it is; convert it")


def test_what_is_no_audio_is_refused(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(b"hello" * 100)
    refused(path, "is damaged")


@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_samples_that_are_no_numbers_are_refused(tmp_path, bad):
    audio = music(1, 32_000, 1)
    audio[7] = bad
    refused(written(tmp_path / "a.wav", audio, 32_000, subtype="FLOAT"), "holds NaN or infinite samples")


@pytest.mark.parametrize("rate", [1, 500_000])
def test_rates_that_no_music_has_are_refused(tmp_path, rate):
    path = written(tmp_path / "a.wav", music(1, 8_000, 1), 8_000)
    content = bytearray(path.read_bytes())
    content[24:28] = struct.pack("<I", rate)
    path.write_bytes(content)
    refused(path, f"has {rate} samples per second")
