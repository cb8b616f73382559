"""An audio file that a song continues: `continue=demo.mp3`, named by its content.

It lies in the job list's folder or below, so that list and file can move to another machine together.
Does not decode (worker/audio/reading.py does): a file that is damaged further on is not noticed here.
"""

import hashlib
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from worker.errors import BadInput

SUFFIXES = (".wav", ".flac", ".mp3")
# A file that is not shorter than the song gives so many seconds of its end: as much as one window of a
# song hears of the one before.
END_S = 12.0
MIN_S = 1.0

_HEAD_BYTES = 12
# A WAV written to a pipe has no size in its header, but something close to 2 or 4 GB.
_UNKNOWN_BYTES = 0x7FFF_0000


@dataclass(frozen=True)
class AudioFile:
    """`seconds` is None where its length is not known: without soundfile, which only the worker needs."""

    path: Path
    sha256: str
    seconds: float | None


def is_named_by(value: str) -> bool:
    """True if `continue=value` can name an audio file."""
    return value.lower().endswith(SUFFIXES)


def below(value: str) -> str:
    """The path relative to the list's folder, with `/`. Raises BadInput if it leads out of that folder."""
    path = PurePosixPath(value.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in value:
        raise BadInput(f"continue={value} must be a path below the list's folder, without `..` and `:`")
    return path.as_posix()


def look(path: Path) -> AudioFile:
    """The file's digest and length. Raises BadInput, as a line without the file's own name in front."""
    try:
        if not path.is_file():
            raise FileNotFoundError
        with path.open("rb") as file:
            head, n_bytes = file.read(_HEAD_BYTES), path.stat().st_size
            _check(head, n_bytes, path)
            file.seek(0)
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError:
        raise BadInput(f"no audio file at {path}; check the path") from None
    except OSError as error:
        raise BadInput(f"cannot read {path} ({error.strerror}); check the path and its permissions") from None
    seconds = _seconds(path)
    if seconds is not None and seconds < MIN_S:
        raise BadInput(
            f"{path} has {seconds:.2g} s of audio where {MIN_S:g} s is the least; use a longer one"
        )
    return AudioFile(path, digest, seconds)


def used_s(file_s: float, song_s: float) -> float:
    """How many seconds of the file a song begins with: all, or its end if it is not shorter than the song.

    Raises BadInput if the song has no room for anything new.
    """
    if file_s < song_s:
        return file_s
    if song_s <= END_S:
        raise BadInput(
            f"SECONDS must be over {END_S:g}: of a file that is not shorter, here of {file_s:.4g} s, "
            f"the last {END_S:g} s begin the song"
        )
    return END_S


def _check(head: bytes, n_bytes: int, path: Path) -> None:
    """Raises BadInput unless a file that begins so is one of the formats."""
    is_wav = head[:4] in (b"RIFF", b"RF64") and head[8:] == b"WAVE"
    is_mp3 = head[:3] == b"ID3" or (head[:1] == b"\xff" and head[1:2] >= b"\xe0")
    if not (is_wav or is_mp3 or head[:4] == b"fLaC"):
        raise BadInput(f"{path} is not a WAV, FLAC or MP3 file; convert it to one")
    said = 8 + int.from_bytes(head[4:8], "little")
    if head[:4] == b"RIFF" and n_bytes < said < _UNKNOWN_BYTES:
        raise BadInput(f"{path} is cut off: {n_bytes:,} of {said:,} bytes are there; copy it again")


def _seconds(path: Path) -> float | None:
    with suppress(ImportError, OSError):  # OSError: on this system it has no library
        import soundfile

        try:
            found = soundfile.info(path)
        except soundfile.SoundFileError:
            raise BadInput(
                f"{path} is damaged: it cannot be read as audio; copy or convert it again"
            ) from None
        return float(found.frames / found.samplerate)
    return None
