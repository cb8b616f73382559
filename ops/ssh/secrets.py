"""Files on the box that only its user may read: the worker's settings and credentials.

Contents go over stdin into a file of mode 0600, which appears whole. They are never on a command line, in a
session's variables, or in a message.
"""

import re
from collections.abc import Collection, Mapping

from ops.ssh.box import Box
from worker.errors import BadInput, UserError

_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")
_LINE = re.compile(r"(?:export\s+)?([A-Za-z_][A-Za-z0-9_]*)=")

# $1: the file. stdin: its content. The temporary file is in the same folder, so that the rename is atomic.
_WRITE = """
set -euo pipefail
umask 077
mkdir -p "$(dirname "$1")"
new=$(mktemp "$1.XXXXXX")
trap 'rm -f "$new"' EXIT
cat > "$new"
mv -fT "$new" "$1"
"""


def env_lines(values: Mapping[str, str]) -> str:
    """`NAME='value'` lines that bash reads back exactly.

    Raises BadInput for a value with a quote or a line end.
    """
    lines = []
    for name, value in values.items():
        if not _NAME.fullmatch(name):
            raise BadInput(f"{name!r} is not a valid name of a variable; correct it in .env")
        if any(sign in value for sign in "'\n\r\0"):
            raise BadInput(f"{name} contains a quote or a line end; correct it in .env")
        lines.append(f"{name}='{value}'\n")
    return "".join(lines)


def merged(before: str, values: Mapping[str, str], managed: Collection[str]) -> str:
    """The file's new text: `values`, after those lines of `before` whose names are not `managed` here."""
    kept = [
        line
        for line in before.splitlines()
        if (found := _LINE.match(line)) and found[1] not in managed and found[1] not in values
    ]
    return "".join(f"{line}\n" for line in kept) + env_lines(values)


def put(box: Box, path: str, content: bytes) -> None:
    """Write a file of mode 0600 on the box, whole or not at all."""
    ran = box.shell(_WRITE, path, stdin=content)
    if ran.code:
        raise box.write_problem(ran, path)


def read(box: Box, path: str) -> str:
    """The file's text; empty if there is no file."""
    ran = box.shell('[ ! -e "$1" ] || cat "$1"', path)
    if ran.code:
        raise UserError(f"cannot read {path} on {box.label} ({ran.reason()})")
    return ran.out
