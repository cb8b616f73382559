"""A finished song as a WAV file: 16-bit PCM, mono or stereo, exactly the requested length, never clipped."""

import hashlib
import wave
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from worker.engine import Audio

_FULL_SCALE = 32767


class Unplayable(ValueError):
    """The engine's audio cannot be written as a song. The text is one line."""


@dataclass(frozen=True)
class Wav:
    """A written WAV file. `peak` is the peak of the float audio; over 1.0 the song was scaled down."""

    path: Path
    channels: int
    n_samples: int  # of each channel
    n_bytes: int
    sha256: str
    peak: float


def cut(audio: Audio, seconds: float, sample_rate: int, fade_s: float = 0.0) -> Audio:
    """The first round(seconds * sample_rate) samples of [n] or [n, 2]; the last `fade_s` of them fade out.

    Raises Unplayable if there are fewer.
    """
    n_samples = round(seconds * sample_rate)
    if len(audio) < n_samples:
        raise Unplayable(f"{len(audio)} samples were made where {n_samples} are needed")
    audio = audio[:n_samples]
    if n_fading := min(round(fade_s * sample_rate), n_samples):
        audio = audio.copy()
        fading = np.linspace(1, 0, n_fading + 1, dtype=np.float32)[1:]
        audio[-n_fading:] *= fading if audio.ndim == 1 else fading[:, None]
    return audio


def write_wav(path: Path, audio: Audio, seconds: float, sample_rate: int) -> Wav:
    """Trim float audio [n] or [n, 2] to round(seconds * sample_rate) samples and write it. Raises Unplayable.

    A song with a peak over 1.0 is scaled down as a whole: clipping or wrapping would distort it.
    """
    audio = cut(audio, seconds, sample_rate)
    n_samples = len(audio)
    if not np.isfinite(audio).all():
        raise Unplayable("the audio holds NaN or infinite samples")
    peak = float(np.abs(audio).max())
    channels = 1 if audio.ndim == 1 else audio.shape[1]
    pcm = np.rint(audio * (_FULL_SCALE / max(peak, 1.0)))
    with wave.open(str(path), "wb") as file:
        file.setnchannels(channels)
        file.setsampwidth(2)
        file.setframerate(sample_rate)
        file.writeframes(pcm.astype("<i2").tobytes())
    with path.open("rb") as written:
        digest = hashlib.file_digest(written, "sha256").hexdigest()
    return Wav(path, channels, n_samples, path.stat().st_size, digest, peak)
