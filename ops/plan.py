"""Which songs of a prompts file are done and which are to make, before anything is started.

Reads the list and the output; starts, writes and prints nothing.
"""

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ops import models, speed
from ops.settings import Settings, child_env
from worker.amounts import count, duration, size, usd
from worker.songs import families, jobs, lyrics, maker, records
from worker.songs.job import Job
from worker.store.open import open_store

TO_MAKE = "to make"
_SAMPLE_BYTES = 2
# MusicGen's text encoder was trained on 512 tokens; an English text has a token for some four bytes.
_TRAINED_TOKENS, _BYTES_PER_TOKEN = 512, 4


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
    family = families.of(model)
    listed = jobs.load(prompts, family)
    chosen = jobs.select(listed, only)
    models.refuse_unsupported(model, child_env())
    name = maker.model_name(model)  # a misspelt one was taken for a MusicGen's, which cannot sing
    families.refuse_unfit(chosen, family)
    store = open_store(output)
    found = records.survey(store, listed)
    maker.refuse_other_model(found.makers, name, store.location)

    def state(job: Job) -> str:
        if job.song in found.kept:
            return f"kept: {found.kept[job.song]}"
        return "done" if job.song in found.records else TO_MAKE

    return [PlannedSong(job.song, job.seconds, job.seed, state(job), job.prompt) for job in chosen]


def advice(prompts: Path, model: str, only: Sequence[str] = ()) -> list[str]:
    """What the model will make less well than it could of the chosen songs. Raises BadInput."""
    family = families.of(model)
    return lyrics.advice(jobs.select(jobs.load(prompts, family), only), family)


def closing_line(songs: Sequence[PlannedSong], output: str) -> str:
    """`3 of 5 songs to make, 4 min 15 s of audio, into out/songs`."""
    to_make = [song for song in songs if song.state == TO_MAKE]
    done = sum(song.state == "done" for song in songs)
    length = duration(sum(song.duration_s for song in to_make))
    n = f"{len(to_make)} of {count(len(songs), 'song')}"
    return f"{n} to make, {length} of audio, into {output}; {done} done already"


def what_it_takes(songs: Sequence[PlannedSong], model: str, output: str, settings: Settings) -> list[str]:
    """Lines on the model, and what the songs to make take of disk, time and money; none if there are none."""
    seconds = sum(song.duration_s for song in songs if song.state == TO_MAKE)
    if not seconds:
        return []
    family = families.of(model)
    channels = 2 if "stereo" in model else family.channels
    n_bytes = seconds * family.sample_rate * channels * _SAMPLE_BYTES
    disk = f"{size(n_bytes)} of WAV files"
    if "://" not in output:
        free = _free_bytes(Path(output).expanduser())
        disk += f"; {size(free)} are free there" + ("; free some space first" if free < n_bytes else "")
    found = speed.of(model, open_store(output))
    hourly, price = settings.hourly_cost_usd, "HOURLY_COST_USD"
    if hourly is None:
        hourly, price = settings.max_price_usd, "MUSICGEN_MAX_PRICE"
    took_s = seconds / found.rate
    cost = f"{usd(took_s / 3600 * hourly)} at {usd(hourly)} an hour ({price})"
    per_second = f"{found.rate:.2g} s of music per second ({found.basis})"
    return [
        models.described(model, child_env()),
        *models.needs_lines(model, child_env()),
        disk,
        f"about {duration(took_s)}, {cost}; without loading; at {per_second}",
        *(_long_prompts(songs) if family is families.MUSICGEN else []),
    ]


def _long_prompts(songs: Sequence[PlannedSong]) -> list[str]:
    most = _TRAINED_TOKENS * _BYTES_PER_TOKEN
    long = [song.song for song in songs if song.state == TO_MAKE and len(song.prompt.encode()) > most]
    if not long:
        return []
    named = ", ".join(long[:3]) + (", ..." if len(long) > 3 else "")
    return [
        f"warning: {count(len(long), 'prompt')} of more than some {_TRAINED_TOKENS} tokens ({named}), "
        "on which MusicGen was not trained; shorten them"
    ]


def _free_bytes(folder: Path) -> int:
    """On the disk of a folder that may not be there yet."""
    folder = folder.absolute()
    there = next(path for path in (folder, *folder.parents) if path.exists())
    return shutil.disk_usage(there).free
