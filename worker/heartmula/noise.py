"""The noise that flow matching turns into a song: a function of the song's seed and the segment alone.

So a song sounds the same wherever, whenever and beside whichever others it is decoded. Drawn on the CPU in
double precision and rounded to float32: between two machines' logarithms and cosines, about one number in
10^8 differs, in its last bit.
"""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

Noise = Callable[[int], NDArray[np.float32]]  # of a segment: [n_latents, width]

# Philox's key has 128 bits, and a song's tokens are drawn with its seed, of 63 bits, as the key. A key with
# the 65th bit set makes other numbers.
_OF_CODEC = 1 << 64
# Its counter has 256 bits: no segment is as long as the distance between two.
_SEGMENT = 1 << 64


def noise_of(seed: int, shape: tuple[int, int]) -> Noise:
    """Normal draws for each segment of a song: every call with the same segment gives the same."""

    def of_segment(segment: int) -> NDArray[np.float32]:
        return _normal(np.random.Philox(key=_OF_CODEC | seed, counter=segment * _SEGMENT), shape)

    return of_segment


def _normal(philox: np.random.Philox, shape: tuple[int, int]) -> NDArray[np.float32]:
    """Box & Muller (1958) over raw words, which numpy promises never to change, unlike its distributions."""
    n = shape[0] * shape[1]
    pairs = -(-n // 2)
    uniform = (philox.random_raw(2 * pairs) >> np.uint64(11)).astype(np.float64) * 2.0**-53
    radius = np.sqrt(-2 * np.log(1 - uniform[:pairs]))  # 1 - u is over 0
    angle = 2 * np.pi * uniform[pairs:]
    both = np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])
    return both[:n].reshape(shape).astype(np.float32)
