"""WAV files: the format, the exact length, and samples that neither wrap nor clip."""

import hashlib
import wave

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from worker.audio.wav import Unplayable, cut, write_wav

RATE = 32_000


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("wav") / "song.wav"


def samples(path):
    with wave.open(str(path), "rb") as file:
        return np.frombuffer(file.readframes(file.getnframes()), "<i2")


def sine(seconds, level=0.5):
    return (level * np.sin(np.arange(round(seconds * RATE)) / 10)).astype(np.float32)


def test_format_is_32_khz_mono_16_bit_pcm(path):
    write_wav(path, sine(1), 1.0, RATE)
    with wave.open(str(path), "rb") as file:
        assert file.getparams()[:4] == (1, 2, RATE, RATE)
        assert file.getcomptype() == "NONE"


@pytest.mark.parametrize("shape", [(1000,), (1000, 2)])
def test_end_fades_out_over_the_time_that_is_set_and_nothing_else_changes(shape):
    audio = np.full(shape, 0.5, np.float32)
    faded = cut(audio, 0.9, 1000, fade_s=0.1)
    assert faded.shape == (900, *shape[1:])
    assert np.array_equal(faded[:800], audio[:800])
    assert (np.diff(faded[799:], axis=0) < 0).all() and not faded[-1].any()
    assert (audio == 0.5).all()


def test_fade_longer_than_the_song_covers_all_of_it():
    assert not cut(np.ones(10, np.float32), 0.01, 1000, fade_s=5)[-1]


def test_stereo_keeps_its_channels(path):
    left, right = sine(1), np.zeros(RATE, np.float32)
    written = write_wav(path, np.stack([left, right], axis=1), 1.0, RATE)
    with wave.open(str(path), "rb") as file:
        assert file.getparams()[:4] == (2, 2, RATE, RATE)
    assert (written.channels, written.n_samples) == (2, RATE)
    both = samples(path).reshape(-1, 2)
    assert np.array_equal(both[:, 0], np.rint(left * 32767).astype("<i2"))
    assert not both[:, 1].any()


@given(st.integers(100, 1000), st.integers(0, 640))
def test_song_has_exactly_the_requested_samples(path, hundredths, more):
    """SECONDS has at most two decimals; the engine makes whole frames of 640 samples."""
    n_samples = hundredths * RATE // 100
    wav = write_wav(path, np.zeros(n_samples + more, np.float32), hundredths / 100, RATE)
    assert wav.n_samples == len(samples(path)) == n_samples


def test_quiet_audio_keeps_its_level(path):
    audio = sine(1, level=0.25)
    write_wav(path, audio, 1.0, RATE)
    assert np.abs(samples(path) - audio * 32767.0).max() <= 0.51


@given(hnp.arrays(np.float32, 320, elements=st.floats(-(2.0**100), 2.0**100, width=32)))
def test_no_audio_wraps_or_clips(path, audio):
    """Samples keep their sign and their proportion to the peak, however loud."""
    peak = max(1.0, float(np.abs(audio).max()))
    wav = write_wav(path, audio, 0.01, RATE)
    assert wav.peak == np.abs(audio).max()
    assert np.abs(samples(path) - audio.astype(np.float64) / peak * 32767).max() <= 0.51


def test_loud_part_that_is_trimmed_away_does_not_make_the_song_quiet(path):
    audio = np.concatenate([sine(1), np.full(640, 5.0, np.float32)])
    assert write_wav(path, audio, 1.0, RATE).peak <= 0.5


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_audio_that_is_not_finite_is_refused_and_leaves_no_file(tmp_path, bad):
    audio = sine(1)
    audio[500] = bad
    with pytest.raises(Unplayable, match="NaN or infinite"):
        write_wav(tmp_path / "song.wav", audio, 1.0, RATE)
    assert list(tmp_path.iterdir()) == []


def test_short_audio_is_refused_and_leaves_no_file(tmp_path):
    with pytest.raises(Unplayable, match="31999 samples were made where 32000 are needed"):
        write_wav(tmp_path / "song.wav", sine(1)[:-1], 1.0, RATE)
    assert list(tmp_path.iterdir()) == []


def test_same_audio_gives_the_same_bytes(tmp_path):
    first = write_wav(tmp_path / "a.wav", sine(2), 1.5, RATE)
    second = write_wav(tmp_path / "b.wav", sine(2), 1.5, RATE)
    assert first.path.read_bytes() == second.path.read_bytes()
    assert first.sha256 == second.sha256


def test_size_and_checksum_are_those_of_the_file(path):
    wav = write_wav(path, sine(1), 1.0, RATE)
    content = path.read_bytes()
    assert (wav.n_bytes, wav.sha256) == (len(content), hashlib.sha256(content).hexdigest())
