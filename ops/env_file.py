"""The file `.env`: found, read, and filled in with what it lacks.

A value that is there is never changed, and every other line stays as it is.
"""

import re
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from pathlib import Path

from dotenv.parser import parse_stream

from worker.errors import BadInput
from worker.songs import jobs
from worker.store.files import disk_errors, put_in_place

ENV_FILE = Path(".env")

_BOM = "\ufeff"
_PLAIN = re.compile(r"[A-Za-z0-9_./:@%+,=-]+")
# An assignment up to its value, and the value if it is empty or only blank between quotes.
_EMPTY = re.compile(r"""([^=]*=)[^\S\r\n]*('\s*'|"\s*")?""")


@dataclass(frozen=True)
class EnvFile:
    """A `.env` file: its values, the line of each name, and the lines that cannot be parsed.

    `changed`: line and name where a name gets another value than it had above.
    """

    values: Mapping[str, str]
    lines: Mapping[str, int]
    broken: Sequence[int]
    changed: Sequence[tuple[int, str]]


def env_file() -> Path:
    """The `.env` of this folder or one above it, up to the folder of tasks.py, as Invoke searches.

    If there is none: where it belongs, beside tasks.py or else in this folder.
    """
    here = Path.cwd()
    above = [here, *here.parents]
    project = next((i for i, folder in enumerate(above) if (folder / "tasks.py").exists()), 0)
    files = [folder / ENV_FILE for folder in above[: project + 1]]
    return next((file for file in files if file.exists()), files[-1])


def label(file: Path) -> str:
    """The file as messages name it: `.env` in this folder, else the whole path."""
    return file.name if file.parent in (Path.cwd(), Path()) else str(file)


def read_env_file(file: Path) -> EnvFile:
    """Names and values of a `.env` file, without interpolation; empty if there is none.

    Raises BadInput if the file cannot be read.
    """
    values: dict[str, str] = {}
    lines: dict[str, int] = {}
    broken: list[int] = []
    changed: list[tuple[int, str]] = []
    for binding in parse_stream(StringIO(_text(file).removeprefix(_BOM))):
        # The parser counts from the blank lines before. The line itself may hold a secret.
        raw = binding.original.string
        line = binding.original.line + raw[: len(raw) - len(raw.lstrip())].count("\n")
        if binding.key is not None and binding.value is not None:
            if values.get(binding.key, binding.value) != binding.value:
                changed.append((line, binding.key))
            values[binding.key] = binding.value
            lines[binding.key] = line
        elif binding.error or binding.key is not None:
            broken.append(line)
    return EnvFile(values, lines, broken, changed)


def lacking(file: Path, wanted: Mapping[str, str]) -> dict[str, str]:
    """Those of the wanted values that the file does not have, or has empty. Raises BadInput."""
    there = read_env_file(file).values
    return {name: value for name, value in wanted.items() if not there.get(name, "").strip()}


def differing(file: Path, wanted: Mapping[str, str]) -> list[str]:
    """A line for each of the wanted names that has another value in the file. Raises BadInput."""
    there = read_env_file(file)
    values = {name: there.values.get(name, "").strip() for name in wanted}
    return [
        f"{label(file)}:{there.lines[name]}: {name} is not {wanted[name]} and is left as it is; "
        "correct it if it is not meant so"
        for name, value in values.items()
        if value and value != wanted[name]
    ]


def assignments(values: Mapping[str, str]) -> list[str]:
    """`NAME=value` for each, as the file has it."""
    return [f"{name}={_quoted(value)}" for name, value in values.items()]


def fill_in(file: Path, wanted: Mapping[str, str]) -> None:
    """Write into the file those of the wanted values that it lacks; only its owner may read it then.

    Whole or not at all. Raises BadInput if the file cannot be read, UserError if it cannot be written.
    """
    text, missing = _text(file), lacking(file, wanted)
    body = text.removeprefix(_BOM)
    bindings = list(parse_stream(StringIO(body)))
    parts = [binding.original.string for binding in bindings]
    empty = {binding.key: n for n, binding in enumerate(bindings) if binding.value is not None}
    line_end = "\r\n" if "\r\n" in text else "\n"
    for name, value in missing.items():
        if name in empty:
            parts[empty[name]] = _filled(parts[empty[name]], value)
            continue
        if parts and not parts[-1].endswith(("\n", "\r")):
            parts.append(line_end)
        parts += [*assignments({name: value}), line_end]
    file = file.resolve()  # where a link leads
    new = file.with_name(f".env.{uuid.uuid4().hex}.part")
    with disk_errors(file), put_in_place(file, new) as out:
        new.chmod(0o600)  # while it is still empty
        out.write((text[: len(text) - len(body)] + "".join(parts)).encode())


def _filled(line: str, value: str) -> str:
    """An assignment without a value, with this value: its comment stays."""
    found = _EMPTY.match(line)
    if found is None:
        raise ValueError(line)
    rest = line[found.end() :]
    return found[1] + _quoted(value) + (" " if rest.startswith("#") else "") + rest


def _quoted(value: str) -> str:
    if _PLAIN.fullmatch(value):
        return value
    return "'" + value.replace("\\", "\\\\").replace("'", "\\'") + "'"


def _text(file: Path) -> str:
    """The file's text with its line ends; empty if there is no file."""
    if not file.exists():
        return ""
    try:
        return jobs.read_bytes(file, "settings file").decode()
    except UnicodeDecodeError:
        raise BadInput(f"{label(file)} is not UTF-8; save it with UTF-8 encoding") from None
