"""What `fab status` tells, and how it moves the deadline."""

from dataclasses import asdict
from datetime import UTC, datetime
from typing import Any

from ops import durations, ui
from ops.ssh import look
from ops.ssh.box import Box
from worker.errors import UserError


def rows(box: Box, *, json: bool) -> list[dict[str, Any]]:
    """The box as rows to read, or as the one object of a script."""
    seen = look.look(box)
    if json:
        return [asdict(seen) | {"state": look.state(seen.run, seen.status)}]
    return list(look.status_rows(seen, datetime.now(UTC)))


def extend(box: Box, text: str) -> str:
    """Move the deadline by `2h`, at most to the end of the box's lifetime; -> what it is now."""
    seconds = int(durations.parse(text, "--extend").total_seconds())
    ran = box.remote("deadline.sh", "extend", str(seconds))
    if ran.code:
        raise UserError(ran.reason())
    found = ran.json()
    clipped = ", the end of the lifetime it was given at launch" if found.get("clipped") else ""
    return f"the box now goes off in {ui.seconds(found['left_s'])}{clipped}"
