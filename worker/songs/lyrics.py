"""The words of a song, for a model that sings: a text file with section marks like [verse].

What is wrong with them is found before a machine is rented, so without the model's tokenizer: a token is at
least one byte of the text, which bounds how many there can be. Where that bound leaves it open, the worker
counts when the song begins.
"""

import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from worker.amounts import count
from worker.errors import BadInput
from worker.family import Family
from worker.songs.job import Job

# What HeartMuLa gets of a song without lyrics: it cannot do without any.
INSTRUMENTAL = "[intro]\n[verse]\n[chorus]\n[outro]\n"

# HeartMuLa's: a song's prompt and all frames but the last.
_POSITIONS, _FRAMES_PER_S = 8192, 12.5
# Tags and lyrics each begin and end with a token of their own, and one position stands for reference audio.
_AROUND, _MARKS = 5, len("<tag></tag>")
# No language's text has so many bytes to a token on average; English has about four.
_MOST_BYTES = 8
# A tag is a word or a few.
_TAG_WORDS = 4


@dataclass(frozen=True)
class Lyrics:
    """A file's text, and the digest of its content as it is stored."""

    text: str
    sha256: str


def beside(name: str) -> str:
    """Where the lyrics of a song of this NAME are looked for, relative to the list."""
    return f"lyrics/{name}.txt"


def is_there(path: Path) -> bool:
    """True if there is anything at this path, even what cannot be read: `read` then says why."""
    try:
        path.lstat()
    except (FileNotFoundError, NotADirectoryError):
        return False
    except OSError:
        return True
    return True


def read(path: Path) -> Lyrics:
    """The lyrics in a file. Raises BadInput, as a line without the list's name in front."""
    try:
        content = path.read_bytes()
        text = content.decode("utf-8-sig")
    except FileNotFoundError:
        raise BadInput(f"no lyrics file at {path}; check the path") from None
    except OSError as error:
        raise BadInput(f"cannot read {path} ({error.strerror}); check the path and its permissions") from None
    except UnicodeDecodeError:
        raise BadInput(f"the lyrics in {path} are not UTF-8; save the file with UTF-8 encoding") from None
    if not text.strip():
        raise BadInput(f"the lyrics file {path} is empty; write the words, or at least marks like [verse]")
    if "\0" in text:
        raise BadInput(f"{path} is not a text; save the lyrics as plain text")
    return Lyrics(text.replace("\r\n", "\n").replace("\r", "\n"), hashlib.sha256(content).hexdigest())


def too_long(prompt: str, text: str, seconds: float) -> str:
    """What is wrong if tags, lyrics and frames can never fit the model; empty if they may."""
    n_bytes, room = _n_bytes(prompt, text), _room(seconds)
    over = math.ceil(n_bytes / _MOST_BYTES) + _AROUND - room
    if over <= 0:
        return ""
    return (
        f"tags and lyrics of {n_bytes:,} bytes do not fit: {seconds:g} s leave {max(room, 0):,} of "
        f"HeartMuLa's {_POSITIONS:,} positions, at least {over:,} too few; shorten them or SECONDS"
    )


def advice(jobs: Sequence[Job], family: Family) -> list[str]:
    """What the family will make less well than it could of these songs: a line for each kind."""
    if not family.sings:
        return []
    unsung = [job.name for job in jobs if job.lyrics_sha256 is None]
    sentences = [job.name for job in jobs if not _is_tags(job.prompt)]
    unsure = [
        job.name
        for job in jobs
        if _n_bytes(job.prompt, job.lyrics_text) + _AROUND > _room(job.seconds)
        and not too_long(job.prompt, job.lyrics_text, job.seconds)
    ]
    marks = f"{family.name} is weak at instrumentals, and gets only section marks; write {beside('NAME')}"
    tags = f"{family.name} wants tags separated by commas, like: piano, happy, female vocal"
    fit = (
        f"by their bytes they may not fit the {_POSITIONS:,} positions beside SECONDS; the worker counts "
        "with the model's tokenizer, and a song that does not fit fails alone"
    )
    lines = [
        (unsung, "without lyrics", marks),
        (sentences, "with a sentence as PROMPT", tags),
        (unsure, "with long lyrics", fit),
    ]
    return [f"{_named(names)} {what}: {text}" for names, what, text in lines if names]


def _n_bytes(prompt: str, text: str) -> int:
    """Of both texts as the model gets them: in lower case, the tags between their marks."""
    return len(prompt.lower().encode()) + _MARKS + len(text.lower().encode())


def _room(seconds: float) -> int:
    """Positions that are left for the prompt of a song of this length."""
    return _POSITIONS - math.ceil(round(seconds * _FRAMES_PER_S, 6)) + 1


def _is_tags(prompt: str) -> bool:
    return all(len(tag.split()) <= _TAG_WORDS for tag in prompt.split(","))


def _named(names: Sequence[str]) -> str:
    return f"{count(len(names), 'song')} ({', '.join(names[:3])}{', ...' * (len(names) > 3)})"
