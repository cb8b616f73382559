"""The prompts file (prompts.txt): parse it, check it, name its songs.

    # PROMPT ; SECONDS ; NAME [; key=value ...]
    cinematic trailer music with epic drums ; 180 ; cinema

Fields are taken from the right, so a prompt may contain `;`. A spreadsheet's table is a list, too
(table.py). All errors of a file are raised together, 100 at most. Of the model only its family matters:
one that sings finds lyrics beside the list. Does not depend on stores or machines.
"""

import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

from worker.errors import BadInput
from worker.family import Family
from worker.songs import continued, durations, lyrics, table
from worker.songs.families import MUSICGEN
from worker.songs.job import Job
from worker.songs.lyrics import Lyrics

MIN_SECONDS = 1.0
MAX_SECONDS = 3600.0
MAX_NAME = 100
MAX_SEED = 2**63 - 1

_NUMBER = re.compile(r"[+-]?([0-9]+(\.[0-9]*)?|\.[0-9]+)([eE][+-]?[0-9]+)?|[+-]?(nan|inf(inity)?)", re.I)
_SECONDS = re.compile(r"[0-9]+(\.[0-9]{1,2})?")
_NAME = re.compile(rf"[A-Za-z0-9_.-]{{1,{MAX_NAME}}}")
_OPTION = re.compile(r"([A-Za-z_][A-Za-z0-9_]*)\s*=\s*(.*)", re.S)
_SEED = re.compile(r"[0-9]{1,19}")
_OTHER_AUDIO = re.compile(r"\.(mp3|flac|ogg|opus|m4a|aac|aiff?|wma)$", re.I)
# What people and spreadsheets write instead of `;`.
_SEPARATORS = {"\t": "tabs", "\uff1b": "the full-width `\uff1b`", ",": "commas", "|": "`|`"}
# So many mistakes are counted at a glance, and so many fit into what a terminal keeps.
_UNCOUNTED, _SHOWN = 10, 100


class BadPrompts(BadInput):
    """The errors of one prompts file, one per line: `FILE:LINE: what; how to fix`. At most 100 are shown."""

    def __init__(self, problems: list[str]):
        super().__init__("\n".join(problems))
        self.problems = problems


def load(path: Path, family: Family = MUSICGEN) -> list[Job]:
    """Read and parse a prompts file. Raises BadInput if unreadable, BadPrompts if wrong."""
    path = path.expanduser()
    return parse(read_bytes(path, "prompts file"), str(path), path.parent, family)


def read_bytes(path: Path, what: str) -> bytes:
    """The file's content. Raises BadInput if it cannot be read."""
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise BadInput(f"no {what} at {path}; check the path") from None
    except OSError as error:
        raise BadInput(f"cannot read {path} ({error.strerror}); check the path and its permissions") from None


def parse(
    content: bytes, filename: str = "prompts.txt", folder: Path = Path(), family: Family = MUSICGEN
) -> list[Job]:
    """Jobs of a prompts file in file order. Raises BadPrompts with every error at once.

    `folder`: where the paths of `lyrics=` and `continue=` start.
    """
    text = _text_of(content, filename).replace("\r\n", "\n")
    jobs: list[Job] = []
    problems: list[str] = []
    first_line: dict[str, int] = {}
    for number, (job, wrong) in _entries(text, folder):
        if job.name and (first := first_line.setdefault(job.name, number)) != number:
            wrong.append(f"NAME {job.name!r} is already used in line {first}; give each song its own name")
        if not wrong:
            job, wrong = _of_family(job, family, folder)
        problems += [f"{filename}:{number}: {what}" for what in wrong]
        if not wrong:
            jobs.append(job)
    jobs, unresolved = continued.resolve(jobs, folder)
    problems += [f"{filename}:{number}: {what}" for number, what in unresolved]
    if not jobs and not problems:
        problems = [f"{filename}:1: no songs; add a line like `calm piano ; 30 ; my_song`"]
    if len(problems) > _UNCOUNTED:
        n_lines = text.count("\n") + (not text.endswith("\n"))
        total = f"{filename}: {len(problems):,} mistakes in {n_lines:,} lines"
        shown = f", of which the first {_SHOWN} are shown" if len(problems) > _SHOWN else ""
        problems = [*problems[:_SHOWN], f"{total}{shown}; correct them"]
    if problems:
        raise BadPrompts(problems)
    return jobs


def _text_of(content: bytes, filename: str) -> str:
    how = "save the file with UTF-8 encoding (Notepad: Save as, Encoding; Excel: CSV UTF-8)"
    if content.startswith((b"\xff\xfe", b"\xfe\xff")) or b"\0" in content[:2]:
        raise BadPrompts([f"{filename}:1: UTF-16, which Windows calls Unicode; {how}"])
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        number = content[: error.start].count(b"\n") + 1
        raise BadPrompts([f"{filename}:{number}: not UTF-8, perhaps Latin-1; {how}"]) from None


def _entries(text: str, folder: Path) -> Iterator[tuple[int, tuple[Job, list[str]]]]:
    """Every line or row with its number; what it asks for, and what is wrong with it."""
    if (rows := table.rows(text)) is not None:
        for row in rows:
            parsed = _parse_line(row.text, row.line, folder) if row.text else _parse_row(row, folder)
            yield row.line, parsed
        return
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip() and not table.is_comment(line):
            yield number, _parse_line(line, number, folder)


def select(jobs: list[Job], only: Iterable[str]) -> list[Job]:
    """The jobs with these names (`NAME` or `NAME_HASH[.wav]`), in file order; all jobs without names."""
    wanted = [name.removesuffix(".wav") for name in only]
    unknown = [name for name in wanted if not any(name in (job.name, job.stem) for job in jobs)]
    if unknown:
        known = ", ".join(job.name for job in jobs[:8]) + (", ..." if len(jobs) > 8 else "")
        named = ", ".join(name or "''" for name in unknown)
        raise BadInput(f"no song named {named} in the prompts file; it has {known}")
    return [job for job in jobs if not wanted or job.name in wanted or job.stem in wanted]


def _parse_line(line: str, number: int, folder: Path) -> tuple[Job, list[str]]:
    """The job of one line and all errors in it; a wrong field is empty in the job."""
    if control := _control_characters(line):
        return Job("", 0.0, ""), control
    head = line.rstrip()
    rest = head.removesuffix(";").rstrip()
    if rest != head and not rest.endswith(";") and not _parse_line(rest, number, folder)[1]:
        # With a mistake in the rest, it is rather the name that is missing.
        return Job("", 0.0, ""), ["a `;` at the end; remove it"]
    options: list[tuple[str, str]] = []
    while ";" in head and (match := _OPTION.fullmatch(head.rpartition(";")[2].strip())):
        options.insert(0, (match[1], match[2]))
        head = head.rpartition(";")[0]
    fields = [part.strip() for part in head.rsplit(";", 2)]
    if any(field.startswith('"') for field in fields) and fields[-1].endswith('"'):
        return Job("", 0.0, ""), ["in quotation marks, as a spreadsheet writes it; remove them"]
    if len(fields) < 3:
        return Job("", 0.0, ""), [_too_few(line, len(fields))]
    return _job(fields, options, number, folder)


def _parse_row(row: table.Row, folder: Path) -> tuple[Job, list[str]]:
    """As `_parse_line`, for a row of a table."""
    wrong = [row.wrong] if row.wrong else _control_characters("".join(row.cells.values()))
    if wrong:
        return Job("", 0.0, ""), wrong
    options = [(name, row.cells[name]) for name in table.OPTIONS if row.cells.get(name)]
    return _job([row.cells[name] for name in table.NEEDED], options, row.line, folder)


def _control_characters(text: str) -> list[str]:
    found = sorted({c for c in text if unicodedata.category(c) == "Cc" and c != "\t"})
    if found == ["\n"]:
        return ["the prompt has several lines; write it in one"]
    return [f"control character {', '.join(f'U+{ord(c):04X}' for c in found)}; remove it"] if found else []


def _too_few(line: str, n_fields: int) -> str:
    for separator, shown in _SEPARATORS.items():
        fields = line.replace(separator, ";").rsplit(";", 2)
        if len(fields) == 3 and not _parse_seconds(fields[1].strip())[1]:
            told = f"separated by {shown}; write ` ; ` instead"
            heading = ", or a first line with the columns' names: prompt, seconds, name"
            return told + heading * (separator in table.SEPARATORS)
    return f"{n_fields} of 3 fields; write PROMPT ; SECONDS ; NAME"


def _job(
    fields: Sequence[str], options: list[tuple[str, str]], number: int, folder: Path
) -> tuple[Job, list[str]]:
    """The job of prompt, seconds and name as they are written, and what is wrong with them."""
    prompt, seconds_text, name_text = fields
    wrong = [] if prompt else ["the prompt is empty; describe the music before the first `;`"]
    seconds, seconds_wrong = _parse_seconds(seconds_text)
    name, name_wrong = _parse_name(name_text)
    checked, words, options_wrong = _parse_options(options, folder)
    wrong += seconds_wrong + name_wrong + options_wrong
    return _sung(Job(prompt, seconds, name, checked, line=number), words), wrong


def _sung(job: Job, words: Lyrics | None) -> Job:
    return replace(job, lyrics_sha256=words.sha256, lyrics_text=words.text) if words else job


def _of_family(job: Job, family: Family, folder: Path) -> tuple[Job, list[str]]:
    """The job as a model of this family makes it, and what of it none can."""
    if job.seconds > family.longest_s:
        return job, [
            f"{job.seconds:g} s is over the {family.longest_s:g} s of {family.name}; shorten SECONDS"
        ]
    if not family.sings:
        return job, []
    found = lyrics.beside(job.name)
    if job.lyrics_sha256 is None and lyrics.is_there(folder / found):
        try:
            job = _sung(replace(job, options={**job.options, "lyrics": found}), lyrics.read(folder / found))
        except BadInput as error:
            return job, [str(error)]
    if job.lyrics_sha256 is None:
        job = replace(job, lyrics_text=lyrics.INSTRUMENTAL)
    wrong = lyrics.too_long(job.prompt, job.lyrics_text, job.seconds)
    return job, [wrong] if wrong else []


def _parse_seconds(text: str) -> tuple[float, list[str]]:
    plain = bool(_NUMBER.fullmatch(text))
    written = None if plain else durations.in_seconds(text)
    if not plain and written is None:
        heading = "; put # before a heading" if text.isalpha() else ""
        return 0.0, [f"SECONDS {text!r} is not a duration; write it like 30, 12.5, 3:00 or 2 min{heading}"]
    seconds = float(text if written is None else written)
    if not MIN_SECONDS <= seconds <= MAX_SECONDS:  # also true of NaN
        shown = text if plain else f"{seconds:g}"
        return 0.0, [f"{shown} s is not between 1 and 3600; change SECONDS or split the song"]
    if not _SECONDS.fullmatch(text if written is None else f"{written.normalize():f}"):
        return 0.0, [f"SECONDS {text!r} is not plain with at most two decimals; write it like 30 or 12.25"]
    return seconds, []


def _parse_name(text: str) -> tuple[str, list[str]]:
    name = text[:-4] if text.lower().endswith(".wav") else text
    if not name:
        return "", ["NAME is empty; add a file name after SECONDS"]
    if len(name) > MAX_NAME:
        return "", [f"NAME has {len(name)} characters; use at most {MAX_NAME}"]
    if other := _OTHER_AUDIO.search(name):
        return "", [f"NAME {name!r}: songs are WAV files; leave {other[0]} out"]
    if not _NAME.fullmatch(name):
        bad = ", ".join(sorted({repr(c) for c in name if not _NAME.fullmatch(c)}))
        return "", [f"NAME {name!r} contains {bad}; use only A-Z a-z 0-9 - _ ."]
    return name, []


def _parse_options(
    pairs: list[tuple[str, str]], folder: Path
) -> tuple[dict[str, str], Lyrics | None, list[str]]:
    options: dict[str, str] = {}
    words = None
    wrong: list[str] = []
    for key, value in pairs:
        if key in options:
            wrong.append(f"{key}= is given twice; keep one")
        elif key == "seed":
            if _SEED.fullmatch(value) and int(value) <= MAX_SEED:
                options[key] = str(int(value))
            else:
                wrong.append(f"seed={value} is not a whole number from 0 to {MAX_SEED}; correct it")
        elif key == "continue":
            options[key] = value  # judged when all names are known
        elif key == "lyrics" and not value:
            wrong.append("lyrics= names no file; write its path, or leave the field out")
        elif key == "lyrics":
            try:
                words = lyrics.read(folder / value)
                options[key] = value
            except BadInput as error:
                wrong.append(str(error))
        else:
            wrong.append(f"unknown field {key}=; known are seed=, lyrics=, continue=")
    return options, words, wrong
