"""What the parts of one run share."""

from dataclasses import dataclass, field
from functools import cached_property

from worker.host.notice import Interruption
from worker.run.budget import StopBudget
from worker.run.claims import TTL_S
from worker.run.observer import Observer
from worker.run.progress import ProgressMeter
from worker.run.request import RunRequest
from worker.store.base import Store
from worker.store.retry import Retry


@dataclass(frozen=True)
class RunContext:
    """One run: what is asked of it, where its songs go, who is informed, and what may stop it."""

    request: RunRequest
    store: Store
    observer: Observer
    meter: ProgressMeter  # one of the observers too
    spare: Store | None = None  # a folder of this machine for what the store does not take
    interruption: Interruption = field(default_factory=Interruption)
    budget: StopBudget = field(default_factory=StopBudget)
    claim_ttl_s: float = TTL_S

    @property
    def stores(self) -> list[Store]:
        """The store, then the spare folder if there is one."""
        return [self.store, *([self.spare] if self.spare else [])]

    @cached_property
    def retry(self) -> Retry:
        """Waits for the store while it does not answer."""
        return Retry(self.observer.note)

    def warn(self, text: str) -> None:
        """A line of warning for every observer."""
        self.observer.note("warning", text, level="warning")
