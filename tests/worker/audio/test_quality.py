"""Quality of songs: loudness by the standard, each flag by a planted defect, and clean music unflagged."""

import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from pyloudnorm import Meter

from worker.audio import quality as qc
from worker.audio.quality import measure

# In one xdist worker, which makes the music once.
pytestmark = pytest.mark.xdist_group("qc")

RATE = 32_000
SECONDS = 75
JOINS = (30.0, 48.0, 66.0)
PAGE = (Path(__file__).parents[3] / "docs" / "quality.md").read_text("utf-8")


def sine(seconds, level, hz=997.0, rate=RATE):
    return (level * np.sin(2 * np.pi * hz * np.arange(round(seconds * rate)) / rate)).astype(np.float32)


def of(audio, joins=(), seconds=None):
    return measure(audio, RATE, len(audio) / RATE if seconds is None else seconds, joins)


def at(second):
    return round(second * RATE)


def noise(seconds, level, seed=0):
    return (level * np.random.default_rng(seed).standard_normal(round(seconds * RATE))).astype(np.float32)


def notes(every_s, pitches, decay_s, seed):
    """Plucked notes, one after another, that ring into each other."""
    draws = np.random.default_rng(seed)
    song = np.zeros(at(SECONDS), np.float32)
    for start_s in np.arange(0, SECONDS, every_s):
        t = np.arange(at(min(4 * decay_s, SECONDS - start_s))) / RATE
        pitch = draws.choice(pitches)
        tone = sum(np.sin(2 * np.pi * pitch * k * t) / k**1.5 for k in range(1, 6))
        note = 0.12 * draws.uniform(0.7, 1) * tone * np.exp(-t / decay_s) * np.minimum(t / 0.005, 1)
        song[at(start_s) : at(start_s) + len(note)] += note
    return song


@pytest.fixture(scope="module")
def calm():
    """Slow notes over a held chord."""
    chord = sum(sine(SECONDS, 0.03, hz) for hz in (110, 165, 220))
    return notes(0.5, [220, 262, 330, 392, 440], 0.6, seed=1) + chord + noise(SECONDS, 0.0005)


@pytest.fixture(scope="module")
def drums():
    """Hard hits on every beat, so that each join falls on one, over quick notes."""
    song = notes(0.25, [110, 131, 165], 0.15, seed=2)
    draws = np.random.default_rng(3)
    for beat_s in np.arange(0, SECONDS - 0.3, 0.5):
        t = np.arange(at(0.25)) / RATE
        snare = 0.25 * draws.standard_normal(len(t)) * np.exp(-t / 0.03)
        kick = 0.4 * np.sin(400 * t) * np.exp(-t / 0.08)
        song[at(beat_s) : at(beat_s) + len(t)] += draws.uniform(0.8, 1) * (snare + kick)
    return song * np.float32(0.9 / np.abs(song).max())


@pytest.fixture(params=["calm", "drums"])
def music(request):
    return request.getfixturevalue(request.param).copy()


# --- loudness


def test_loudness_of_the_reference_tone_is_that_of_the_standard():
    """ITU-R BS.1770-4: 0 dBFS at 997 Hz in one channel reads -3.01 LKFS."""
    assert measure(sine(20, 1.0, rate=48_000), 48_000, 20).lufs == pytest.approx(-3.01, abs=0.01)


@pytest.mark.parametrize("rate", [16_000, 32_000, 44_100, 48_000])
def test_loudness_in_blocks_is_what_pyloudnorm_measures_of_the_whole(rate):
    """Loud, quiet and silent parts over several blocks, so that both gates matter. Whole steps only:
    pyloudnorm counts a last incomplete step as a whole one."""
    parts = [noise(8, 0.2), noise(9, 0.02), noise(9, 0.001), np.zeros(at(3), np.float32), noise(2.3, 0.1)]
    audio = np.concatenate(parts)
    audio = audio[: len(audio) // (rate // 10) * (rate // 10)]
    whole = Meter(rate, filter_class="DeMan").integrated_loudness(audio.astype(np.float64))
    assert measure(audio, rate, 1).lufs == pytest.approx(whole, abs=0.01)


@settings(max_examples=40)
@given(st.floats(-25, 0))
def test_gain_moves_the_loudness_by_as_many_decibels(gain_db):
    audio = sine(1.3, 0.9, hz=300)
    change = of(audio * np.float32(10 ** (gain_db / 20))).lufs - of(audio).lufs
    assert change == pytest.approx(gain_db, abs=0.02)


def test_silence_around_it_does_not_make_a_song_less_loud():
    audio = noise(10, 0.1)
    padded = np.concatenate([np.zeros(at(10), np.float32), audio, np.zeros(at(10), np.float32)])
    assert of(padded).lufs == pytest.approx(of(audio).lufs, abs=0.2)


def test_song_over_full_scale_is_measured_as_it_is_in_its_file():
    """The file is scaled down to a peak of 1; only peak_dbfs shows it."""
    audio = noise(5, 0.2)
    audio /= np.abs(audio).max()
    loud, fits = of(audio * 4), of(audio)
    assert loud.peak_dbfs == pytest.approx(12.04, abs=0.01)
    assert (loud.lufs, loud.flags) == (fits.lufs, fits.flags)


# --- stereo


def test_stereo_of_two_equal_channels_is_twice_the_power_and_else_like_mono(music):
    joins = [10.0, 30.0]
    mono, stereo = (measure(audio, RATE, SECONDS, joins) for audio in (music, np.stack([music] * 2, axis=1)))
    assert stereo.lufs == pytest.approx(mono.lufs + 3.01, abs=0.02)
    assert replace(stereo, lufs=mono.lufs) == mono


def test_loudness_of_stereo_is_what_pyloudnorm_measures():
    audio = np.stack([noise(9, 0.2), noise(9, 0.02)], axis=1)
    whole = Meter(RATE, filter_class="DeMan").integrated_loudness(audio.astype(np.float64))
    assert of(audio).lufs == pytest.approx(whole, abs=0.01)


def test_defects_of_one_channel_are_counted():
    audio = np.stack([noise(5, 0.1), noise(5, 0.1)], axis=1)
    audio[100:110, 1], audio[200, 1] = 1.0, np.nan
    assert (of(audio).clipped_samples, of(audio).not_finite_samples) == (7, 1)


def test_song_with_one_silent_channel_is_not_silent():
    assert not of(np.stack([noise(5, 0.1), np.zeros(at(5), np.float32)], axis=1)).silence_s


# --- any audio has a quality


@settings(max_examples=60)
@given(
    hnp.arrays(np.float32, st.integers(0, 400), elements=st.floats(width=32)),
    st.sampled_from([1, 7, 90]),
    st.sampled_from([8_000, 11_025, 32_000]),
    st.lists(st.floats(0, 2), max_size=2),
)
def test_any_audio_has_a_quality_that_is_json(audio, times, rate, joins):
    quality = measure(np.tile(audio, times), rate, 1.0, joins)
    text = json.dumps(asdict(quality), allow_nan=False)
    assert json.loads(text) == asdict(quality)


@pytest.mark.parametrize("n_samples", [0, 1, 2, 3, 100, at(0.1) - 1, at(0.4) - 1])
def test_loudness_of_audio_under_400_ms_is_not_defined(n_samples):
    assert of(np.full(n_samples, 0.5, np.float32)).lufs is None


@pytest.mark.parametrize("level", [0.0, 0.5, -0.5])
def test_one_level_throughout_is_silent(level):
    assert of(np.full(at(5), level, np.float32)).flags == ["silent"]


def test_seconds_add_up():
    nothing = np.zeros(at(4), np.float32)
    quality = of(np.concatenate([sine(10, 0.5), nothing, sine(5, 0.5), nothing[: at(3)]]))
    found = quality.duration_s, quality.silence_s, quality.longest_silence_s, quality.tail_silence_s
    assert found == pytest.approx((22, 7, 4, 3), abs=0.11)


# --- flags


def test_clean_music_has_no_flag(music):
    assert of(music, JOINS).flags == []


def cut(audio):
    return audio[: at(70)]


def clamped(audio):
    return np.clip(audio * 6 / np.abs(audio).max(), -1, 1)


def with_hole(audio):
    audio[at(40) : at(44)] = 0
    return audio


def ending_early(audio):
    audio[at(72) :] = 0
    return audio


def with_nan(audio):
    audio[at(20)] = np.nan
    return audio


DEFECTS = {
    "short": cut,
    "clipped": clamped,
    "silent": lambda audio: audio * 1e-5,
    "long_silence": with_hole,
    "silent_tail": ending_early,
    "quiet": lambda audio: audio * 0.02,
    "loud": lambda audio: np.sign(audio) * 0.9,
    "not_finite": with_nan,
}


LONE = ["short", "long_silence", "silent_tail", "quiet", "silent", "not_finite"]


@pytest.mark.parametrize("flag", DEFECTS)
def test_planted_defect_is_flagged(drums, flag):
    assert flag in of(DEFECTS[flag](drums.copy()), seconds=SECONDS).flags


@pytest.mark.parametrize("flag", LONE)
def test_planted_defect_has_no_other_flag(calm, flag):
    assert of(DEFECTS[flag](calm.copy()), seconds=SECONDS).flags == [flag]


@pytest.mark.parametrize("flag", ["clipped", "loud"])
def test_planted_defect_that_may_come_with_others_is_flagged_in_calm_music(calm, flag):
    assert flag in of(DEFECTS[flag](calm.copy()), seconds=SECONDS).flags


@pytest.mark.parametrize("hz", [20, 40, 60, 997, 5000])
def test_full_scale_tone_is_not_clipped(hz):
    assert of(sine(5, 1.0, hz=hz)).clipped_samples == 0


def test_clipping_is_counted_across_blocks():
    """Of a run of n clamped samples n - 3 count, wherever the blocks begin."""
    audio = sine(25, 0.5)
    audio[at(10) - 5 : at(10) + 5] = 1.0
    assert of(audio).clipped_samples == 7


@settings(max_examples=40)
@given(st.lists(st.floats(-60, 0), min_size=2, max_size=2).map(sorted))
def test_turning_it_up_never_makes_a_song_quiet_or_less_loud(gains_db):
    lower, higher = (of(noise(1, 1.0) * np.float32(10 ** (db / 20))).flags for db in gains_db)
    assert not ({"quiet", "silent"} & set(higher) and not {"quiet", "silent"} & set(lower))
    assert "loud" not in lower or "loud" in higher


# --- seams


def other_timbre(audio, start):
    """Every other sample's sign turned: the spectrum upside down, the level as it was."""
    audio[start + start % 2 :: 2] *= -1


def higher_level(audio, start):
    audio[start:] *= 2.5
    audio *= 0.35


def gap(audio, start):
    audio[start : start + at(0.1)] = 0


def hiss(audio, start):
    audio[start:] += noise(SECONDS, 0.05)[start:]


@pytest.mark.parametrize("defect", [other_timbre, higher_level, gap, hiss])
def test_seam_is_flagged_where_it_is_and_nowhere_else(music, defect):
    defect(music, at(48))
    quality = of(music, JOINS)
    assert [flag for flag in quality.flags if flag.startswith("seam")] == ["seam@48.0s"]


def test_click_is_flagged_in_calm_music(calm):
    audio = calm.copy()
    audio[at(48) :] += 0.2 * np.exp(-np.arange(len(audio) - at(48)) / 50).astype(np.float32)
    assert of(audio, JOINS).flags == ["seam@48.0s"]


def test_a_bad_seam_at_every_join_is_still_found(music):
    """Joins and their surroundings are left out of the reference."""
    for join in JOINS:
        gap(music, at(join))
    assert of(music, JOINS).flags == [f"seam@{join:.1f}s" for join in JOINS]


def test_drum_on_a_join_is_not_a_seam(drums):
    """Every join of the fixture falls on a beat; so do these."""
    assert max(of(drums, np.arange(2, 70, 6.5)).seam_scores) < qc.SEAM_SCORE


def test_seam_scores_hardly_depend_on_the_level_of_the_song(calm):
    """Hardly: a quieter song has more bands that are too quiet to count."""
    audio = calm.copy()
    other_timbre(audio, at(48))
    assert of(audio * 0.5, JOINS).seam_scores == pytest.approx(of(audio, JOINS).seam_scores, rel=0.2)


def test_held_tone_has_no_seams():
    assert max(of(sine(SECONDS, 0.5, hz=441.3), JOINS).seam_scores) < 1


@pytest.mark.parametrize("join", [-3.0, 0.0, 0.3, 74.8, 75.0, 300.0])
def test_join_without_half_a_second_on_each_side_has_no_score(calm, join):
    assert of(calm, [join]).seam_scores == [None]


def test_join_of_a_song_too_short_to_compare_with_has_no_score(calm):
    assert of(calm[: at(12)], [6.0]).seam_scores == [None]


# --- the page


@pytest.mark.parametrize("column", qc.Quality.__dataclass_fields__)
def test_every_column_is_explained(column):
    assert f"`{column}`" in PAGE


@pytest.mark.parametrize(
    ("flag", "threshold"),
    [
        ("short", f"{qc.SHORT_S:g} s"),
        ("clipped", f"{100 * qc.CLIPPED_SHARE:g} %"),
        ("silent", f"{qc.SILENCE_DBFS:g} dBFS"),
        ("long_silence", f"{qc.LONG_SILENCE_S:g} s"),
        ("silent_tail", f"{qc.SILENT_TAIL_S:g} s"),
        ("quiet", f"{qc.QUIET_LUFS:g} LUFS"),
        ("loud", f"{qc.LOUD_LUFS:g} LUFS"),
        ("seam@48.0s", f"{qc.SEAM_SCORE:g}"),
        ("not_finite", "NaN"),
    ],
)
def test_every_flag_is_explained_with_its_threshold(flag, threshold):
    (row,) = [line for line in PAGE.splitlines() if line.startswith(f"| `{flag}` |")]
    assert threshold in row
