"""The seconds between a stop request and the end of the process, in one place.

Local copies come first: a store that hangs must not cost tokens. The sum fits into what EC2 leaves
(worker/host/spot_notice.py), the first part into the 5 s between a pod's SIGTERM and its SIGKILL.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class StopBudget:
    """How long each step of stopping may take, in the order in which they run."""

    save_locally_s: float = 1  # unfinished songs, on this machine's disk
    finish_audio_s: float = 3  # songs whose tokens are complete become files, if they can
    upload_s: float = 6  # unfinished songs, into the store
    report_s: float = 3  # cost report and summary
    release_claims_s: float = 2
    last_log_s: float = 3  # the last log and the last status, side by side

    @property
    def total_s(self) -> float:
        """From the stop request to the end, if every step takes all of its time."""
        return (
            self.save_locally_s
            + self.finish_audio_s
            + self.upload_s
            + self.report_s
            + self.release_claims_s
            + self.last_log_s
        )
