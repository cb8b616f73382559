"""One thing of the account: how it is, how it should be, and the change between them."""

from collections.abc import Callable
from dataclasses import dataclass

KEEP = "nothing"


@dataclass(frozen=True)
class Step:
    """A row of the setup's plan. `act` changes the account; None: there is nothing to do.

    `action` is one word for what `act` does (create, change, delete), or KEEP.
    """

    thing: str
    now: str
    wanted: str
    action: str = KEEP
    act: Callable[[], object] | None = None

    def row(self) -> dict[str, str]:
        """For the table and for --json."""
        return {"thing": self.thing, "now": self.now, "wanted": self.wanted, "to_do": self.action}


ABSENT = "absent"
AS_WANTED = "as wanted"


def step(thing: str, drift: str | None, wanted: str, act: Callable[[], object]) -> Step:
    """The step for a thing that is absent (drift ABSENT), differs (what differs) or is right (None)."""
    if not drift:
        return Step(thing, AS_WANTED, wanted)
    return Step(thing, drift, wanted, "create" if drift == ABSENT else "change", act)
