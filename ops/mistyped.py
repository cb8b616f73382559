"""A mistyped command or flag as one `error:` line with the nearest name; help that can be pasted.

Decides nothing: what Invoke refuses is refused, with its exit code 1.
"""

import difflib
import io
import itertools
import re
import sys
from collections.abc import Iterable
from contextlib import redirect_stdout
from typing import Any, TextIO

from invoke.exceptions import ParseError

from ops import hints, ui
from worker.errors import UserError

_UNKNOWN = re.compile(r"No idea what '(.*)' is!")
_NO_VALUE = re.compile(r"Flag <Argument: ([\w-]+).*> needed value")


class _Captured(io.StringIO):
    """Text for this stream, of which Invoke asks the width of its terminal."""

    def __init__(self, stream: TextIO) -> None:
        super().__init__()
        self._stream = stream

    def fileno(self) -> int:
        return self._stream.fileno()


def explain(program: Any, name: str) -> None:
    """From now on `program` (Invoke's or Fabric's), called `name`, explains what it cannot parse."""
    parse = program.parse_tasks

    def parse_or_explain() -> None:
        try:
            parse()
            for context in program.tasks:
                _refuse_bare_lists(program.core.unparsed, context)
        except ParseError as error:
            raise ui.failure(UserError(_explained(error, program, name))) from None
        except ValueError as error:  # Invoke does not catch a text where an int belongs
            text = str(error).rpartition(": ")[2]
            raise ui.failure(UserError(f"{text} is not a whole number; correct the flag's value")) from None

    program.parse_tasks = parse_or_explain
    help_of = program.print_task_help

    def print_help(task: str) -> None:
        """Invoke's own help, with an example that can be pasted."""
        with redirect_stdout(_Captured(sys.stdout)) as text:
            help_of(task)
        ui.write(hints.pasteable(text.getvalue()), fold=True)

    def show_commands() -> None:
        """What `inv` alone prints: Invoke's own flags would say nothing of the commands."""
        program.list_tasks()
        ui.write(
            hints.pasteable(f"`{name} --help COMMAND` shows a command's flags and an example"), fold=True
        )

    program.print_task_help = print_help
    program.print_help = show_commands


def _refuse_bare_lists(words: list[str], context: Any) -> None:
    """Invoke takes `--only` without a name for no `--only` at all: everything, where one song was meant."""
    flags = {flag for flag, argument in context.flags.items() if argument.kind is list}
    for word, following in zip(words, [*words[1:], "-"], strict=True):
        if word in flags and following.startswith("-"):
            raise ParseError(f"Flag <Argument: {word.lstrip('-')}> needed value", context)


def _explained(error: ParseError, program: Any, name: str) -> str:
    text = str(error)
    task = error.context.name if error.context else None
    command = f"{name} {task}" if task else name
    help_of = f"`{name} --help {task}` shows its flags" if task else f"`{name} --list` shows all commands"
    if value := _NO_VALUE.match(text):
        return f"`{command}` has --{value[1]} without a value; write --{value[1]}=VALUE"
    if not (unknown := _UNKNOWN.match(text)):
        return f"{text}; {help_of}"
    word = unknown[1]
    if flag := _given_twice(program.argv, word):
        return f"`{command}` has {flag} twice; give it once"
    if word.startswith("-"):
        flags = [*(error.context.flags if error.context else []), *program.initial_context.flags]
        return f"`{command}` has no {word}; {_nearest(word, flags) or help_of}"
    aliases = program.collection.task_names.values()
    commands = [*program.collection.task_names, *(alias for each in aliases for alias in each)]
    near = _nearest(word, commands)
    return f"there is no command {word!r}; " + (near or f"`{name} --list` shows all commands")


def _given_twice(argv: list[str], word: str) -> str:
    """The flag that this word is the second value of: Invoke takes that for a command."""
    before = [flag for flag, value in itertools.pairwise(argv) if value == word]
    return next((flag for flag in before if flag.startswith("-") and argv.count(flag) > 1), "")


def _nearest(word: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(word, [name for name in names if len(name) > 2], n=1)
    return f"did you mean {near[0]}?" if near else ""
