"""A song as overlapping windows, and a window as columns of the delay pattern. Does not need torch.

MusicGen sees at most 30 s. A longer song is continued in windows that carry the last tokens over
(audiocraft, MusicGen._generate_tokens): each window starts `stride` frames after the one before.

Inside a window, codebook k of frame f is in column 1 + k + f (the delay pattern; Copet et
al. 2023, figure 1); with two channels, whose codebooks alternate, in column 1 + k // 2 + f.
Column 0 and the corners hold the special token:

    column        0  1  2  3  4  5  6
    codebook 0    S  a0 a1 a2 S  S  S
    codebook 1    S  S  b0 b1 b2 S  S
    codebook 2    S  S  S  c0 c1 c2 S
    codebook 3    S  S  S  S  d0 d1 d2
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from worker.engine import TO_GENERATE

WINDOW_S = 30.0
STRIDE_S = 18.0


@dataclass(frozen=True)
class Window:
    """Frames [start, start + length) of a song; the first `carried` ones come from the window before."""

    start: int
    carried: int
    length: int

    @property
    def end(self) -> int:
        return self.start + self.length


def plan(n_frames: int, window: int, stride: int) -> list[Window]:
    """The windows of a song of `n_frames`, in order. Each frame is generated exactly once."""
    if not 0 < stride < window:
        raise ValueError(f"stride {stride} must be between 1 and the window of {window} frames less one")
    windows = [Window(0, 0, min(n_frames, window))]
    while windows[-1].end < n_frames:
        start = windows[-1].start + stride
        windows.append(Window(start, windows[-1].end - start, min(n_frames - start, window)))
    return windows


def n_columns(length: int, n_codebooks: int, channels: int = 1) -> int:
    """Columns of a window of `length` frames, column 0 included."""
    return length + n_codebooks // channels


def unmade(n_codebooks: int, n_frames: int) -> NDArray[np.int16]:
    """The tokens of a song that has not begun: [n_codebooks, n_frames] of TO_GENERATE."""
    return np.full((n_codebooks, n_frames), TO_GENERATE, np.int16)


def delayed(tokens: NDArray[np.int16], window: Window, special: int, channels: int = 1) -> NDArray[np.int64]:
    """The window's columns: tokens, TO_GENERATE for a missing token, and the special token elsewhere.

    tokens [n_codebooks, n_frames] -> [n_codebooks, n_columns]
    """
    size = len(tokens), n_columns(window.length, len(tokens), channels)
    columns = np.full(size, special, np.int64)
    for k, row in enumerate(tokens):
        columns[k, _place(k, window.length, channels)] = row[window.start : window.end]
    return columns


def undelayed(columns: NDArray[np.int64], window: Window, channels: int = 1) -> NDArray[np.int16]:
    """The window's frames: [n_codebooks, n_columns] -> [n_codebooks, length]."""
    rows = [row[_place(k, window.length, channels)] for k, row in enumerate(columns)]
    return np.stack(rows).astype(np.int16)


def _place(codebook: int, length: int, channels: int) -> slice:
    """The columns of a codebook's tokens."""
    first = 1 + codebook // channels
    return slice(first, first + length)


def first_unmade(columns: NDArray[np.int64]) -> int:
    """The first column with a token to generate; n_columns if there is none."""
    unmade_columns = np.flatnonzero((columns == TO_GENERATE).any(axis=0))
    return int(unmade_columns[0]) if len(unmade_columns) else columns.shape[1]


def in_columns(by_frame: NDArray[np.float32], window: Window, channels: int = 1) -> NDArray[np.float32]:
    """Move values by frame and codebook to the columns of their tokens: [length, K] -> [n_columns, K]."""
    length, n_codebooks = by_frame.shape
    columns = np.zeros((n_columns(window.length, n_codebooks, channels), n_codebooks), np.float32)
    for k in range(n_codebooks):
        columns[_place(k, length, channels), k] = by_frame[:, k]
    return columns
