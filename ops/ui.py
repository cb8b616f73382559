"""What the user sees: rows on stdout, notes on stderr, errors as one line.

Works without a terminal, with a closed pipe, and on consoles that cannot show every character.
Nothing else in `ops` prints. Does not decide anything.
"""

import codecs
import functools
import io
import json as jsonlib
import logging
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, is_dataclass
from typing import Any, ParamSpec, TextIO, TypeVar

from invoke.exceptions import Exit

from ops import hints
from worker import amounts
from worker.errors import BadInput, Refused, UserError

P = ParamSpec("P")
R = TypeVar("R")

INTERRUPTED = 75

_warned: set[str] = set()

# At debug level these log requests and answers whole, with the keys and tokens in them.
_TELL_SECRETS = ("botocore", "boto3", "s3transfer", "urllib3", "httpcore", "httpx", "paramiko")

# A block of text may end in the middle of a character.
_characters = codecs.getincrementaldecoder("utf-8")("replace")

# A record may come from a shared bucket: no escape sequences to the terminal, one line per row.
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]+")


def safe_streams() -> None:
    """From now on a character that the console lacks (cp1252) is printed as `?` instead of a traceback."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def quiet_libraries() -> None:
    """From now on `fab -d` and `inv -d` show nothing of what logs secrets."""
    for name in _TELL_SECRETS:
        logging.getLogger(name).setLevel(logging.CRITICAL)
    logging.getLogger("invoke").addFilter(_not_of_configuration)


def _not_of_configuration(record: logging.LogRecord) -> bool:
    """False for what Invoke logs of its configuration, which has the passwords that Fabric asked for."""
    return record.module not in ("config", "env")


def one_line_errors(task: Callable[P, R]) -> Callable[P, R]:
    """Wrap a task's body: a UserError ends it as `error:` lines on stderr and the error's exit code.

    Ctrl-C ends it with one line and 75; a closed pipe (`inv ... | head`) with 1 and no message.
    """

    @functools.wraps(task)  # Invoke reads the task's flags through it
    def body(*args: P.args, **kwargs: P.kwargs) -> R:
        safe_streams()
        try:
            result = task(*args, **kwargs)
            sys.stdout.flush()  # a closed pipe raises here and not at exit
            return result
        except UserError as error:
            raise failure(error) from None
        except KeyboardInterrupt:
            raise Exit("interrupted; run the same command again to resume", INTERRUPTED) from None
        except BrokenPipeError:
            # Python flushes stdout once more at exit, which would raise again.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise Exit(code=1) from None

    return body


def failure(error: UserError) -> Exit:
    """What ends `inv` or `fab` with this error: an `error:` line for each of its own, and its exit code."""
    lines = str(error).splitlines() or [type(error).__name__]
    return Exit(_for_stderr("\n".join(f"error: {line}" for line in lines)), error.code)


def say(text: str) -> None:
    """A note or a line of progress, on stderr: stdout is for data."""
    print(_for_stderr(text), file=sys.stderr, flush=True)


def _for_stderr(text: str) -> str:
    """With commands that can be pasted; on a terminal folded between words."""
    return _folded(hints.pasteable(text), sys.stderr)


def _folded(text: str, stream: TextIO, indent: int = 0) -> str:
    """On a terminal folded between words, further lines indented by so much more; elsewhere unchanged.

    A line that is a command stays whole, so that it can be pasted.
    """
    if not stream.isatty():
        return text
    width = shutil.get_terminal_size().columns
    folded = []
    for line in text.split("\n"):
        if hints.is_command(line):
            folded.append(line)
            continue
        further = " " * (len(line) - len(line.lstrip()) + indent)
        folded += textwrap.wrap(
            line, width, subsequent_indent=further, break_long_words=False, break_on_hyphens=False
        ) or [line]
    return "\n".join(folded)


def warn(text: str) -> None:
    """A warning on stderr, once a process: a command may read its settings in several places."""
    if text not in _warned:
        _warned.add(text)
        say(f"warning: {text}")


def write(text: str, *, fold: bool = False) -> None:
    """Text that the user asked for, such as a log, on stdout: unchanged, or folded for a terminal."""
    text = _folded(text, sys.stdout) if fold else text
    print(text, end="" if text.endswith("\n") else "\n", flush=True)


def pour(block: bytes) -> None:
    """A block of bytes to stdout: unchanged to a file or pipe, decoded to a console."""
    if sys.stdout.isatty():
        sys.stdout.write(_characters.decode(block))
    else:
        sys.stdout.flush()
        sys.stdout.buffer.write(block)
    sys.stdout.flush()


def can_show(text: str) -> bool:
    """True if this console has the characters of the text."""
    try:
        text.encode(sys.stdout.encoding or "ascii")
    except UnicodeEncodeError:
        return False
    return True


def show(
    rows: Sequence[Any], json: bool = False, red: Callable[[Mapping[str, Any]], bool] = lambda record: False
) -> None:
    """Print rows (mappings or dataclasses) as a table, or as a JSON list and nothing else.

    A column's unit is in its name: `_s` is shown as a duration, `_usd` as money; JSON has plain numbers.
    Rows for which `red` is true are red on a terminal.
    """
    records = [dict(row) if isinstance(row, Mapping) else _fields(row) for row in rows]
    if json:
        print(jsonlib.dumps(records, indent=2, default=str))
    elif records:
        _print_table(records, red)
    else:
        say("nothing to show")


def agreed(
    rows: Sequence[Any], question: str, *, yes: bool = False, dry_run: bool = False, json: bool = False
) -> bool:
    """Show a plan and ask whether to carry it out; False for a dry run.

    Raises Refused for a no, and without a terminal unless `yes` is set.
    """
    show(rows, json=json)
    if dry_run:
        say("dry run: nothing was changed")
        return False
    if yes:
        return True
    if not sys.stdin.isatty():
        raise Refused("there is no terminal to ask at, so nothing was changed; agree with --yes")
    if not answered_yes(question):
        raise Refused("nothing was changed; answer y, or give --yes, to continue")
    return True


def agreed_for_json(rows: Sequence[Any], question: str, *, yes: bool, dry_run: bool, json: bool) -> bool:
    """As `agreed`, where JSON is that of what is made: it is all of stdout, and nothing is asked."""
    if not json or dry_run:
        return agreed(rows, question, yes=yes, dry_run=dry_run, json=json)
    refuse_json_that_asks(yes=yes, dry_run=dry_run, json=json)
    return True


def refuse_json_that_asks(*, yes: bool, dry_run: bool, json: bool) -> None:
    """Raises BadInput for --json without --yes, before anything is looked up."""
    if json and not (yes or dry_run):
        raise BadInput("--json cannot ask; give --yes, or --dry-run for the plan")


def answered_yes(question: str) -> bool:
    """Ask on the terminal; False without one."""
    if not sys.stdin.isatty():
        return False
    print(f"{question} [y/N] ", end="", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip().lower() in ("y", "yes")


def _fields(row: Any) -> dict[str, Any]:
    if not is_dataclass(row) or isinstance(row, type):
        raise TypeError(f"a row is a mapping or a dataclass, not {type(row).__name__}")
    return asdict(row)


def _print_table(records: list[dict[str, Any]], red: Callable[[Mapping[str, Any]], bool]) -> None:
    from rich.console import Console  # here: `inv --list` stays quick
    from rich.table import Table
    from rich.text import Text

    names = list(dict.fromkeys(name for record in records for name in record))
    headings = [name.removesuffix("_usd").removesuffix("_s").replace("_", " ") for name in names]
    numeric = [all(isinstance(record.get(name), int | float | None) for record in records) for name in names]
    rows = [[_cell(name, record.get(name)) for name in names] for record in records]
    # A pipe or file has no width: truncate nothing.
    console = Console(file=sys.stdout, width=None if sys.stdout.isatty() else 10_000)
    room = console.width - 3 * len(names) - 1  # without the borders
    widths = _widths(list(zip(headings, *rows, strict=True)), numeric, room)
    if widths is None:
        for row in rows:
            _print_below_each_other(headings, row)
        return
    table = Table()
    for heading, is_number, width in zip(headings, numeric, widths, strict=True):
        table.add_column(Text(heading), justify="right" if is_number else "left", width=width)
    for record, row in zip(records, rows, strict=True):
        # As Text: [brackets] in a prompt are not rich's markup.
        table.add_row(*map(Text, row), style="bold red" if red(record) else None)
    console.print(table)


def _widths(columns: Sequence[Sequence[str]], numeric: Sequence[bool], room: int) -> list[int] | None:
    """Widths of columns that share this room, the widest made narrower; None if a word does not fit."""
    from rich.cells import cell_len

    widths = [max(map(cell_len, column)) for column in columns]
    words = [
        column if number else " ".join(column).split()
        for column, number in zip(columns, numeric, strict=True)
    ]
    least = [max(map(cell_len, each), default=0) for each in words]
    while sum(widths) > room:
        wide = max(range(len(widths)), key=lambda i: widths[i] if widths[i] > least[i] else -1)
        if widths[wide] <= least[wide]:
            return None
        widths[wide] -= 1
    return widths


def _print_below_each_other(headings: Sequence[str], row: Sequence[str]) -> None:
    """A row on a terminal that is too narrow for the table."""
    indent = max(map(len, headings)) + 2
    for heading, cell in zip(headings, row, strict=True):
        if cell:
            print(_folded(f"{heading:{indent}}{cell}", sys.stdout, indent))
    print()


def _cell(name: str, value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        if name.endswith("_usd"):
            return amounts.usd(value)
        if name.endswith("_s"):
            return amounts.duration(value)
        return f"{value:g}" if isinstance(value, float) else str(value)
    text = _CONTROL.sub(" ", str(value))
    return text if name == "prompt" else hints.pasteable(text)  # the user's words stay as they are
