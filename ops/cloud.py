"""What a cloud that rents out machines can be asked, and its answers; `ops/clouds.py` lists the clouds.

A cloud prints nothing and asks the user nothing; one that does not answer raises UserError.
"""

from dataclasses import dataclass
from typing import Protocol

from ops.boxes import Known
from ops.settings import Settings


@dataclass(frozen=True)
class Located:
    """A machine as its cloud sees it now. `box`: None while it has no address, as when it is stopped."""

    state: str
    box: Known | None


class Cloud(Protocol):
    """One cloud. `kind` is that of its boxes in `.boxes`."""

    name: str
    kind: str

    def owns(self, text: str) -> bool:
        """True for what looks like the id of one of its machines. Uses no network."""

    def locate(self, settings: Settings, machine: str, region: str | None = None) -> Located | None:
        """The machine of this id, in this region or, without one, anywhere; None if the cloud has none."""
