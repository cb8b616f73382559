"""What the songs of a list continue: another line, a finished song of the output, or an audio file.

Fills in each job's `continues` or `continued_file`, on which its name depends.
"""

import functools
import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from worker.errors import BadInput
from worker.songs import audio_file
from worker.songs.job import Job

_STEM = re.compile(r"[A-Za-z0-9_.-]+_[0-9a-f]{8}")


def _named(job: Job) -> str:
    """The line's name that a job may continue."""
    return job.options.get("continue", "").removesuffix(".wav")


def resolve(jobs: Sequence[Job], folder: Path) -> tuple[list[Job], list[tuple[int, str]]]:
    """The jobs, each with what it continues; and what is wrong with whose line.

    `folder`: where the paths of audio files start.
    """
    by_name = {job.name: job for job in jobs}
    known: dict[str, Job | None] = {}  # None: wrong, or it continues itself
    problems: list[tuple[int, str]] = []
    look = functools.cache(audio_file.look)  # a file may begin many songs

    def found(job: Job) -> Job:
        """Raises BadInput."""
        written = job.options.get("continue")
        if written is None:
            return job
        name = _named(job)
        as_song = {**job.options, "continue": name}
        if name in by_name:
            before = once(by_name[name])
            if before is None:
                raise BadInput(
                    f"continue={name} leads to a song that cannot be made, or back to this one; "
                    f"correct line {by_name[name].line}"
                )
            if job.seconds <= before.seconds:
                raise BadInput(f"SECONDS must be over the {before.seconds:g} s of {name}, which it continues")
            return replace(job, options=as_song, continues=before.stem)
        if _STEM.fullmatch(name):
            return replace(job, options=as_song, continues=name)
        if audio_file.is_named_by(written):
            path = audio_file.below(written)
            file = look(folder / path)
            if file.seconds is not None:
                audio_file.used_s(file.seconds, job.seconds)
            return replace(job, options={**job.options, "continue": path}, continued_file=file)
        raise BadInput(
            f"continue={written}: no line of this list has that name; write a line's NAME, "
            f"the NAME_HASH of a finished song, or a file ({', '.join(audio_file.SUFFIXES)})"
        )

    def once(job: Job) -> Job | None:
        chain = {job.name: job}  # one after the other, not by recursion: a chain may have thousands of songs
        while job.name not in known and (job := by_name.get(_named(job), job)).name not in chain:
            chain[job.name] = job
        for each in reversed(chain.values()):
            if each.name not in known:
                known[each.name] = None
                try:
                    known[each.name] = found(each)
                except BadInput as error:
                    problems.append((each.line, str(error)))
        return known[next(iter(chain))]

    resolved = [once(job) for job in jobs]
    return [job for job in resolved if job], sorted(problems)
