"""What a model may be called. Needs no package, so that a user's machine can ask it."""

import re

REHEARSAL = "rehearsal"  # the built-in tiny model
HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
