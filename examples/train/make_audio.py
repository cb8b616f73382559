"""Write the audio that train.py learns from: melodies of eight tones, whose names are the words.

    python examples/train/make_audio.py data/audio_0 data/audio_1

One second at 16 kHz each, named by its tones: 31407265_12.wav. The same files every time.
"""

import math
import random
import struct
import sys
import wave
from pathlib import Path

RATE = 16_000
N_TONES = 8  # in a melody, and to choose from
N_FILES = 32  # in each folder


def main() -> None:
    """Fill each folder that is named."""
    rng = random.Random(0)  # noqa: S311
    for folder in map(Path, sys.argv[1:]):
        folder.mkdir(parents=True, exist_ok=True)
        for number in range(N_FILES):
            tones = [rng.randrange(N_TONES) for _ in range(N_TONES)]
            write(folder / f"{''.join(map(str, tones))}_{number}.wav", tones)


def write(path: Path, tones: list[int]) -> None:
    """One melody: each tone an eighth of a second, in whole tones above 220 Hz."""
    length = RATE // N_TONES
    samples = [
        int(8000 * math.sin(2 * math.pi * 220 * 2 ** (tone / 6) * i / RATE))
        for tone in tones
        for i in range(length)
    ]
    with wave.open(str(path), "wb") as file:
        file.setnchannels(1)
        file.setsampwidth(2)
        file.setframerate(RATE)
        file.writeframes(struct.pack(f"<{len(samples)}h", *samples))


if __name__ == "__main__":
    main()
