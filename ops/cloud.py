"""What a cloud that rents out machines can be asked, and its answers; `ops/clouds.py` lists the clouds.

A cloud prints nothing and asks the user nothing: `tell` takes its lines. One that does not answer raises
UserError.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from ops.boxes import Known
from ops.settings import Settings


@dataclass(frozen=True)
class Located:
    """A machine as its cloud sees it now. `box`: None while it has no address, as when it is stopped."""

    state: str
    box: Known | None


Tell = Callable[[str], None]


@dataclass(frozen=True)
class Inventory:
    """What this project has in a cloud, as `inv status` shows it.

    `rows`: all of it, for a script. `tables`: the same to read; a row that is true in `overdue` is red.
    `wrong`: one is past its deadline, or a question got no answer.
    """

    rows: Sequence[dict[str, Any]]
    tables: Sequence[Sequence[Any]]
    closing: str
    warnings: Sequence[str] = ()
    wrong: bool = False
    mend: Callable[[], None] = lambda: None  # what the look found to repair, once it is shown


@dataclass(frozen=True)
class Doomed:
    """What kill-all would end in a cloud. `closing`: what to say where that is nothing."""

    rows: Sequence[dict[str, Any]]
    closing: str
    unanswered: Sequence[str] = ()  # whatever these questions are about may be left
    notes: Sequence[str] = ()


@dataclass(frozen=True)
class Ended:
    """What kill-all has ended in a cloud, and what it could not or does not know."""

    n_ended: int
    closing: str
    failures: Sequence[str] = field(default_factory=list)


class Cloud(Protocol):
    """One cloud. `kind` is that of its boxes in `.boxes`; `has_regions`: --region is about it, too."""

    name: str
    kind: str
    has_regions: bool

    def not_set_up(self, settings: Settings) -> str:
        """Why there is nothing to ask it with; empty if there is, or if only the answer can tell."""

    def inventory(self, settings: Settings, region: str, tell: Tell) -> Inventory:
        """Everything that this project has there, in one region or, for "", in all."""

    def doomed(self, settings: Settings, region: str, tell: Tell) -> Doomed:
        """What `end_all` would end."""

    def end_all(self, settings: Settings, region: str, tell: Tell) -> Ended:
        """End everything of this project, and list it again until nothing is left."""

    def runs(self, settings: Settings, output: str, tell: Tell) -> dict[str, str]:
        """The machine of each run with this output, by the run's id."""

    def console(self, settings: Settings, machine: str) -> str:
        """What a machine has printed since its start; empty if there is nothing yet."""

    def owns(self, text: str) -> bool:
        """True for every text that has the form of its machines' ids. Uses no network."""

    def may_be_host(self, text: str) -> bool:
        """True for such a text that may as well be the name of a host: only `locate` can tell."""

    def locate(self, settings: Settings, machine: str, region: str | None = None) -> Located | None:
        """The machine of this id, in this region or, without one, anywhere; None if the cloud has none."""
