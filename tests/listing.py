"""The tasks of `inv` and `fab` as Invoke knows them, and the commands that a page names."""

import re
import shlex
from collections.abc import Iterator

import invoke

import fabfile
import tasks

TASKS = {
    (program, name): found[name]
    for program, found in (("inv", tasks.ns), ("fab", fabfile.ns))
    for name in found.task_names
}
# Once: a task hands out its help texts only the first time.
ARGUMENTS = {key: task.get_arguments() for key, task in TASKS.items()}
ALIASES = {(program, alias): name for (program, name), task in TASKS.items() for alias in task.aliases}

_CODE = re.compile(r"^```\w*\n(.*?)^```|`([^`\n]+)`", re.M | re.S)
_COMMAND = re.compile(r"(?:^|\s|&& )(?:uv run )?(inv|fab)((?: +(?!&&)(?:\"[^\"]*\"|[^\s#`\"]+))+)", re.M)


def commands(page: str) -> Iterator[tuple[str, str, str]]:
    """(program, task, what is wrong or nothing) for each task that the code of a page calls."""
    for block, span in _CODE.findall(page):
        for program, words in _COMMAND.findall(block or span):
            yield from _calls(program, shlex.split(re.split(r"\s{2,}", words.strip())[0]))


def _calls(program: str, words: list[str]) -> Iterator[tuple[str, str, str]]:
    name, takes_value, n_positional = "", False, 0
    for word in words:
        if takes_value:
            takes_value = False
        elif word.startswith("-") and not name:
            takes_value = word in ("-H", "-i", "--help")
        elif word.startswith("-"):
            flag = word.partition("=")[0]
            found = [a for a in ARGUMENTS[program, name] if flag.lstrip("-").replace("-", "_") in _names(a)]
            takes_value = bool(found) and found[0].takes_value and "=" not in word
            yield program, name, "" if found else f"has no {flag}"
        elif n_positional:
            n_positional -= 1
        else:
            name = ALIASES.get((program, word), word)
            if (program, name) not in TASKS:
                yield program, word, "is not a task"
                return
            n_positional = sum(argument.positional for argument in ARGUMENTS[program, name])
            yield program, name, ""


def _names(argument: invoke.Argument) -> list[str]:
    return [each.replace("-", "_") for each in argument.names]
