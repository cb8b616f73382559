"""One requested song, and its name, which depends on all that was asked."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field

from worker.songs.audio_file import AudioFile

# Separates the hashed fields. No field can contain it: control characters are refused.
UNIT_SEPARATOR = "\x1f"


@dataclass(frozen=True)
class Job:
    """One requested song.

    `options` are the optional `key=value` fields. `lyrics` is a path relative to the prompts file;
    `lyrics_sha256` is the digest of that file's content, on which the song's name depends, and
    `lyrics_text` what is sung (lyrics.py). `continues` is the NAME_HASH of the song that `continue`
    names, `continued_file` the audio file.
    """

    prompt: str
    seconds: float
    name: str
    options: Mapping[str, str] = field(default_factory=dict)
    lyrics_sha256: str | None = None
    continues: str | None = None
    continued_file: AudioFile | None = None
    lyrics_text: str = field(default="", repr=False)
    line: int = field(default=0, compare=False)

    @property
    def hash8(self) -> str:
        """The 8 hex digits in the song's name (see `song_hash`)."""
        hashed = dict(self.options)
        if self.lyrics_sha256 is not None:
            hashed["lyrics"] = self.lyrics_sha256
        if self.continues is not None:
            hashed["continue"] = self.continues
        if self.continued_file is not None:
            hashed["continue"] = self.continued_file.sha256
        return song_hash(self.prompt, self.seconds, self.name, hashed)

    @property
    def stem(self) -> str:
        """`NAME_HASH`: the song's name in the keys of the store."""
        return f"{self.name}_{self.hash8}"

    @property
    def song(self) -> str:
        """`NAME_HASH.wav`."""
        return f"{self.stem}.wav"

    @property
    def seed(self) -> int:
        """The seed of the song's random draws: `seed=` if given, else the hash in its name."""
        return int(self.options["seed"]) if "seed" in self.options else int(self.hash8, 16)


def song_hash(prompt: str, seconds: float, name: str, options: Mapping[str, str]) -> str:
    """8 hex digits of SHA-256 over the fields of a song. A golden test keeps it from changing."""
    fields = [prompt, f"{seconds:g}", name, *(f"{key}={options[key]}" for key in sorted(options))]
    return hashlib.sha256(UNIT_SEPARATOR.join(fields).encode()).hexdigest()[:8]
