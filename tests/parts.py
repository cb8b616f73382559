"""Real parts that a test starts and that a machine may lack: OpenSSH, tmux, a browser, ...

Without the part a test skips with the reason, so that a laptop can run the rest.
Where CI_PARTS_REQUIRED is 1 (.ci/run) it fails instead: CI never passes by skipping.
"""

import os

import pytest


def need(part: str, present: bool) -> None:
    """End this test unless the part is present: skip, or fail where all parts are required."""
    if present:
        return
    reason = f"{part} is missing on this machine"
    if os.environ.get("CI_PARTS_REQUIRED") == "1":
        pytest.fail(f"{reason}, and CI_PARTS_REQUIRED=1; add it to `packages` in .ci/run", pytrace=False)
    pytest.skip(reason)
