"""A job list from a spreadsheet: `.csv` or `.tsv` with the columns prompt, seconds, name.

    prompt,seconds,name
    "slow piano, rain on a window",20,rain

A table is known by its first line, not by the file's name: a box has every list as `prompts.txt`.
Columns come in any order; `seed`, `lyrics` and `continue` may be among them. Under
`prompt ; seconds ; name` a row may also be a line of a text list. Does not judge the cells.
"""

import csv
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

from worker.amounts import count

NEEDED = ("prompt", "seconds", "name")
OPTIONS = ("seed", "lyrics", "continue")
SEPARATORS = (",", "\t", ";")

_UNNAMED = "the columns are called {}; call them prompt, seconds, name"


@dataclass(frozen=True)
class Row:
    """A row with the line on which it begins; `wrong`: why it cannot be read, or nothing.

    `text`: the whole line, of a row that is to be read as a line of a text list.
    """

    line: int
    cells: Mapping[str, str]
    wrong: str = ""
    text: str = ""


def rows(text: str) -> Iterator[Row] | None:
    """The rows below the heading; None if the text is not a table."""
    lines = text.split("\n")
    first = next((i for i, line in enumerate(lines) if line.strip() and not is_comment(line)), None)
    if first is None:
        return None
    for separator in SEPARATORS:
        heading = [cell.strip().strip('"').lower() for cell in lines[first].split(separator)]
        while len(heading) > len(NEEDED) and not heading[-1]:  # a spreadsheet's empty columns
            heading.pop()
        if tuple(heading) == NEEDED and separator == ";":
            return _below_as_in_a_list(lines, first + 1)
        if set(NEEDED) <= set(heading):
            return _below(lines, first + 1, heading, separator)
        if NEEDED[0] in heading and len(heading) >= len(NEEDED) and ";" not in lines[first]:
            return iter([Row(first + 1, {}, _UNNAMED.format(", ".join(heading)))])
    return None


def is_comment(line: str) -> bool:
    """True for a line that is skipped."""
    return line.lstrip().startswith("#")


def _below_as_in_a_list(lines: list[str], first: int) -> Iterator[Row]:
    """Rows of three cells, and lines that are none: a prompt may contain `;`, and options may follow."""
    for number, line in enumerate(lines[first:], start=first + 1):
        if not line.strip(" \t;") or is_comment(line):
            continue
        try:
            cells = [cell.strip() for cell in next(csv.reader([line], delimiter=";", strict=True))]
        except csv.Error:
            cells = []
        if len(cells) >= len(NEEDED) and not any(cells[len(NEEDED) :]):
            yield Row(number, dict(zip(NEEDED, cells, strict=False)))
        else:
            yield Row(number, {}, text=line)


def _below(lines: list[str], first: int, heading: list[str], separator: str) -> Iterator[Row]:
    if unknown := [name for name in heading if name not in NEEDED + OPTIONS or heading.count(name) > 1]:
        known = ", ".join(NEEDED + OPTIONS)
        yield Row(first, {}, f"column {unknown[0]!r} is not one of {known}, each once; rename or remove it")
        return
    reader = csv.reader((f"{line}\n" for line in lines[first:]), delimiter=separator, strict=True)
    line = first + 1
    try:
        for raw in reader:
            cells, line, begun = [cell.strip() for cell in raw], first + reader.line_num + 1, line
            if not any(cells) or (is_comment(cells[0]) and not any(cells[1:])):
                continue
            if any(cells[len(heading) :]) or len(cells) < len(NEEDED):
                wrong = (
                    f"{count(len(cells), 'cell')} under {len(heading)} columns; put a prompt that contains "
                )
                yield Row(begun, {}, wrong + f"{_shown(separator)} in quotation marks")
            else:
                yield Row(begun, dict(zip(heading, cells, strict=False)))
    except csv.Error:
        yield Row(line, {}, 'a quotation mark is not closed or not doubled; write " within a prompt as ""')


def _shown(separator: str) -> str:
    return "a tab" if separator == "\t" else f"`{separator}`"
