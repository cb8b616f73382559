"""The errors that reach a user as one `error:` line.

The text says what happened, then what to do: `what happened; what to do`.
Only `python -m worker` and `ops.ui.one_line_errors` catch them.
"""


class UserError(Exception):
    """Shown to the user as one `error:` line; the process ends with `code`."""

    code = 1


class DiskFull(UserError):
    """The disk, or the quota on it, took no more; what is finished is kept."""


class Unreachable(UserError):
    """The store does not answer, or not to these credentials: it may do so later."""


class Denied(Unreachable):
    """The store refuses what it has allowed before: it may allow it again within minutes."""


class BadInput(UserError):
    """A file or a setting is wrong; nothing was started."""

    code = 2


class Refused(UserError):
    """The user said no, or was not there to say yes."""

    code = 3


class Interrupted(UserError):
    """Stopped before the list was finished; the same command resumes."""

    code = 75
