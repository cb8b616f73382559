"""The end of an audio file as a model hears it: at its sample rate, mono or stereo, piece by piece.

    with opened(path, sha256) as source:
        for piece in source.end(n_samples, 32_000, channels=1):

Memory does not grow with the file. Faults of the file are Unreadable, one line each.
"""

import hashlib
import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from numpy.typing import NDArray
from scipy.signal import firwin, resample_poly

from worker.engine import Audio

_SILENT = 1e-3  # a peak of -60 dBFS

_Samples = NDArray[np.float32]  # [n, channels]
_PIECE = 65_536  # samples of the file, about
_RATES = range(4_000, 400_000)
# What may follow the music in an MP3: tags.
_TAGS_BYTES = 16_384
# resample_poly's own filter: 10 zero crossings to each side, Kaiser window.
_ZERO_CROSSINGS, _KAISER = 10, 5.0


class Unreadable(ValueError):
    """The file is gone, has changed, is damaged or silent. The text is one line."""


@contextmanager
def opened(path: Path, sha256: str) -> Iterator["Source"]:
    """The file, if its content is still that of the digest. Raises Unreadable, also while it is read."""
    try:
        with path.open("rb") as file:
            if hashlib.file_digest(file, "sha256").hexdigest() != sha256:
                raise Unreadable(f"{path.name} has changed since the list was read; start the run again")
            file.seek(0)
            with soundfile.SoundFile(file) as sound:
                n_frames = sound.frames
                if sound.format == "MP3":
                    n_frames = _counted(sound)
                    if path.stat().st_size - file.tell() > _TAGS_BYTES:
                        raise Unreadable(
                            f"{path.name} does not say how long it is; convert it to WAV or FLAC"
                        )
                yield Source(sound, n_frames, path.name)
    except FileNotFoundError:
        raise Unreadable(f"{path} is gone; put it back") from None
    except OSError as error:
        raise Unreadable(f"{path} cannot be read ({error.strerror})") from None
    except soundfile.SoundFileError:
        raise Unreadable(f"{path.name} is damaged; copy or convert it again") from None


class Source:
    """An open audio file of `seconds`."""

    def __init__(self, sound: soundfile.SoundFile, n_frames: int, name: str):
        if sound.samplerate not in _RATES:
            raise Unreadable(f"{name} has {sound.samplerate} samples per second; convert it to 44100")
        self._sound, self._n_frames, self._name = sound, n_frames, name
        self.seconds: float = n_frames / sound.samplerate

    def end(self, n_samples: int, rate: int, channels: int) -> "End":
        """The last `n_samples` at `rate`: [n] in pieces, or [n, 2] of two channels.

        The file has as many. It can be iterated over again, one at a time.
        To mono, channels are averaged; to stereo, a file of other than two gives both sides the same.
        """
        return End(self, n_samples, rate, channels)

    def read(self, n_samples: int, rate: int, channels: int) -> Iterator[Audio]:
        """As `end`, once."""
        divisor = math.gcd(rate, self._sound.samplerate)
        up, down = rate // divisor, self._sound.samplerate // divisor
        halo = down * (-(-_ZERO_CROSSINGS * max(up, down) // (up * down)) + 1)
        start = max(0, self._n_frames - -(-n_samples * down // up) - halo)
        surplus = -(-(self._n_frames - start) * up // down) - n_samples
        for piece in _resampled(self._pieces(start, down, channels), up, down, halo):
            if len(piece) > surplus:
                kept = piece[max(0, surplus) :]
                yield kept if channels > 1 else kept[:, 0]
            surplus -= len(piece)

    def _pieces(self, start: int, down: int, channels: int) -> Iterator[_Samples]:
        """The file from a sample on, in pieces of a multiple of `down` samples, the last one excepted."""
        n_left = self._n_frames - self._sound.seek(start)
        size = down * -(-_PIECE // down)
        while n_left > 0:
            piece = self._sound.read(min(size, n_left), dtype="float32", always_2d=True)
            if len(piece) < min(size, n_left):
                raise Unreadable(f"{self._name} is damaged: it ends before its {self.seconds:.1f} s")
            if not np.isfinite(piece).all():
                raise Unreadable(f"{self._name} holds NaN or infinite samples")
            n_left -= len(piece)
            yield piece if piece.shape[1] == channels == 2 else _mixed(piece, channels)


@dataclass(frozen=True)
class End:
    """The last samples of a file; each iteration reads them anew."""

    source: Source
    n_samples: int
    rate: int
    channels: int

    def __iter__(self) -> Iterator[Audio]:
        return self.source.read(self.n_samples, self.rate, self.channels)

    @property
    def is_silent(self) -> bool:
        """True if no sample of its last second is louder than -60 dBFS: a song cannot go on from there."""
        tail = np.zeros(0, np.float32)
        for piece in self:
            tail = np.concatenate([tail, np.abs(piece).reshape(len(piece), -1).max(1)])[-self.rate :]
        return bool(tail.max(initial=0) < _SILENT)


def _counted(sound: soundfile.SoundFile) -> int:
    """The samples that an MP3 has. Without a Xing header their number is an estimate from its size."""
    n_before = sound.seek(max(0, sound.frames - 2 * sound.samplerate))
    n_frames: int = n_before + len(sound.read(always_2d=True))
    return n_frames if sound.frames - n_frames < sound.samplerate else sound.frames


def _mixed(piece: _Samples, channels: int) -> _Samples:
    return np.repeat(piece.mean(axis=1, keepdims=True), channels, axis=1)


def _resampled(pieces: Iterator[_Samples], up: int, down: int, halo: int) -> Iterator[_Samples]:
    """What scipy's resample_poly makes of all pieces together; `halo`: samples that the filter reaches."""
    if up == down:
        yield from pieces
        return
    half = _ZERO_CROSSINGS * max(up, down)
    low_pass = firwin(2 * half + 1, 1 / max(up, down), window=("kaiser", _KAISER)).astype(np.float32)
    piece = next(pieces, None)
    before = None
    while piece is not None:
        after = next(pieces, None)
        left = piece[:0] if before is None else before[-halo:]
        right = piece[:0] if after is None else after[:halo]
        found = resample_poly(np.concatenate([left, piece, right]), up, down, window=low_pass)
        skipped = len(left) * up // down
        yield found[skipped : skipped - (-len(piece) * up // down)]
        before, piece = piece, after
