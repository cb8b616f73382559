"""Measure possible defects of a finished song: numbers and flags for its record.

A flagged song is kept, never dropped. All values describe the song as it is in its file: audio with
a peak over full scale is scaled down as a whole (worker/audio/wav.py), and so it is here.
Any audio has a Quality, also silence, a single sample or NaN; a value that is not defined is None.
Reads the audio in blocks: an hour takes some 220 MB beside the audio itself.
Does not judge the music. docs/quality.md explains columns and thresholds.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from pyloudnorm.iirfilter import IIRfilter
from scipy.ndimage import maximum_filter1d
from scipy.signal import sosfilt

from worker.engine import Audio

SHORT_S = 0.1  # missing seconds
CLIPPED_SHARE = 1e-4  # of all samples
SILENCE_DBFS = -60.0  # RMS of a step (0.1 s), without DC
LONG_SILENCE_S = 3.0
SILENT_TAIL_S = 2.0
QUIET_LUFS = -35.0
LOUD_LUFS = -9.0
SEAM_SCORE = 5.0

_TICKS_PER_S = 50  # a tick is a frame of MusicGen's tokens, so windows join on its edges
_STEP = 5  # ticks; BS.1770 advances its 0.4 s blocks by 0.1 s
_GATE = 4  # steps
_BLOCK = 100  # steps; about 10 s are processed at once
_NEAR_FULL_SCALE = 0.98

_N_BANDS = 30
_BAND_FLOOR = 1e-7  # -70 dB: lower levels are not audible
_NEIGHBOUR_TICKS = 25  # 0.5 s on each side of a tick are compared
_JOLT_TICKS = 3
_JOIN_SURROUNDINGS = 100  # ticks on each side of a join that are left out of the reference
_MIN_REFERENCE = 500  # ticks; 10 s

Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Quality:
    """The quality columns of one song, as JSON values; None where a value is not defined."""

    duration_s: float
    peak_dbfs: float | None  # before scaling; over 0: the file was scaled down
    lufs: float | None  # BS.1770 integrated loudness; None: silent, or under 0.4 s
    clipped_samples: int  # of all channels
    not_finite_samples: int
    silence_s: float
    longest_silence_s: float  # the tail not counted
    tail_silence_s: float
    seams_s: list[float]
    seam_scores: list[float | None]  # for each of seams_s; None: near an end, or too short a song
    flags: list[str]


def measure(audio: Audio, sample_rate: int, requested_s: float, joins_s: Sequence[float] = ()) -> Quality:
    """The quality of float audio [n] or [n, channels].

    `joins_s`: the seconds at which one window continues another. Seams are looked for in the channels' mean.
    """
    audio = audio[:, None] if audio.ndim == 1 else audio
    n_finite, peak = _finite_and_peak(audio, sample_rate)
    gain = 1 / max(peak, 1.0)
    tick = max(1, sample_rate // _TICKS_PER_S)
    step = _STEP * tick
    kweighting = _KWeighting(sample_rate, audio.shape[1])
    clipped = 0
    power, weighted = [], []  # mean square of each step: without DC; K-weighted
    for start in range(0, len(audio), _BLOCK * step):
        stop = min(start + _BLOCK * step, len(audio))
        clipped += _clipped(_piece(audio, start - 3, stop, gain))
        block = _piece(audio, start, stop, gain).astype(np.float64)
        steps = block[: len(block) // step * step].reshape(-1, step, audio.shape[1])
        power.append(steps.var(axis=1).mean(axis=1))
        weighted.append(kweighting(steps))
    if 0 < len(audio) < step:
        power = [_piece(audio, 0, len(audio), gain).var(axis=0, dtype=np.float64).mean(keepdims=True)]
        step = len(audio)
    silence, tail, longest = (n * step / sample_rate for n in _silence(_joined(power)))
    joins = [float(join) for join in joins_s]
    scores = _seam_scores(audio, gain, tick, sample_rate, joins) if joins else []
    facts = Quality(
        duration_s=len(audio) / sample_rate,
        peak_dbfs=_decibels(peak * peak),
        lufs=_integrated(_joined(weighted)),
        clipped_samples=clipped,
        not_finite_samples=audio.size - n_finite,
        silence_s=round(silence, 2),
        longest_silence_s=round(longest, 2),
        tail_silence_s=round(tail, 2),
        seams_s=joins,
        seam_scores=scores,
        flags=[],
    )
    silent = bool(_joined(power).max(initial=0.0) < _power(SILENCE_DBFS))
    facts.flags.extend(_flags(facts, silent, audio.size, requested_s))
    return facts


def _flags(song: Quality, silent: bool, n_samples: int, requested_s: float) -> Iterator[str]:
    if song.not_finite_samples:
        yield "not_finite"
    if requested_s - song.duration_s > SHORT_S:
        yield "short"
    if song.clipped_samples > CLIPPED_SHARE * n_samples:
        yield "clipped"
    if silent:  # which implies the flags below
        yield "silent"
        return
    if song.longest_silence_s > LONG_SILENCE_S:
        yield "long_silence"
    if song.tail_silence_s > SILENT_TAIL_S:
        yield "silent_tail"
    if song.lufs is not None and song.lufs < QUIET_LUFS:
        yield "quiet"
    if song.lufs is not None and song.lufs > LOUD_LUFS:
        yield "loud"
    for join_s, score in zip(song.seams_s, song.seam_scores, strict=True):
        if score is not None and score > SEAM_SCORE:
            yield f"seam@{join_s:.1f}s"


def _piece(audio: Audio, start: int, stop: int, gain: float) -> Audio:
    """Samples [start, stop) as they are in the file; zeros before the first and after the last."""
    inside = audio[max(start, 0) : max(stop, 0)]
    # in float64: the gain of extremely loud audio is too small for float32
    scaled = (np.where(np.isfinite(inside), inside, 0.0).astype(np.float64) * gain).astype(np.float32)
    return np.pad(scaled, ((max(-start, 0), stop - max(start, 0) - len(inside)), (0, 0)))


def _finite_and_peak(audio: Audio, sample_rate: int) -> tuple[int, float]:
    n_finite, peak = 0, 0.0
    for start in range(0, len(audio), 10 * sample_rate):
        block = audio[start : start + 10 * sample_rate]
        finite = block[np.isfinite(block)]
        n_finite += len(finite)
        peak = max(peak, float(np.abs(finite).max(initial=0.0)))
    return n_finite, peak


def _clipped(block: Audio) -> int:
    """The number of samples near full scale that equal the three samples before them.

    Only a clamp makes such flat tops; the top of a wave is round, even of the lowest bass.
    """
    flat = (block[1:] == block[:-1]) & (np.abs(block[1:]) >= _NEAR_FULL_SCALE)
    return int((flat[:-2] & flat[1:-1] & flat[2:]).sum())


def _silence(power: Floats) -> tuple[int, int, int]:
    """Numbers of silent steps: all, those at the end, and the longest of the other runs."""
    quiet = power < _power(SILENCE_DBFS)
    sounding = np.flatnonzero(~quiet)
    runs = np.diff(np.concatenate([[-1], sounding, [len(quiet)]])) - 1
    return int(quiet.sum()), int(runs[-1]), int(runs[:-1].max(initial=0))


class _KWeighting:
    """BS.1770's two filters, applied block by block.

    pyloudnorm's Meter takes the whole song at once, and 2.2 GB beside it for an hour at 32 kHz. So
    only its coefficients are used (De Man's, which fit the standard at any sample rate), with the
    filter state carried over.
    """

    def __init__(self, sample_rate: int, n_channels: int):
        shelf = IIRfilter(
            3.99984385397, 0.7071752369554193, 1681.9744509555319, sample_rate, "high_shelf_DeMan"
        )
        high_pass = IIRfilter(0.0, 0.5003270373253953, 38.13547087613982, sample_rate, "high_pass_DeMan")
        self._sections = np.array([[*stage.b, *stage.a] for stage in (shelf, high_pass)])
        self._state = np.zeros((2, 2, n_channels))

    def __call__(self, steps: Floats) -> Floats:
        """Mean square of each weighted step, summed over channels: [n_steps, n, channels] -> [n_steps]."""
        if not steps.size:
            return np.zeros(0)
        samples = steps.reshape(-1, steps.shape[2])
        weighted, self._state = sosfilt(self._sections, samples, axis=0, zi=self._state)
        return np.square(weighted).reshape(steps.shape).mean(axis=1).sum(axis=1)  # type: ignore[no-any-return]


def _integrated(weighted: Floats) -> float | None:
    """Gated loudness of K-weighted mean squares (ITU-R BS.1770-4, annex 1, front channels)."""
    if len(weighted) < _GATE:
        return None
    gates = np.convolve(weighted, np.full(_GATE, 1 / _GATE), "valid")
    loud = gates[gates > _power(-70 + 0.691)]
    if not len(loud):
        return None
    loud = loud[loud > loud.mean() * _power(-10)]
    level = _decibels(float(loud.mean()))
    return None if level is None else round(level - 0.691, 2)


def _seam_scores(
    audio: Audio, gain: float, tick: int, sample_rate: int, joins_s: list[float]
) -> list[float | None]:
    """How much more the song changes at each join than elsewhere: the largest of four scores."""
    bands, edges = _spectrogram(audio, gain, tick, sample_rate)
    places = [round(join * sample_rate / tick) for join in joins_s]
    scores = np.array([_strangeness(*kind, places) for kind in _changes(bands, edges)])
    return [None if np.isnan(score) else round(float(score), 2) for score in scores.max(axis=0)]


def _spectrogram(
    audio: Audio, gain: float, tick: int, sample_rate: int
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Level of each band in each tick, and the sharpest bend in the waveform near the tick's start.

    -> dB [n_ticks, n_bands], dB [n_ticks]; whole ticks only.
    """
    n_ticks, n, half = len(audio) // tick, 2 * tick, tick // 2
    window = np.hanning(n).astype(np.float32)
    top = min(15_000.0, sample_rate / 2)
    limits = np.unique(np.rint(np.geomspace(50, top, _N_BANDS + 1) * n / sample_rate).astype(int))
    bands = np.empty((n_ticks, len(limits) - 1), np.float32)
    edges = np.empty(n_ticks, np.float32)
    for first in range(0, n_ticks, _BLOCK * _STEP):
        last = min(first + _BLOCK * _STEP, n_ticks)
        block = _piece(audio, first * tick - half, (last + 1) * tick + half, gain).mean(axis=1)
        frames = np.lib.stride_tricks.sliding_window_view(block, n)[::tick][: last - first]
        spectrum = np.abs(np.fft.rfft(frames * window, axis=1)) ** 2 / (n * n / 8)
        bands[first:last] = np.add.reduceat(spectrum[:, : limits[-1]], limits[:-1], axis=1)
        bends = np.abs(np.diff(block, 2))[: (last - first) * tick].reshape(-1, tick)
        edges[first:last] = bends.max(axis=1)
    return 10 * np.log10(bands + _BAND_FLOOR), 20 * np.log10(edges + 1e-4)


def _changes(
    bands: NDArray[np.float32], edges: NDArray[np.float32]
) -> Iterator[tuple[NDArray[np.float32], float]]:
    """Four kinds of change at the start of each tick, each with its least spread.

    The least spread keeps a song that hardly changes, such as one held tone, from being compared with
    its own rounding errors.
    """
    after = _after_less_before(bands, _NEIGHBOUR_TICKS)
    known = after[np.isfinite(after).all(axis=1)]
    usual = np.median(np.abs(known), axis=0) + 0.3 if len(known) else np.float32(0.3)
    yield (
        np.sqrt(np.square(after / usual).mean(axis=1)),
        0.5,
    )  # timbre: bands, relative to their usual change
    yield np.abs(after.mean(axis=1)) / (after.std(axis=1) + 1), 0.3  # level: all bands together
    yield np.abs(_after_less_before(bands, _JOLT_TICKS)).mean(axis=1), 0.5  # jolt: gaps and cuts
    around = np.full_like(edges, np.nan)
    if len(edges) > 20:
        widest = maximum_filter1d(edges, 9)  # +-4 ticks
        around[10:-10] = edges[10:-10] - np.maximum(widest[4:-16], widest[16:-4])
    yield around, 1.0  # click: a bend sharper than any other within 0.2 s


def _after_less_before(bands: NDArray[np.float32], n: int) -> NDArray[np.float32]:
    """Mean dB of the n ticks from each tick on, minus that of the n before it; NaN at both ends."""
    change = np.full_like(bands, np.nan)
    if len(bands) > 2 * n:
        sums = np.cumsum(np.pad(bands, ((1, 0), (0, 0))), axis=0, dtype=np.float64)
        change[n : len(bands) - n + 1] = (sums[2 * n :] - 2 * sums[n:-n] + sums[: -2 * n]) / n
    return change


def _strangeness(change: NDArray[np.float32], least_spread: float, places: list[int]) -> Floats:
    """Robust z-score of the largest change within a tick of each place, relative to the rest; or NaN.

    The spread is the larger one of the median deviation and the upper tail: in percussive music a few
    ticks change far more than most, and a join on a drum hit is not a defect.
    """
    known = np.isfinite(change)
    largest = maximum_filter1d(np.where(known, change, -np.inf), 3)
    elsewhere = known.copy()
    for place in places:
        elsewhere[max(place - _JOIN_SURROUNDINGS, 0) : max(place + _JOIN_SURROUNDINGS, 0)] = False
    reference = largest[elsewhere]
    if len(reference) < _MIN_REFERENCE:
        return np.full(len(places), np.nan)
    middle = np.median(reference)
    tail = (np.quantile(reference, 0.95) - middle) / 1.645
    spread = max(1.4826 * np.median(np.abs(reference - middle)), tail, least_spread)
    return np.array(
        [
            (largest[place] - middle) / spread if 0 <= place < len(known) and known[place] else np.nan
            for place in places
        ]
    )


def _joined(parts: list[Floats]) -> Floats:
    return np.concatenate(parts) if parts else np.zeros(0)


def _power(decibels: float) -> float:
    return float(10 ** (decibels / 10))


def _decibels(power: float) -> float | None:
    return round(float(10 * np.log10(power)), 2) if power > 0 else None
