"""Which songs of a prompts file are done and which are to make, before anything is started.

Reads the list and the output; starts, writes and prints nothing.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from worker.amounts import count, duration, size
from worker.songs import jobs, maker, records
from worker.songs.jobs import Job
from worker.store.open import open_store

TO_MAKE = "to make"
# Seconds of music per second: other people's figures for one T4. A run with the same output replaces it.
ASSUMED_RATE = 1.5
_BYTES_PER_S = 64_000  # of a WAV file: 32,000 samples of 16 bits


@dataclass(frozen=True)
class PlannedSong:
    """One line of the plan. `state`: to make, done, or kept with the reason."""

    song: str
    duration_s: float
    seed: int
    state: str
    prompt: str


def plan_songs(prompts: Path, output: str, model: str, only: Sequence[str] = ()) -> list[PlannedSong]:
    """The chosen songs of a list, each with its state.

    Raises BadInput for a wrong list or output, UserError when the output cannot be reached.
    """
    listed = jobs.load(prompts)
    chosen = jobs.select(listed, only)
    jobs.refuse_lyrics(chosen)
    store = open_store(output)
    found = records.survey(store, listed)
    maker.refuse_other_model(found.makers, maker.model_name(model), store.location)

    def state(job: Job) -> str:
        if job.song in found.kept:
            return f"kept: {found.kept[job.song]}"
        return "done" if job.song in found.records else TO_MAKE

    return [PlannedSong(job.song, job.seconds, job.seed, state(job), job.prompt) for job in chosen]


def closing_line(songs: Sequence[PlannedSong], output: str) -> str:
    """`3 of 5 songs to make, 4 min 15 s of audio, into out/songs`."""
    to_make = [song for song in songs if song.state == TO_MAKE]
    done = sum(song.state == "done" for song in songs)
    length = duration(sum(song.duration_s for song in to_make))
    n = f"{len(to_make)} of {count(len(songs), 'song')}"
    return f"{n} to make, {length} of audio, into {output}; {done} done already"


def what_it_takes(songs: Sequence[PlannedSong], model: str) -> str:
    """The model, and what the songs to make take of time and disk; empty if there are none."""
    seconds = sum(song.duration_s for song in songs if song.state == TO_MAKE)
    if not seconds:
        return ""
    return (
        f"model {model}; about {duration(seconds / ASSUMED_RATE)} on one T4 (assumed, {ASSUMED_RATE:g} s of "
        f"music per second; without a GPU far longer); {size(seconds * _BYTES_PER_S)} of WAV files"
    )
