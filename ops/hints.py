"""Commands in messages, as they can be pasted into the shell that started this program."""

import os
import re
import sys
from collections.abc import Mapping

# A command of this project as messages name it: `inv check`, `fab --list`; not one that is whole already.
_LINE = re.compile(r"\s*(?:uv run )?(?:inv|fab) (?:(?:--)?[a-z]|-H )")
_COMMAND = re.compile(r"(?<![\w./-])(?<!uv run )(?=(?:inv|fab) (?:(?:--)?[a-z]|-H ))")


def pasteable(text: str, env: Mapping[str, str] = os.environ) -> str:
    """The text with `uv run` before each `inv` and `fab` command, unless the environment is active."""
    # `uv run` activates the environment for its command only, not in the user's shell.
    active = env.get("VIRTUAL_ENV") == sys.prefix and "UV_RUN_RECURSION_DEPTH" not in env
    return text if active else _COMMAND.sub("uv run ", text)


def is_command(line: str) -> bool:
    """True for a line that is a command and nothing else before it."""
    return bool(_LINE.match(line))
